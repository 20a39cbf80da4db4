"""A model of the user's own, from the files that ComfyUI's stock loaders take, and what is drawn with it.

The demo models go by the same code: their names, ``demo`` and ``demo-video``, stand for a file.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from harness import Demo, enter, pack
from torch import Tensor
from ways import Subject

LOADERS = pack("hosting.report").LOADERS
DEMOS = {"demo": "image", "demo-video": "video"}
CLIP_TYPES = {
    "WAN": "wan",
    "FLUX2": "flux2",
    "FLUX": "flux",
    "SD3": "sd3",
    "LTXV": "ltxv",
    "HUNYUANVIDEO": "hunyuan_video",
    "COGVIDEOX": "cogvideox",
    "QWENIMAGE": "qwen_image",
    "ZIMAGE": "lumina2",
    "LUMINA2": "lumina2",
    "CHROMA": "chroma",
    "KREA2": "krea2",
    "COSMOS": "cosmos",
    "GENMO": "mochi",
    "HIDREAM": "hidream",
}
"""How the class of a model begins → the type of its text encoder, as CLIPLoader calls it."""


class UnusableError(SystemExit):
    """A file or an option cannot be used: what was expected, what it is, how to mend it."""


def size_of(text: str) -> tuple[int, int]:
    """Height and width of ``832x480``. UnusableError for anything else."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) >= 16 for part in parts):
        raise UnusableError(f"--size: {text[:30]!r} is not a size, expected width x height in pixels, such as 832x480.")
    width, height = map(int, parts)
    return height, width


def is_out_of_memory(error: BaseException) -> bool:
    told = str(error).lower()
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(each in told for each in words)
    )


def reason_of(error: BaseException) -> str:
    """Why something could not be measured."""
    if is_out_of_memory(error):
        import comfy.model_management as management

        device = management.get_torch_device()
        free, total = (of(device) / 2**30 for of in (management.get_free_memory, management.get_total_memory))
        return f"not enough memory ({free:.1f} of {total:.1f} GiB free). Lower --frames or --size"
    told = " ".join(str(error).split())
    return told[:400] if isinstance(error, ValueError | SystemExit) else f"{type(error).__name__}: {told}"[:400]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


