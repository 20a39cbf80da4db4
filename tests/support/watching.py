"""A technique that only looks, and the demo model as a family to sample."""

from types import SimpleNamespace
from typing import get_args

import torch
from coherence.attention.sites import Kind
from coherence.attention.tap import tap
from coherence.techniques.technique import Stage, Technique

ALL_KINDS = get_args(Kind)


class Watch(Technique):
    """``calls``: every AttentionCall, in order."""

    stage = Stage.KEYS
    supports_chunks = True

    def __init__(self):
        self.calls = []

    def attend(self, call, proceed):
        self.calls.append(call)
        return proceed(call.q, call.k, call.v)


def watched(model, layers="*", kinds=ALL_KINDS, **where):
    """A clone of ``model`` that is looked at, and the Watch."""
    watch = Watch()
    return tap(model, watch, layers=layers, kinds=kinds, asked_by="test", **where)[0], watch


def difference(a, b):
    """Largest absolute difference, relative to the largest value of ``b``."""
    return ((a - b).abs().max() / b.abs().max()).item()


def _demo_conditioning():
    generator = torch.Generator().manual_seed(1)
    return tuple([[torch.randn(1, 32, 128, generator=generator), {}]] for _ in range(2))


# The demo model is an SD1.5 class UNet ten times as small as the smallest checkpoint that stock loaders take. At half
# the side it was trained at, a step costs a third, and its middle block still has 16 tokens.
DEMO = SimpleNamespace(latent_shape=(3, 4, 8, 8), conditioning=_demo_conditioning)


def demo_of(frames):
    """The demo model's clips of another length."""
    return SimpleNamespace(latent_shape=(frames, *DEMO.latent_shape[1:]), conditioning=DEMO.conditioning)
