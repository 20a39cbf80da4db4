"""What a technique sees of a layer: q, k, v and the output per head, whichever layout the host uses."""

import pytest
import torch
from coherence.attention.sites import Site
from coherence.techniques.technique import AttentionCall
from comfy.ldm.modules.attention import attention_basic

HEADS, CHANNELS = 4, 8


def a_call(q, k, v, **more):
    return AttentionCall(q, k, v, HEADS, Site("blocks.0", 0, "spatial", HEADS, None), ((0, None),), (0,), 1.0, **more)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("split", [False, True])
def test_attention_per_head_is_the_hosts_attention(split, key_heads):
    q, k, v = draw(2, 5, HEADS * CHANNELS), draw(2, 7, key_heads * CHANNELS), draw(2, 7, key_heads * CHANNELS)
    if split:
        q, k, v = (x.unflatten(-1, (-1, CHANNELS)).transpose(1, 2) for x in (q, k, v))
    mask = draw(2, 1, 5, 7)
    call = a_call(q, k, v, mask=mask, scale=0.3)
    host = attention_basic(q, k, v, HEADS, mask, skip_reshape=split, enable_gqa=key_heads < HEADS, scale=0.3)

    q, k, v = call.per_head()
    assert q.shape == (2, HEADS, 5, CHANNELS)
    assert k.shape == v.shape == (2, HEADS, 7, CHANNELS)
    attended = ((call.scale * q @ k.mT + call.mask).softmax(-1)) @ v
    torch.testing.assert_close(call.per_head_output(host), attended)
    torch.testing.assert_close(call.per_head_output(attended), attended)