@dataclass
class UsersModel:
    """The files, loaded as their stock loaders do, and what is drawn of them. UnusableError where that fails."""

    asked: argparse.Namespace
    _cached: dict[str, list] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = self.asked.checkpoint
        self.clip: Any = None
        self.vae: Any = None
        if name in DEMOS:
            demo = Demo(DEMOS[name])
            self.model, self.clip, self.vae = demo.model, demo.text, demo.vae
        else:
            self.model = self._loaded(name)
        if self.asked.vae:
            self.vae = _vae(self.asked.vae)
        if self.asked.clip:
            self.clip = self._text_encoder(self.asked.clip)

    def _loaded(self, name: str) -> Any:
        import comfy.sd

        path, found = file_of("--checkpoint", name), None
        other = LOADERS[LOADERS.index(self.asked.loader) - 1]
        try:
            if self.asked.loader == "checkpoint":
                found, self.clip, self.vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
            else:
                found = comfy.sd.load_diffusion_model(str(path))
        except Exception as error:
            if is_out_of_memory(error):
                raise UnusableError(f"--checkpoint: {reason_of(error)}.") from error
            raise UnusableError(
                f"--checkpoint: the {self.asked.loader} loader cannot read {path.name}: {_first_line(error)}. Expected "
                f"the file of a model; try --loader {other}, or name another file."
            ) from error
        if found is None:
            raise UnusableError(f"--checkpoint: {path.name} holds no diffusion model. Name the file of a model.")
        return found

    def _text_encoder(self, names: list[str]) -> Any:
        import comfy.sd

        asked = self.asked.clip_type or self._clip_type()
        kinds = {kind.name.lower(): kind for kind in comfy.sd.CLIPType}
        if asked not in kinds:
            raise UnusableError(
                f"--clip-type: {asked!r} is not one of {', '.join(sorted(kinds))}. Choose one of these."
            )
        paths = [str(file_of("--clip", name)) for name in names]
        try:
            return comfy.sd.load_clip(paths, clip_type=kinds[asked])
        except Exception as error:
            raise UnusableError(
                f"--clip: {', '.join(Path(path).name for path in paths)} cannot be read as text encoder of type "
                f"{asked}: {_first_line(error)}. Name the model's text encoders, or another --clip-type."
            ) from error

    def _clip_type(self) -> str:
        name = type(self.model.model.model_config).__name__.upper().replace("_", "")
        return next((kind for start, kind in CLIP_TYPES.items() if name.startswith(start)), "stable_diffusion")

    # What it is ------------------------------------------------------------------------------------------------------

    @property
    def network(self) -> Any:
        return self.model.get_model_object("diffusion_model")

    @cached_property
    def family(self) -> Any:
        return pack("attention.sites").family_of(self.network)

    @property
    def draws_pictures(self) -> bool:
        """A batch of its latents is a clip."""
        return self.family.draws_pictures

    @cached_property
    def is_flow(self) -> bool:
        from comfy.model_sampling import CONST

        return isinstance(self.model.get_model_object("model_sampling"), CONST)

    @property
    def frames(self) -> int:
        return self.asked.frames or (8 if self.draws_pictures else 9)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        default = "128x128" if self.asked.checkpoint in DEMOS else "512x512"
        return size_of(self.asked.size or default)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of a clip's latent."""
        form = self.model.get_model_object("latent_format")
        rows, columns = (pixels // form.spacial_downscale_ratio for pixels in self.size)
        if self.draws_pictures:
            one = [1] * (form.latent_dimensions - 2)
            return (self.frames, form.latent_channels, *one, rows, columns)
        if form.latent_dimensions == 2:  # frames in the batch
            return (self.frames, form.latent_channels, rows, columns)
        return (1, form.latent_channels, (self.frames - 1) // form.temporal_downscale_ratio + 1, rows, columns)

    @property
    def parameters(self) -> int:
        return sum(each.numel() for each in self.network.parameters())

    # What is said to it ----------------------------------------------------------------------------------------------

    @property
    def prompts(self) -> tuple[str, str]:
        """What is drawn, and what it is edited into."""
        demo = ("a large red circle on a blue background", "a large green circle on a blue background")
        usual = ("a red car on a road, sunny day", "a blue car on a road, sunny day")
        first, second = demo if self.asked.checkpoint in DEMOS else usual
        return self.asked.prompt or first, self.asked.target or second

    def encoded(self, text: str) -> list:
        if self.clip is None:
            raise UnusableError(
                f"The file {Path(self.asked.checkpoint).name} holds no text encoder, which every figure needs. Name "
                "it with --clip FILE."
            )
        if text not in self._cached:
            self._cached[text] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        return self._cached[text]

    def subject(self, steps: int) -> Subject:
        import comfy.samplers

        sampling = self.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple" if self.is_flow else "normal", steps)
        prompts = map(self.encoded, (*self.prompts, ""))
        return Subject(self.model, *prompts, sigmas, self.cfg, self.shape, self.draws_pictures)

    @cached_property
    def cfg(self) -> float:
        if self.asked.cfg is not None:
            return self.asked.cfg
        if self.model.model.model_config.unet_config.get("guidance_embed"):
            return 1.0
        return 5.0 if self.is_flow or self.asked.checkpoint in DEMOS else 7.0

    # What it draws ---------------------------------------------------------------------------------------------------

    def decoded(self, latents: Tensor) -> Tensor:
        """(F, H, W, 3) in [0, 1]."""
        return self._require_vae().decode(latents).flatten(0, -4).float().cpu().clamp(0, 1)[..., :3]

    def video(self) -> dict[str, Tensor] | None:
        """The latent of --video."""
        if not self.asked.video:
            return None
        frames = read_video(file_of("--video", self.asked.video), self.frames, *self.size)
        vae = self._require_vae()
        if not self.draws_pictures or len(self.shape) == 4:
            return {"samples": vae.encode(frames)}
        return {"samples": torch.cat([vae.encode(each) for each in frames.split(1)])}

    def _require_vae(self) -> Any:
        if self.vae is None:
            raise UnusableError(
                f"The file {Path(self.asked.checkpoint).name} holds no VAE, which pictures need. Name it with --vae "
                "FILE."
            )
        return self.vae


def file_of(option: str, name: str) -> Path:
    """UnusableError where it is none."""
    path = Path(name)
    if not path.is_file():
        raise UnusableError(f"{option}: {name} is not a file. Name one that exists.")
    return path


def _vae(name: str) -> Any:
    import comfy.sd
    import comfy.utils

    path = file_of("--vae", name)
    try:
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))
        vae.throw_exception_if_invalid()
    except Exception as error:
        raise UnusableError(
            f"--vae: {path.name} cannot be read as a VAE: {_first_line(error)}. Name the model's VAE."
        ) from error
    return vae


def load_clip_vision(name: str) -> Any:
    import comfy.clip_vision

    path, found = file_of("--clip-vision", name), None
    try:
        found = comfy.clip_vision.load(str(path))
    except Exception as error:
        raise UnusableError(f"--clip-vision: {path.name} cannot be read: {_first_line(error)}.") from error
    if found is None:
        raise UnusableError(f"--clip-vision: {path.name} is not an image encoder, expected CLIP's, such as ViT-L.")
    return found


def read_video(path: Path, frames: int, height: int, width: int) -> Tensor:
    """Its first frames, the middle of each, (F, height, width, 3) in [0, 1]."""
    import av
    import comfy.utils

    pictures: list[Tensor] = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                pictures.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).float() / 255)
                if len(pictures) == frames:
                    break
    except (OSError, IndexError, av.FFmpegError) as error:
        raise UnusableError(f"--video: {path.name} cannot be read as a video: {error}. Name another.") from error
    if len(pictures) < frames:
        raise UnusableError(f"--video: {path.name} has {len(pictures)} frames, expected {frames}. Lower --frames.")
    scaled = comfy.utils.common_upscale(torch.stack(pictures).movedim(-1, 1), width, height, "bilinear", "center")
    return scaled.movedim(1, -1).clamp(0, 1)


def begin(arguments: argparse.Namespace) -> None:
    """Make ComfyUI importable, on the device that is asked for; what it makes of folders is in ``--out``."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UnusableError("--device: cuda is asked for, but PyTorch finds no GPU here. Use --device cpu.")
    options = enter(arguments, "" if torch.cuda.is_available() else "pytorch")
    options.cpu = arguments.device == "cpu" or not torch.cuda.is_available()
    options.base_directory = str(arguments.out.resolve() / "comfyui")
