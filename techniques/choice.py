"""Where a technique acts: at whole layers, at some of their heads, or at those that are ranked anew at each step.

IE-Adapt (§3) ranks layers once, by the entropy of their maps at pure noise. :class:`Live` ranks them, or single heads,
at every step by the entropies of the step before, the only ones that are known when the step begins; the first step
has the choice that was made beforehand. Every conditioning ranks for itself: what its maps look like is its own.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .branches import Copy, OfClip
from .entropy import attention_entropy, four_dimensional
from .technique import AttentionCall

Heads = frozenset[int]
NONE: Heads = frozenset()
MEASURED_ROWS = 128
"""Of a map, where it has more."""


class Choice(ABC):
    """The heads at which a technique acts in a call. ``per_head``: they may be some of a layer's."""

    per_head: bool = False

    @abstractmethod
    def heads(self, call: AttentionCall, position: int) -> Heads:
        """Of the branch at ``position``: all of the layer's, some, or none."""

    def begin(self) -> None:  # noqa: B027
        """A sampling run begins."""

    def see(self, call: AttentionCall) -> None:  # noqa: B027
        """A layer is about to attend, and nothing is changed yet."""

    def acts_at(self, names: frozenset[str], sigma: float) -> frozenset[str]:
        """Of the sites ``names`` those with heads that it chooses in a model call at ``sigma``, for any branch."""
        return names


@dataclass(frozen=True)
class AllHeads(Choice):
    """Wherever the tap puts the technique."""

    def heads(self, call: AttentionCall, position: int) -> Heads:
        return _all(call)


ALL_HEADS = AllHeads()


@dataclass(frozen=True)
class SomeHeads(Choice):
    """The heads of each site by name."""

    by_site: Mapping[str, Heads]
    per_head = True

    def heads(self, call: AttentionCall, position: int) -> Heads:
        return self.by_site.get(call.site.name, NONE)


@dataclass(eq=False)
class Live(Choice):
    """Ranks the sites that it sees, or with ``per_head`` their heads: ``number`` of them, those of ``highest`` entropy
    or of lowest; the first step has ``first``, sites by name with their heads.

    Model calls at one noise level are one step, however many there are.
    """

    number: int
    highest: bool
    first: Mapping[str, Heads]
    per_head: bool = False
    _sigma: float | None = field(default=None, init=False)
    _sums: dict[Any, dict[str, tuple[Tensor, int, int]]] = field(default_factory=dict, init=False)
    """Of this step, by conditioning and site: the sum of entropies by head, of how many calls' rows, the site's place
    in the model."""
    _chosen: dict[Any, Mapping[str, Heads]] = field(default_factory=dict, init=False)
    """For this step, by conditioning."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def begin(self) -> None:
        with self._lock:
            self._sigma, self._sums, self._chosen = None, {}, {}

    def heads(self, call: AttentionCall, position: int) -> Heads:
        self._go_to(call.sigma)
        return self._chosen.get(_conditioning(call, position), self.first).get(call.site.name, NONE)

    def see(self, call: AttentionCall) -> None:
        self._go_to(call.sigma)
        if call.runs_ahead:  # these frames come once more
            return
        for position, (_, tag) in enumerate(call.branches):
            if isinstance(tag, Copy):
                continue
            q, k, _ = (here := call.only([position])).per_head()
            measured = attention_entropy(
                q, k, scale=call.scale, mask=four_dimensional(here.mask), rows=min(MEASURED_ROWS, max(2, q.shape[2]))
            )
            rows, entropies = q.shape[0], torch.tensor(measured.heads, dtype=torch.float64)
            with self._lock:
                seen = self._sums.setdefault(_conditioning(call, position), {})
                total, count, place = seen.get(call.site.name, (torch.zeros_like(entropies), 0, call.site.order))
                seen[call.site.name] = total + rows * entropies, count + rows, place

    def acts_at(self, names: frozenset[str], sigma: float) -> frozenset[str]:
        self._go_to(sigma)
        choices = (self.first, *self._chosen.values())  # the first: a conditioning may be new
        return names & frozenset(name for each in choices for name, heads in each.items() if heads)

    def _go_to(self, sigma: float) -> None:
        with self._lock:
            if sigma == self._sigma:
                return
            self._sigma = sigma
            self._chosen |= {key: self._ranked(seen) for key, seen in self._sums.items()}
            self._sums = {}

    def _ranked(self, seen: Mapping[str, tuple[Tensor, int, int]]) -> dict[str, Heads]:
        sign = -1 if self.highest else 1
        found: dict[str, Heads] = {}
        means = {name: (total / count, place) for name, (total, count, place) in seen.items()}
        if not self.per_head:
            order = sorted(means, key=lambda name: (sign * float(means[name][0].mean()), means[name][1]))
            return {name: frozenset(range(len(means[name][0]))) for name in order[: self.number]}
        heads = [
            (sign * float(value), place, h, n) for n, (each, place) in means.items() for h, value in enumerate(each)
        ]
        for _, _, head, name in sorted(heads)[: self.number]:
            found[name] = found.get(name, NONE) | {head}
        return found


def with_heads(call: AttentionCall, out: Tensor, changed: Tensor, heads: Heads) -> Tensor:
    """``out`` with ``heads`` of ``changed``, both as ``proceed`` returns them."""
    chosen = torch.zeros(call.heads, dtype=torch.bool, device=out.device)
    chosen[sorted(heads)] = True
    if call.heads_joined:
        return torch.where(chosen.repeat_interleave(out.shape[-1] // call.heads), changed, out)
    return torch.where(chosen[:, None, None], changed, out)


def _all(call: AttentionCall) -> Heads:
    return frozenset(range(call.heads))


def _conditioning(call: AttentionCall, position: int) -> tuple[Any, Any]:
    """Which of a run's conditionings: positive or negative, and of which clip."""
    index, tag = call.branches[position]
    return (tag.index, None) if isinstance(tag, Copy) else (index, tag.clip if isinstance(tag, OfClip) else None)
