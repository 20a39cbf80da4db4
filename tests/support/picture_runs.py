"""What the tests of picture transformers share: momentum where frames are rows, and what it makes of keys."""

from __future__ import annotations

from coherence.attention.tap import tap
from coherence.techniques.momentum import TemporalMomentum
from coherence.techniques.technique import Stage
from watching import Watch

SAME = 2e-4
"""Of the largest value: one frame's arithmetic differs with the batch it is in."""


class WatchAfter(Watch):
    """Sees what other techniques made of keys and values."""

    stage = Stage.LOOK


def patched(model, technique):
    return tap(model, technique, layers="*", kinds=["spatial", "joint"], by_row=True, asked_by="test")[0]


def momentum(model, mu=0.8, frames_per_batch=0):
    return patched(model, TemporalMomentum(mu, "", frames_per_batch))
