"""What the tests of the register share: the demo model, where its runs start, and registries without a model."""

import comfy.samplers
import torch
from coherence.attention.registry import AttentionRegistry, Figures, Layer, Measurement, Ranking
from coherence.samplers.measure import Start
from coherence.techniques.entropy import Energy
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from hypothesis import strategies as st
from watching import DEMO

MEASUREMENT = Measurement((0,), (14.6,), "exact", 3, (3, 4, 16, 16))
KINDS = ("spatial", "temporal", "joint", "cross", "text")


def demo_conditioning(entries: int = 1) -> list:
    texts = torch.randn(entries, 1, 32, 128, generator=torch.Generator().manual_seed(1))
    return [[text, {}] for text in texts]


def start_of(model, conditioning, latent_shape, steps: int = 4, seed: int = 3, latent=None) -> Start:
    """A run of ``steps`` steps of the normal schedule, from zero latents, with core's RandomNoise."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    samples = torch.zeros(latent_shape) if latent is None else latent
    return Start(conditioning, Noise_RandomNoise(seed), sigmas, {"samples": samples})


def demo_start(model, steps: int = 4, conditioning=None) -> Start:
    return start_of(model, conditioning or demo_conditioning(), DEMO.latent_shape, steps)


def layer(order: int, kind: str, entropy: float) -> Layer:
    figures = Figures(64, 64, entropy, 0.0, Energy(2.0, 1.0, 5.0))
    return Layer(f"blocks.{order}", order, kind, 2, figures, False)


def registry(layers: list[Layer]) -> AttentionRegistry:
    return AttentionRegistry("BaseModel", "UNetModel", tuple(layers), Ranking(), MEASUREMENT)


# Few values, so that ties are common.
entropies = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)
layer_lists = st.lists(st.tuples(st.sampled_from(KINDS), entropies), max_size=24).map(
    lambda pairs: [layer(order, *pair) for order, pair in enumerate(pairs)]
)
