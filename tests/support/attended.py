"""Attention as it is written down, in float64, and a technique that keeps what the layers gave."""

import torch
from coherence.techniques.technique import Stage, Technique


def attended(q, k, v, heads):
    """Of (…, tokens, channels), without a mask."""
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
    return (torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v).transpose(-3, -2).flatten(-2)


def scores_of(call):
    """What a layer takes the softmax of, (rows, heads, queries, keys)."""
    q, k, _ = (x.double() for x in call.per_head())
    scores = q @ k.mT * (call.scale or q.shape[-1] ** -0.5)
    if call.mask is None:
        return scores
    mask = call.mask.reshape(len(call.mask), *[1] * (4 - call.mask.ndim), *call.mask.shape[1:])
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def output_by(call, probabilities):
    """The layer's output with another map."""
    out = probabilities @ call.per_head()[2].double()
    return (out.transpose(1, 2).flatten(2) if call.heads_joined else out).to(call.v)


class Outputs(Technique):
    """``seen``: every AttentionCall with what came of it, in order."""

    stage = Stage.OUTPUT

    def __init__(self):
        self.seen = []

    def attend(self, call, proceed):
        self.seen.append((call, proceed(call.q, call.k, call.v)))
        return self.seen[-1][1]
