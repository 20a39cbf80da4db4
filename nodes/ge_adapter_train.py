"""GEAdapterTrain: a GE-Adapter is trained on short clips, in the graph."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..training.ge_adapter import GEAdapter
from ..training.ge_adapter_training import Clips, Settings, Steering, Trained, train_adapter
from ..training.loop import TrainingError
from ..training.low_rank import LAYERS, Layers
from ..training.memory import gibibytes
from ..training.temporal_loss import MIN_FRAMES
from .charts import drawn
from .inputs import TUNING, Adapter, seed_input
from .node import Node
from .training import Progress, draw_losses, time_text


class GEAdapterTrain(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GEAdapterTrain",
            display_name="GE-Adapter Train",
            category=TUNING,
            description="Trains a GE-Adapter on short clips: a small LoRA, with a loss that asks neighbouring frames "
            "to change evenly, and tokens that go before the prompt. A trained adapter can be used on other clips, "
            "too. Your model is not changed.",
            search_aliases=["train", "ge-adapter", "temporal lora", "frame consistency", "video training"],
            inputs=_inputs(),
            outputs=[
                Adapter.Output("adapter", tooltip="For GEAdapterApply, GEAdapterTokens and SaveGEAdapter."),
                io.Image.Output("loss_chart", tooltip="The loss of every step and its moving average."),
                io.String.Output("report", tooltip="What was trained, time and memory used, and both losses."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: Any,
        clips: dict,
        frames_per_clip: int,
        captions: str,
        rank: int,
        layers: Layers,
        shared_tokens: int,
        temporal_weight: float,
        diffusion_weight: float,
        temporal_range_start: float,
        steps: int,
        learning_rate: float,
        warmup_steps: int,
        gradient_accumulation: int,
        seed: int,
        clip_vision_output: Any = None,
        adapter: GEAdapter | None = None,
        control_net: Any = None,
        control_images: Tensor | None = None,
        control_strength: float = 1.0,
    ) -> io.NodeOutput:
        settings = Settings(
            rank,
            layers,
            shared_tokens,
            temporal_weight,
            diffusion_weight,
            temporal_range_start,
            steps,
            learning_rate,
            warmup_steps,
            gradient_accumulation,
            seed,
        )
        lines = _lines(captions, clips["samples"].shape[0] // frames_per_clip)
        given = Clips(
            clips,
            frames_per_clip,
            [clip.encode_from_tokens_scheduled(clip.tokenize(line)) for line in lines],
            None if clip_vision_output is None else clip_vision_output.last_hidden_state,
            _steering(control_net, control_images, control_strength),
        )
        trained = train_adapter(model, given, settings, adapter, Progress(steps, cls.hidden.unique_id))
        chart = drawn(draw_losses, trained.history, "Training of a GE-Adapter", "weighted sum of both losses")
        return io.NodeOutput(trained.adapter, chart, _report(trained, given, settings))


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model", tooltip="A model with a UNet: SD1.5, SD2 or SDXL. The adapter only fits models of this class."
        ),
        io.Clip.Input("clip", tooltip="The model's text encoder. It encodes the captions and is not trained."),
        io.Latent.Input(
            "clips",
            tooltip="Clips of equal length, one after the other: join their frames with BatchImagesNode, then use "
            "VAEEncode.",
        ),
        io.Int.Input(
            "frames_per_clip",
            default=8,
            min=MIN_FRAMES,
            max=4096,
            tooltip="Number of frames in each clip, 3 or more; the latent's batch must be a multiple of it. Each step "
            "takes a whole clip, so use fewer if memory runs out.",
        ),
        io.String.Input(
            "captions",
            multiline=True,
            default="",
            tooltip="What each clip shows: one line per clip, in order. A line may be empty.",
        ),
        io.ClipVisionOutput.Input(
            "clip_vision_output",
            optional=True,
            tooltip="All frames of all clips, encoded by CLIPVisionEncode (crop none), for the per-frame tokens. "
            "Without it, the adapter only has shared tokens.",
        ),
        io.Int.Input(
            "rank",
            default=4,
            min=1,
            max=128,
            tooltip="Rank of the LoRA, 1 to 128. 4 is the paper's choice. A higher rank can learn more, but also "
            "memorises more.",
        ),
        io.Combo.Input(
            "layers",
            options=list(LAYERS),
            default="down",
            tooltip="Which blocks' attention gets a LoRA: the down blocks (the paper's choice), all blocks, or the up "
            "blocks, the decoder. Choose all or up if down changes too little.",
        ),
        io.Int.Input(
            "shared_tokens",
            default=8,
            min=0,
            max=77,
            tooltip="Number of learned tokens that all frames share, 0 to 77. 8 is the paper's choice. In the paper "
            "18 also worked; more drowned out the prompt.",
        ),
        io.Float.Input(
            "temporal_weight",
            default=0.01,
            min=0.0,
            max=1000.0,
            step=0.01,
            round=0.0001,
            tooltip="Weight of the temporal loss, 0 or more. 0.01 is the published code's value. Raise it if frames "
            "still jump, but not so far that pictures turn soft.",
        ),
        io.Float.Input(
            "diffusion_weight",
            default=1.0,
            min=0.0,
            max=1000.0,
            step=0.01,
            round=0.0001,
            tooltip="Weight of the diffusion loss, which preserves picture quality, 0 or more. Leave it at 1 unless "
            "you want the temporal loss alone.",
        ),
        io.Float.Input(
            "temporal_range_start",
            default=0.5,
            min=0.0,
            max=0.95,
            step=0.05,
            round=0.001,
            advanced=True,
            tooltip="When the LoRA and the temporal loss start to act, as a share of the timesteps: 0.5 means the "
            "noisier half (the paper's choice), 0 all of them. Raise it to leave late steps alone.",
        ),
        io.Int.Input(
            "steps",
            default=1000,
            min=1,
            max=1_000_000,
            tooltip="Number of optimiser steps, 1 to 1000000, each on gradient_accumulation clips. Should exceed "
            "warmup_steps; the paper trained for 18 hours.",
        ),
        io.Float.Input(
            "learning_rate",
            default=3e-5,
            min=1e-7,
            max=1e-1,
            step=1e-6,
            round=1e-8,
            tooltip="Step size of the optimiser, 1e-7 to 0.1. 3e-5 is the paper's choice for SD1.5; small models and "
            "short runs need more. Lower it if the loss jumps.",
        ),
        io.Int.Input(
            "warmup_steps",
            default=500,
            min=0,
            max=1_000_000,
            advanced=True,
            tooltip="Number of steps over which the rate rises to learning_rate, 0 or more. 500 is the paper's "
            "choice; set it well below steps.",
        ),
        io.Int.Input(
            "gradient_accumulation",
            default=8,
            min=1,
            max=1024,
            advanced=True,
            tooltip="Number of clips per optimiser step, 1 to 1024, each at its own noise level. More clips give "
            "smoother gradients and take longer, in the same memory.",
        ),
        seed_input(
            "Seeds the choice of clips, the noise, noise levels and initial weights. The same seed gives the "
            "same adapter.",
            control_after_generate=False,
        ),
        Adapter.Input(
            "adapter",
            optional=True,
            tooltip="An adapter to continue from, with a fresh optimiser. Rank, layers and tokens must match. Leave "
            "it empty to train from the start; change the seed for other noise.",
        ),
        io.ControlNet.Input(
            "control_net",
            optional=True,
            tooltip="A ControlNet that steers every training step, as in the paper; it is not trained. Connect one, "
            "with control_images, if you will sample with it.",
        ),
        io.Image.Input(
            "control_images",
            optional=True,
            tooltip="The ControlNet's image of every frame of every clip, such as its edges or depth, in the order of "
            "clips; any size.",
        ),
        io.Float.Input(
            "control_strength",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.05,
            round=0.001,
            optional=True,
            advanced=True,
            tooltip="Strength of the ControlNet during training, 0 to 10. 0: no ControlNet. Use the value that you "
            "will sample with.",
        ),
    ]


def _lines(captions: str, number: int) -> list[str]:
    """One for each of so many clips; empty ones after the last do not count."""
    lines = [line.strip() for line in f"{captions}\n".splitlines()]
    while len(lines) > number and not lines[-1]:
        lines.pop()
    return lines


def _steering(control_net: Any, images: Tensor | None, strength: float) -> Steering | None:
    """TrainingError where one of the two is missing."""
    if (control_net is None) != (images is None):
        missing, there = ("control_images", "control_net") if images is None else ("control_net", "control_images")
        raise TrainingError(
            f"{missing} is not connected, but {there} is: expected both. Connect {missing}, or disconnect {there}."
        )
    if control_net is None or images is None or strength == 0:
        return None
    return Steering(control_net, images, strength)


def _report(trained: Trained, clips: Clips, settings: Settings) -> str:
    adapter, seconds = trained.adapter, trained.history.seconds
    parts = adapter.parameters()
    earlier = adapter.training.steps - len(seconds)
    first, last = trained.history.ends()
    lines = [
        f"{sum(parts.values()):,} parameters: " + ", ".join(f"{count:,} {part}" for part, count in parts.items()),
        f"rank {adapter.rank}, layers {settings.layers} of {adapter.training.base}, {len(adapter.lora) // 3} "
        f"projections; {clips.number} clips of {clips.frames} frames",
        f"{len(seconds)} steps{f' after {earlier} earlier ones' if earlier else ''} in {time_text(sum(seconds))} "
        f"({sum(seconds) / len(seconds):.2f} s a step), {trained.dtype}",
        f"mean loss of the first tenth of the steps {first:.5f}, of the last {last:.5f}",
        f"diffusion loss {_ends(trained.diffusion)}, temporal loss {_ends(trained.temporal)}",
        f"memory estimated before the first step, beside the model: {gibibytes(trained.needed)}"
        + (", with every block computed twice" if trained.checkpointed else ""),
    ]
    if settings.warmup_steps >= settings.steps:
        lines.append(
            f"The rate never reached learning_rate: {settings.steps} steps, {settings.warmup_steps} to warm up"
        )
    return "\n".join(lines)


def _ends(losses: list[float]) -> str:
    """The mean of the first and the last tenth."""
    if not losses:
        return "not taken"
    tenth = max(1, len(losses) // 10)
    return f"{sum(losses[:tenth]) / tenth:.6f} → {sum(losses[-tenth:]) / tenth:.6f}"


NODES = [GEAdapterTrain]
