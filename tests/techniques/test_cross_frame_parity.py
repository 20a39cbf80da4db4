"""CrossFrameAttention's ``first`` against the reference implementation of Text2Video-Zero, in diffusers.

Which takes seconds to import: only where these tests run, and not in every process that collects them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from coherence.attention.sites import Site
from coherence.techniques.cross_frame import CrossFrame
from coherence.techniques.technique import AttentionCall
from comfy.ldm.modules.attention import optimized_attention

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

HEADS, CHANNELS, TOKENS = 8, 64, 48


@pytest.fixture(scope="module")
def authors() -> Any:
    from diffusers.pipelines.deprecated.text_to_video_synthesis import pipeline_text_to_video_zero

    return pipeline_text_to_video_zero


def layer(branches: int, processor: type) -> Attention:
    """A self-attention layer whose maps are sharp: a mistake in the keys must show in the output."""
    from diffusers.models.attention_processor import Attention

    made = Attention(CHANNELS, heads=HEADS, dim_head=CHANNELS // HEADS, processor=processor(branches)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 4 / CHANNELS**0.5
    return made


def through_ours(made: Attention, x: torch.Tensor, branches: int, technique: CrossFrame) -> torch.Tensor:
    """The same layer as the tap runs it, with ComfyUI's attention kernel."""
    site = Site("middle.0.attn1", 0, "spatial", HEADS, None)
    frames = tuple(range(len(x) // branches))
    q, k, v = made.to_q(x), made.to_k(x), made.to_v(x)
    call = AttentionCall(q, k, v, HEADS, site, tuple((i, None) for i in range(branches)), frames, sigma=1.0)
    attended = technique.attend(call, lambda q, k, v: optimized_attention(q, k, v, heads=HEADS))
    return made.to_out[0](attended)


@pytest.mark.parametrize("processor", ["CrossFrameAttnProcessor", "CrossFrameAttnProcessor2_0"])
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 8])
@torch.no_grad()
def test_attention_to_the_first_frame_is_diffusers(authors: Any, processor: str, branches: int, frames: int) -> None:
    made = layer(branches, getattr(authors, processor))
    x = torch.randn(branches * frames, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1))
    theirs = made(x)
    scale = theirs.abs().max()
    assert (through_ours(made, x, branches, CrossFrame("first")) - theirs).abs().max() <= 1e-5 * scale
    if frames > 2:
        assert (through_ours(made, x, branches, CrossFrame("previous")) - theirs).abs().max() > 0.1 * scale
