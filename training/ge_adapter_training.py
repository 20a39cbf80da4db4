"""Training of a GE-Adapter on short clips (§3.2, §3.3, Eq. 19): LoRA, shared tokens and projection together.

    Loss = λ_diff ‖ε − ε_θ(x_t, t, Z)‖²                          t < start·T
    Loss = λ_diff ‖ε − ε_θ(x_t, t, Z)‖² + λ_temp L_temporal      t ≥ start·T, with the LoRA in the model

A loss is of one whole clip, drawn from all, whose frames are noised independently to one level t, uniform over the
timesteps; Z are the tokens before the clip's caption.

Readings. F of L_temporal is Eq. 2's: W0·x + B·A·x, what every adapted projection gives, and L_temporal its mean over
them. Where all frames share one text, the keys and values of the cross-attention are equal and add 0. Below start·T
"the adapter remains inactive" (below Eq. 20): the LoRA is out of the model there, and only the tokens learn; an adapter
without tokens draws t from [start·T, T] alone. The weights are Eq. 19's and the published code's (1 and 0.01); Eq. 6
has them the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.wrappers import put_wrappers
from ..samplers.lora_steps import with_lora
from .control import steered
from .frame_tokens import frame_tokens, join_tokens
from .ge_adapter import GEAdapter, Training, untrained
from .loop import History, Schedule, TrainingError, count, fit
from .low_rank import Layers, attention_projections
from .memory import is_free, needed_for, require
from .sampler import Denoiser, autograd_enabled, dtype_of, train_in_run, trainable
from .temporal_loss import MIN_FRAMES, temporal_loss_of_layers

ASKED_BY = "GEAdapterTrain"
_WATCH = "coherence.ge_adapter_training"


@dataclass(frozen=True)
class Settings:
    """``temporal_range_start``: of the timesteps T, where the LoRA and its loss set in; 0 is everywhere."""

    rank: int = 4
    layers: Layers = "down"
    shared_tokens: int = 8
    temporal_weight: float = 0.01
    diffusion_weight: float = 1.0
    temporal_range_start: float = 0.5
    steps: int = 1000
    learning_rate: float = 3e-5
    warmup_steps: int = 500
    gradient_accumulation: int = 8
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Steering:
    """A CONTROL_NET, its ``images`` (clips · frames, H, W, 3) and its strength."""

    control_net: Any
    images: Tensor
    strength: float = 1.0


@dataclass(frozen=True, eq=False)
class Clips:
    """``latent``: a LATENT, (clips · ``frames``, channels, height, width); ``captions``: a CONDITIONING for each clip;
    ``hidden``: CLIP-vision hidden states of all frames, (clips · ``frames``, N, width), or None. ``steering``: what
    steers all frames, or None."""

    latent: dict[str, Any]
    frames: int
    captions: Sequence[list]
    hidden: Tensor | None = None
    steering: Steering | None = None

    @property
    def number(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class Trained:
    """``diffusion``, ``temporal``: both parts of every loss, before their weights; the second only of those that have
    it. ``needed``: bytes estimated before the first step; ``checkpointed``: whether blocks were computed
    twice to fit."""

    adapter: GEAdapter
    history: History
    diffusion: list[float]
    temporal: list[float]
    needed: int
    checkpointed: bool
    dtype: torch.dtype


def train_adapter(
    model: ModelPatcher,
    clips: Clips,
    settings: Settings,
    adapter: GEAdapter | None = None,
    after_step: Callable[[History], None] = lambda _: None,
) -> Trained:
    """Train an adapter for ``model`` on ``clips``, from the start or from ``adapter``; the model is not changed.

    ``after_step`` is called after every step and may raise to stop.

    Raises:
        TrainingError: clips, captions, hidden states or ``adapter`` do not fit, out of memory, or the loss is NaN.
        ValueError: the model has no UNet, or not the layers of ``adapter``.
    """
    projections = attention_projections(model.model, settings.layers)
    _require_clips(clips, model.get_model_object("latent_format").latent_channels)
    dtype = dtype_of("auto")
    with autograd_enabled():
        start = _start(model, clips, settings, adapter)
        copied = trainable(model, dtype)
        learned = _Learned(start, copied.load_device)
        features = _Features([each.key for each in projections])
        copied = with_lora(copied, learned.lora, 1.0, 0.0, 1.0 - settings.temporal_range_start, ASKED_BY)
        # added after the LoRA's, it runs inside: its hooks see what the LoRA's have added
        put_wrappers(copied, _WATCH, {WrappersMP.APPLY_MODEL: features})

        def train(denoiser: Denoiser) -> tuple[_Loss, History, int, bool]:
            loss_of = _Loss(denoiser, learned, features, clips, settings)
            needed, checkpointed = _require_memory(loss_of, learned, clips.frames, denoiser)
            schedule = Schedule(
                settings.steps, settings.learning_rate, settings.warmup_steps, settings.gradient_accumulation
            )
            history = fit([{"params": learned.parameters()}], loss_of, schedule, after_step)
            return loss_of, history, needed, checkpointed

        told = (_told(clips), clips.latent, dtype, train, ASKED_BY, clips.steering is not None)
        loss, history, needed, checkpointed = train_in_run(copied, *told)
    options = {name: value for name, value in asdict(settings).items() if name not in ("rank", "layers", "steps")}
    training = Training(
        type(model.model).__name__,
        settings.layers,
        clips.frames,
        start.training.steps + settings.steps,
        {**options, "clips": clips.number},
    )
    return Trained(learned.adapter(training), history, loss.diffusion, loss.temporal, needed, checkpointed, dtype)


def _told(clips: Clips) -> list[list]:
    """Of every clip its caption, with what steers it."""
    if clips.steering is None:
        return [*clips.captions]
    net, strength = clips.steering.control_net, clips.steering.strength
    images = clips.steering.images.split(clips.frames)
    return [steered(caption, net, each, strength) for caption, each in zip(clips.captions, images, strict=True)]


class _Learned:
    """An adapter's numbers while they are learned: in fp32, on the model's device."""

    def __init__(self, start: GEAdapter, device: torch.device) -> None:
        def own(x: Tensor) -> Tensor:
            return x.detach().to(device, torch.float32, copy=True)

        self.lora = {name: own(x) for name, x in start.lora.items()}
        self.shared = own(start.shared_tokens)
        self.projection = start.projection and (own(start.projection[0]), own(start.projection[1]))
        for x in self.parameters():
            x.requires_grad_(True)

    def parameters(self) -> list[Tensor]:
        lora = [x for name, x in self.lora.items() if not name.endswith(".alpha")]
        tokens = [self.shared] if len(self.shared) else []
        return [*lora, *tokens, *(self.projection or ())]

    @property
    def has_tokens(self) -> bool:
        return len(self.shared) > 0 or self.projection is not None

    def tokens(self, hidden: Tensor | None) -> Tensor | None:
        """[shared; per-frame] for hidden states (frames, N, width), as :func:`.token_conditioning.with_tokens` has
        them; None for an adapter without."""
        if not self.has_tokens:
            return None
        if self.projection is None or hidden is None:
            return self.shared[None]
        return join_tokens([self.shared[None], frame_tokens(hidden.to(self.shared), *self.projection)])

    def adapter(self, training: Training) -> GEAdapter:
        def kept(x: Tensor) -> Tensor:
            return x.detach().cpu()

        projection = self.projection and (kept(self.projection[0]), kept(self.projection[1]))
        return GEAdapter({name: kept(x) for name, x in self.lora.items()}, kept(self.shared), projection, training)


@dataclass
class _Features:
    """An APPLY_MODEL wrapper that keeps what the layers with these weights give, when it is ``wanted``."""

    keys: list[str]
    wanted: bool = False
    taken: list[Tensor] = field(default_factory=list)

    def __call__(self, executor, *args, **kwargs):
        if not self.wanted:
            return executor(*args, **kwargs)
        with ExitStack() as stack:
            for key in self.keys:
                layer = comfy.utils.get_attr(executor.class_obj, key.removesuffix(".weight"))
                stack.callback(layer.register_forward_hook(self._take).remove)
            return executor(*args, **kwargs)

    def _take(self, _layer: Any, _inputs: tuple, output: Tensor) -> None:
        self.taken.append(output)


class _Loss:
    def __init__(
        self, denoiser: Denoiser, learned: _Learned, features: _Features, clips: Clips, settings: Settings
    ) -> None:
        self.diffusion: list[float] = []
        self.temporal: list[float] = []
        self._denoiser, self._learned, self._features, self._clips = denoiser, learned, features, clips
        self._settings, self._end = settings, 1.0 - settings.temporal_range_start
        self._generator = torch.Generator().manual_seed(settings.seed)
        # ``clone``: the graph's own images come as inference tensors
        self._hidden = None if clips.hidden is None else clips.hidden.detach().clone()

    def __call__(self, _number: int) -> Tensor:
        """The loss of one clip at one noise level."""
        clip = int(torch.randint(self._clips.number, (), generator=self._generator))
        share = float(torch.rand((), generator=self._generator))
        noise = torch.randn(self._shape(self._clips.frames), generator=self._generator)
        error, temporal = self._at(clip, share if self._learned.has_tokens else share * self._end, noise)
        self.diffusion.append(error.item())
        if temporal is not None:
            self.temporal.append(temporal.item())
        return self._sum(error, temporal)

    def of_first(self, frames: int) -> Tensor:
        """The loss of the first frames, with every part; it draws nothing from the generator."""
        return self._sum(*self._at(0, self._end / 2, torch.zeros(self._shape(frames))))

    def _shape(self, frames: int) -> tuple[int, ...]:
        return (frames, *self._denoiser.clean.shape[1:])

    def _at(self, clip: int, share: float, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """L_diff and, where it belongs to the loss, L_temporal."""
        places = range(len(noise))
        rows = range(clip * self._clips.frames, clip * self._clips.frames + len(noise))
        hidden = None if self._hidden is None else self._hidden[rows.start : rows.stop]
        self._denoiser.tell(clip, self._learned.tokens(hidden))
        self._features.wanted = share <= self._end and self._settings.temporal_weight != 0
        error = self._denoiser.squared_error(rows, noise, self._denoiser.sigma_at(share), places).mean()
        if not self._features.wanted:
            return error, None
        return error, self._temporal(len(noise))

    def _sum(self, error: Tensor, temporal: Tensor | None) -> Tensor:
        loss = self._settings.diffusion_weight * error
        return loss if temporal is None else loss + self._settings.temporal_weight * temporal

    def _temporal(self, frames: int) -> Tensor:
        taken, self._features.taken = self._features.taken, []
        if not taken or any(len(each) != frames for each in taken):
            got = sorted({len(each) for each in taken}) or "none"
            raise TrainingError(
                f"model: expected the adapted layers to see all {frames} frames of a clip at once, got {got}. Remove "
                "context windows, frames_per_batch and nodes that replace attention blocks from the model."
            )
        return temporal_loss_of_layers(taken, frames)


def _start(model: ModelPatcher, clips: Clips, settings: Settings, adapter: GEAdapter | None) -> GEAdapter:
    """``adapter`` where it is what the settings say, or an untrained one."""
    width = clips.captions[0][0][0].shape[-1]
    vision = None if clips.hidden is None else clips.hidden.shape[-1]
    if adapter is None:
        return untrained(
            model.model,
            settings.layers,
            settings.rank,
            settings.shared_tokens,
            width,
            vision,
            clips.frames,
            settings.seed,
        )
    asked = (settings.rank, settings.layers, settings.shared_tokens, width, vision)
    has = (adapter.rank, adapter.training.layers, len(adapter.shared_tokens), adapter.text_width, adapter.vision_width)
    names = ("rank", "layers", "shared_tokens", "width of the text", "width of clip_vision_output")
    wrong = [
        f"{name} {theirs}, not {ours}" for name, ours, theirs in zip(names, asked, has, strict=True) if ours != theirs
    ]
    if wrong:
        raise TrainingError(
            f"adapter: to continue from it, use its settings: {'; '.join(wrong)}. Or leave adapter empty."
        )
    return adapter


def _require_clips(clips: Clips, channels: int) -> None:
    samples = clips.latent["samples"]
    if samples.ndim != 4 or clips.frames < MIN_FRAMES or len(samples) % clips.frames:
        raise TrainingError(
            f"clips: expected (frames, channels, height, width) with whole clips of frames_per_clip = {clips.frames} "
            f"frames on the batch, {MIN_FRAMES} or more each, got {' × '.join(map(str, samples.shape))}. Join clips "
            "of equal length with BatchImagesNode, then encode them with VAEEncode."
        )
    if samples.shape[1] != channels:
        raise TrainingError(
            f"clips: expected {channels} channels for this model, got {samples.shape[1]}. Encode them with its own VAE."
        )
    number = len(samples) // clips.frames
    if clips.number != number:
        raise TrainingError(
            f"captions: expected {number} lines, one for each clip of {clips.frames} frames, got {clips.number}."
        )
    if clips.hidden is not None and (clips.hidden.ndim != 3 or len(clips.hidden) != len(samples)):
        raise TrainingError(
            f"clip_vision_output: expected hidden states of all {len(samples)} frames, got "
            f"{' × '.join(map(str, clips.hidden.shape))}. Give CLIPVisionEncode the same images as VAEEncode."
        )
    if clips.steering is not None and len(clips.steering.images) != len(samples):
        raise TrainingError(
            f"control_images: expected one for each of the {len(samples)} frames, got {len(clips.steering.images)}. "
            "Make them of the same images that you encode, such as with Canny."
        )


def _require_memory(loss_of: _Loss, learned: _Learned, frames: int, denoiser: Denoiser) -> tuple[int, bool]:
    """Bytes that a step will take beside the model, and whether its blocks are computed twice for that."""

    def needed() -> int:
        return needed_for(loss_of.of_first, frames, count(learned.parameters()), (MIN_FRAMES, 2 * MIN_FRAMES))

    whole = needed()
    if is_free(whole):
        return whole, False
    denoiser.enable_checkpointing()
    less = needed()
    cures = ["take smaller clips", "set frames_per_clip to fewer frames", "set layers to down"]
    require(less, f"Training on clips of {frames} frames", cures)
    return less, True
