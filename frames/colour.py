"""Colours of a clip held to those of reference frames: tensors in, tensors out.

Every frame gets one map of colours (:mod:`.colour_maps`), the same for all of its pixels: nothing moves, and no edge
changes its place. Pictures are measured and moved in CIELAB, latents in their own channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .colour_maps import STATISTICS

WHITE = 100.0
"""Lightness of white in CIELAB: in these units colours lie between −1 and 1, about as latents do."""
LUMINANCE = 0.2126, 0.7152, 0.0722
"""Of red, green and blue light, as in CIELAB's lightness."""
FAINT = 1e-9
"""Difference from grey that counts as none."""
Frames = Callable[[], Iterable[Tensor]]
"""What gives the frames of a clip, (channels, height, width), as often as it is called."""


@dataclass(frozen=True)
class Match:
    """How colours are matched."""

    method: str = "mean_std"
    """One of ``colour_maps.METHODS``."""
    momentum: float = 0.9
    """In [0, 1]: see :func:`.running.running_average`, of the clip's statistics."""
    strength: float = 1.0
    """In [0, 1], how far colours move: 0 not at all, 1 to the reference's."""


def matched_pictures(
    images: Tensor,
    reference: Tensor,
    match: Match,
    mask: Tensor | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """``images`` (F, H, W, 3 or more) with colours like those of ``reference``, all of whose frames count as one.

    RGB in [0, 1]; further channels stay. Frames go to ``device`` one by one. ``mask`` (frames, h, w) or (h, w) in
    [0, 1] says how much each pixel counts in what is measured, of both: a frame's own, the last one for all that
    follow. ``progress`` is called once for every frame of the reference and twice for every one of the clip.

    Raises:
        ValueError: for a mask of another number of frames than 1 or the clip's, or with a frame of zeros.
    """
    _require_fit(mask, "images", len(images))
    if match.strength == 0:
        return images.clone()
    result = images.clone()
    moved = _matched(
        lambda: map(_to_lab, _rgb(images, device)), map(_to_lab, _rgb(reference, device)), match, mask, progress
    )
    for out, picture, lab in zip(result, _rgb(images, device), moved, strict=True):
        out[..., :3] = torch.lerp(picture, _to_rgb(lab), match.strength).movedim(0, -1).clamp(0, 1)
    return result


def matched_latents(
    samples: Tensor,
    reference: Tensor,
    match: Match,
    mask: Tensor | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """``samples`` with channels like those of ``reference``; as above, but for the colours.

    Of (frames, channels, height, width) the batch is the clip, also of (frames, channels, 1, height, width); of
    (batch, channels, frames, height, width) each of the batch is one.

    Raises:
        ValueError: also for another number of channels or of dimensions.
    """
    clips, references = _clips("latent", samples), _clips("reference", reference)
    if clips.shape[2] != references.shape[2]:
        raise ValueError(
            f"reference has {references.shape[2]} channels and latent {clips.shape[2]}, expected the same. Encode both "
            "with the VAE of the same model."
        )
    _require_fit(mask, "latent", clips.shape[1])
    result = samples.clone()
    for clip, out in zip(clips, _clips("latent", result), strict=True):
        precise = partial(map, _precise, clip)
        moved = _matched(precise, map(_precise, references.flatten(0, 1)), match, mask, progress)
        for x, y, place in zip(clip, moved, out, strict=True):
            place.copy_(torch.lerp(_precise(x), y, match.strength))
    return result


def _matched(
    clip: Frames, reference: Iterable[Tensor], match: Match, mask: Tensor | None, progress: Callable[[], object]
) -> Iterator[Tensor]:
    """Every frame of ``clip`` with its colours moved all the way."""
    statistics = STATISTICS[match.method]

    def measured(frames: Iterable[Tensor]) -> Tensor:
        rows = []
        for number, x in enumerate(frames):
            rows.append(statistics.measure(x.flatten(1), _weights(mask, number, x).flatten()))
            progress()
        return torch.stack(rows)

    target = statistics.pooled(measured(reference))
    sources = statistics.averaged(measured(clip()), match.momentum)
    for x, source in zip(clip(), sources, strict=True):
        yield statistics.moved(x.flatten(1), source, target).view_as(x)
        progress()


def _weights(mask: Tensor | None, number: int, like: Tensor) -> Tensor:
    """How much each pixel of a frame counts: (height, width)."""
    if mask is None:
        return torch.ones_like(like[0])
    mask = mask[None] if mask.ndim == 2 else mask
    chosen = mask[min(number, len(mask) - 1)].to(like)
    size = tuple(like.shape[-2:])
    return chosen if chosen.shape == size else F.interpolate(chosen[None, None], size, mode="area")[0, 0]


def _require_fit(mask: Tensor | None, name: str, frames: int) -> None:
    if mask is None:
        return
    masks = mask[None] if mask.ndim == 2 else mask
    if len(masks) not in (1, frames):
        raise ValueError(f"mask has {len(masks)} frames and {name} {frames}, expected 1 or as many as {name}.")
    if empty := [number for number, each in enumerate(masks) if not (each > 0).any()]:
        raise ValueError(
            f"mask selects nothing in frame {empty[0]}, expected a part of every frame that may be measured. Mask more "
            "of it, or leave mask unconnected."
        )


def _clips(name: str, samples: Tensor) -> Tensor:
    """A view (clips, frames, channels, height, width)."""
    if samples.ndim == 4:
        return samples[None]
    if samples.ndim == 5:
        return samples.movedim(2, 0) if samples.shape[2] == 1 else samples.movedim(2, 1)
    raise ValueError(
        f"{name} has shape {tuple(samples.shape)}, expected (frames, channels, height, width) or (batch, channels, "
        "frames, height, width)."
    )


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rgb(images: Tensor, device: torch.device | str | None) -> Iterator[Tensor]:
    """Every picture as (3, H, W), in float32 at least."""
    return (_precise(image[..., :3].movedim(-1, 0).to(device)) for image in images)


def _to_lab(picture: Tensor) -> Tensor:
    from kornia.color import rgb_to_lab

    return rgb_to_lab(picture.clamp(0, 1)) / WHITE


def _to_rgb(lab: Tensor) -> Tensor:
    """A colour outside of RGB keeps its lightness and turns as pale as it must: cut off channel by channel, it would
    change both."""
    from kornia.color import lab_to_rgb, linear_rgb_to_rgb, rgb_to_linear_rgb

    rgb = lab_to_rgb(lab * WHITE, clip=False)
    if not ((rgb < 0) | (rgb > 1)).any():
        return rgb
    light = rgb_to_linear_rgb(rgb)
    grey = (light * light.new_tensor(LUMINANCE)[:, None, None]).sum(0).clamp(0, 1)
    off = light - grey
    room = torch.where(off > 0, 1 - grey, grey) / off.abs().clamp(min=FAINT)
    pale = linear_rgb_to_rgb((grey + off * room.amin(0).clamp(max=1)).clamp(0, 1))
    return torch.where(((rgb < 0) | (rgb > 1)).any(0), pale, rgb)
