"""The tiny models are what the other tests take them for: stock-loaded, of their class, exact, and sharp."""

import gc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from coherence.attention.sites import sites_of
from tiny_models import FAMILIES, TinyModels, sample


class EntropyProbe:
    """An attention override that observes: mean entropy of each self-attention map, 1 for a uniform one."""

    def __init__(self) -> None:
        self.entropies: list[float] = []

    def __call__(self, func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        q, k, _, *rest = args
        heads = rest[0] if rest else kwargs["heads"]
        if not kwargs.get("skip_reshape"):
            q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
        if q.shape[2] == k.shape[2] > 1:
            probabilities = torch.softmax(q.float() @ k.float().mT / math.sqrt(q.shape[-1]), dim=-1)
            entropy = torch.special.entr(probabilities).sum(-1).mean() / math.log(k.shape[2])
            self.entropies.append(entropy.item())
        return func(*args, **kwargs)


pytestmark = pytest.mark.slow


@pytest.fixture(params=FAMILIES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str, tiny_models: TinyModels) -> Iterator[Any]:
    import comfy.model_management

    yield tiny_models.load(name)
    comfy.model_management.unload_all_models()
    gc.collect()


def test_stock_loader_finds_the_family(model: Any, name: str, tiny_models: TinyModels) -> None:
    import comfy.model_base
    import comfy.supported_models

    family = FAMILIES[name]
    by_loader = tiny_models.load_stock(name) if family.narrow else model
    for each in (model, by_loader):
        assert type(each.model) is getattr(comfy.model_base, family.base)
        assert type(each.model.model_config) is getattr(comfy.supported_models, family.config)
    ours, theirs = ([(site.name, site.kind) for site in sites_of(each)] for each in (model, by_loader))
    assert ours == theirs, "the model that is built differs in its width alone"


@pytest.fixture(scope="module")
def observed(model: Any, name: str) -> tuple[torch.Tensor, list[float]]:
    """A sample, and the entropies of the self-attention maps on its way."""
    probe = EntropyProbe()
    observed = model.clone()
    observed.model_options["transformer_options"]["optimized_attention_override"] = probe
    return sample(observed, FAMILIES[name]), probe.entropies


def test_sampling_is_finite_and_repeats_to_the_bit(model: Any, name: str, observed: Any) -> None:
    latents, _ = observed
    assert latents.shape == FAMILIES[name].latent_shape
    assert latents.isfinite().all()
    assert torch.equal(sample(model, FAMILIES[name]), latents)


def test_self_attention_is_sharp(observed: Any) -> None:
    _, entropies = observed
    assert entropies
    assert sum(entropies) / len(entropies) < 0.9


def test_the_same_file_is_written_every_time(tiny_models: TinyModels, tmp_path: Path) -> None:
    again = TinyModels(tmp_path)
    assert again.path("ltxv").read_bytes() == tiny_models.path("ltxv").read_bytes()
    assert again.lora_path().read_bytes() == tiny_models.lora_path().read_bytes()


def test_text_encoders_tell_prompts_apart(tiny_models: TinyModels) -> None:
    from nodes import CLIPTextEncode

    with_model = tiny_models.load_checkpoint("sd15")[1]
    by_itself = tiny_models.load_text_encoder()
    for clip, width in ((with_model, 768), (by_itself, 4096)):
        cat, dog = (CLIPTextEncode().encode(clip, text)[0][0][0] for text in ("a cat", "a dog"))
        assert cat.shape == (1, 77, width)
        assert cat.isfinite().all()
        assert not torch.equal(cat, dog)


def test_checkpoint_vae_maps_eight_pixels_to_a_latent(tiny_models: TinyModels) -> None:
    vae = tiny_models.load_checkpoint("sd15")[2]
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    latents = vae.encode(picture)
    assert latents.shape == (1, 4, 8, 8)
    assert vae.decode(latents).shape == picture.shape


def test_controlnet_and_lora_change_the_sample(tiny_models: TinyModels) -> None:
    from nodes import ControlNetApply

    family = FAMILIES["sd15"]
    model = tiny_models.load("sd15")
    plain = sample(model, family, steps=1)
    adapted = sample(tiny_models.load_lora(model), family, steps=1)
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    positive, negative = family.conditioning()
    controlled = ControlNetApply().apply_controlnet(positive, tiny_models.load_controlnet(), hint, 1.0)[0]
    steered = sample(model, family, steps=1, conditioning=(controlled, negative))
    for changed in (adapted, steered):
        assert changed.isfinite().all()
        assert (changed - plain).norm() > 0.01 * plain.norm()
