"""A bilateral filter over the frames of attention's output: ``feature_temporal`` of bilateral DDIM inversion.

GE-Adapter's paper filters the latents; the authors' published code filters the output of self-attention in the last
level of the UNet's decoder over time, and that is done here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..frames.bilateral import bilateral_temporal
from ..techniques.technique import AttentionCall, PartOfFrameError, Proceed, Stage, Technique
from .sites import NoSuchSiteError, Site


@dataclass(eq=False)
class TemporalBilateral(Technique):
    """The technique: filters over the frames while ``active``; for sites whose frames lie in the rows.

    It stands first on the tap, around the other techniques: it filters what they make of the layer.
    """

    kernel_size: int
    sigma_spatial: float
    sigma_intensity: float
    active: bool = True
    stage = Stage.OUTPUT

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        out = proceed(call.q, call.k, call.v)
        if not self.active:
            return out
        if call.rows_per_branch != call.frames:
            raise PartOfFrameError(
                f"mode feature_temporal: attention layer {call.site.name} is called with {call.rows_per_branch} rows "
                f"for {call.frames} frames. Another node cuts frames into tiles, new ones in every call (HyperTile), "
                "so no place can be followed through the clip. Remove that node, or choose latent_spatial."
            )
        clips = out.unflatten(0, (len(call.branches), -1)).transpose(0, 1)
        smooth = bilateral_temporal(clips, self.kernel_size, self.sigma_spatial, self.sigma_intensity)
        return smooth.transpose(0, 1).reshape(out.shape)


def last_decoder_level(sites: Iterable[Site]) -> list[Site]:
    """The spatial self-attention of a UNet's last decoder level that has any: ``output.9.attn1`` to ``output.11.attn1``
    in SD1.5. A level is told by its width. NoSuchSiteError for models without a decoder, which is all transformers.
    """
    decoder = [site for site in sites if site.kind == "spatial" and site.name.startswith("output.")]
    if not decoder:
        raise NoSuchSiteError(
            "mode: feature_temporal filters the spatial self-attention in the last decoder level of a UNet, expected "
            "SD1.5, SD2, SDXL, SVD or AnimateDiff; this model has no such layers. Use latent_spatial."
        )
    width = _width(decoder[-1])
    return [site for site in decoder if _width(site) == width]


def _width(site: Site) -> int:
    attention: Any = site.module
    return attention.to_q.in_features
