"""NullTextInvert: the negative prompt of every step, so that guided sampling returns a given clip."""

from __future__ import annotations

from dataclasses import asdict

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..samplers.latents import with_samples
from ..training.memory import gibibytes
from ..training.null_text import NullText, null_text
from ..training.sampler import Precision
from .inputs import INVERSION, cfg_input, precision_input, refine_input
from .node import Node
from .reports import to_json


class NullTextInvert(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NullTextInvert",
            display_name="Null-Text Invert",
            category=INVERSION,
            description="Inverts a clip and optimises the negative prompt at every step, so that sampling with "
            "guidance returns the clip. Edits of a real clip can then use a high cfg for source and target.",
            search_aliases=[
                "null-text inversion",
                "null text optimization",
                "vid2vid-zero",
                "prompt-to-prompt",
                "ddim inversion",
                "invert video",
                "unsampler",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that will redraw the clip. It is copied, not changed."),
                io.Conditioning.Input("positive", tooltip="A prompt that describes the clip as it is."),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt that optimisation starts from, usually an empty one."
                ),
                cfg_input(
                    7.5,
                    "The guidance scale that you will sample with; the negative prompts fit this value only. Lower it "
                    "if the report shows large errors.",
                ),
                io.Latent.Input("latent_image", tooltip="The clip's latent, from VAE Encode, without a noise mask."),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The noise levels as the sampler will get them, in falling order, from a scheduler node. "
                    "Each step gets its own negative prompt, so sample with the same sigmas. 50 is usual.",
                ),
                io.Int.Input(
                    "inner_steps",
                    default=10,
                    min=0,
                    max=1000,
                    tooltip="The most updates of the negative prompt per sampling step, 0 to 1000. 10 is the paper's "
                    "choice. Raise it if you use few steps, or if the report shows large errors. 0 only inverts.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.01,
                    min=1e-6,
                    max=10.0,
                    step=0.001,
                    round=1e-6,
                    tooltip="Step size of the optimiser, 0.000001 to 10. 0.01 is the authors' choice for SD1.5. Raise "
                    "it if errors hardly fall; lower it if the edit loses detail.",
                ),
                io.Float.Input(
                    "early_stop",
                    default=1e-5,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=1e-8,
                    advanced=True,
                    tooltip="A step ends early when its mean squared error is below this limit, 0 to 1, for latents of "
                    "unit variance. The limit rises over the run, to nearly 100 times this value. 0.00001 is the "
                    "authors' choice. Raise it to save time; 0 always uses all inner_steps.",
                ),
                refine_input(),
                precision_input("The dtype of the computation"),
            ],
            outputs=[
                io.Conditioning.Output(
                    "negative",
                    tooltip="The negative prompt of every step, each for its own time range. Use it as negative of a "
                    "sampler, a guider or EntropyGuidedEdit, with the same cfg and sigmas.",
                ),
                io.Latent.Output(
                    "latent",
                    tooltip="The clip's noise. Use it as latent_image of a sampler, with DisableNoise. For flow "
                    "models and CogVideoX, pass it through NoiseFromLatent.",
                ),
                io.Latent.Output(
                    "reconstruction",
                    tooltip="What Euler sampling with these negative prompts returns. Decode it to see how close it is "
                    "to the clip.",
                ),
                io.String.Output(
                    "report",
                    tooltip="JSON: for each step the noise level, how often the negative prompt was changed, and the "
                    "distance from the inversion before and after; and the memory a step needs.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        cfg: float,
        latent_image: dict,
        sigmas: Tensor,
        inner_steps: int,
        learning_rate: float,
        early_stop: float = 1e-5,
        refine_iterations: int = 0,
        precision: Precision = "auto",
    ) -> io.NodeOutput:
        settings = NullText(cfg, inner_steps, learning_rate, early_stop, refine_iterations, precision)
        found = null_text(model, positive, negative, latent_image, sigmas, settings, cls.node_name)
        report = {
            **asdict(settings),
            "precision": str(found.dtype).removeprefix("torch."),
            "memory": gibibytes(found.needed) + (", with every block computed twice" if found.recomputed else ""),
            **asdict(found.report),
        }
        latents = (with_samples(latent_image, samples) for samples in (found.noise, found.reconstruction))
        return io.NodeOutput(found.negative, *latents, to_json(report))


NODES = [NullTextInvert]
