"""What looks on while a model runs, and changes nothing; and its measuring of every attention layer's map (IE-Adapt
§3, Eq. 2 and 3)."""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from ..techniques.entropy import Energy, four_dimensional, measure
from ..techniques.technique import AttentionCall, Proceed, Stage, Technique
from .registry import Figures, Precision, RegistryError
from .sites import Site

SAMPLED_ROWS = 256


@dataclass(eq=False, kw_only=True)
class Recorder(Technique):
    """A technique that looks at the layers it is put on, while ``recording``, and lets them run unchanged.

    It stands last on the tap: it sees the map that the other techniques make. ``on_layer`` is called at every layer,
    recorded or not. ``step``: of the run, for what is recorded.
    """

    on_layer: Callable[[Site], None] = lambda site: None
    recording: bool = False
    step: int = 0
    stage = Stage.LOOK
    supports_chunks = True

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        out = proceed(call.q, call.k, call.v)
        if self.recording:
            self.record(call, out)
        self.on_layer(call.site)
        return out

    @abstractmethod
    def record(self, call: AttentionCall, out: Tensor) -> None:
        """Look at a layer, which returned ``out``."""


@dataclass
class _Sums:
    """Of one layer: Σ w·figure and Σ w over calls, w the number of rows of the map, so that splits do not matter."""

    weight: int = 0
    tokens: int = 0
    keys: int = 0
    heads: list[float] = field(default_factory=list)
    by_step: dict[int, tuple[float, int]] = field(default_factory=dict)
    entropy: float = 0.0
    half_width: float = 0.0
    energy: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(eq=False)
class EntropyRecorder(Recorder):
    """Measures every layer that it is put on.

    The energy is of what the layer returns, so a pack that replaces the attention inside is measured, too. Of several
    attentions in one layer (a picture's and a text's keys) the mean over rows is taken; the half-width of a mean is at
    most the mean half-width, which is given.
    """

    precision: Precision = "exact"

    _sums: dict[str, _Sums] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def record(self, call: AttentionCall, out: Tensor) -> None:
        q, k, v = call.per_head()
        measured = measure(
            q,
            k,
            v,
            out=call.per_head_output(out),
            scale=call.scale,
            mask=four_dimensional(call.mask),
            rows=SAMPLED_ROWS if self.precision == "sampled" else None,
        )
        weight, energy = q.shape[0] * q.shape[2], measured.energy
        figures = (measured.entropy.mean, energy.attention, energy.uniform, energy.identity)
        if not all(map(math.isfinite, figures)):
            raise RegistryError(
                f"Attention layer {call.site.name} gives no finite figures (entropy {figures[0]}, energy {figures[1]}) "
                f"in {q.dtype}, at the noise level {call.sigma:.5g}: its numbers overflow. Run the model in bf16 or "
                "fp32."
            )
        with self._lock:
            sums = self._sums.setdefault(call.site.name, _Sums())
            sums.weight += weight
            sums.tokens, sums.keys = max(sums.tokens, q.shape[2]), max(sums.keys, k.shape[2])
            sums.entropy += weight * measured.entropy.mean
            heads = [weight * each for each in measured.entropy.heads]
            sums.heads = [a + b for a, b in zip(sums.heads, heads, strict=True)] if sums.heads else heads
            total, count = sums.by_step.get(self.step, (0.0, 0))
            sums.by_step[self.step] = total + weight * measured.entropy.mean, count + weight
            sums.half_width += weight * measured.entropy.half_width
            a, u, i = sums.energy
            sums.energy = (a + weight * energy.attention, u + weight * energy.uniform, i + weight * energy.identity)

    def figures(self, sites: Iterable[Site], all_of_them: bool = True) -> dict[str, Figures]:
        """What was measured of ``sites``, by name, without those that lacked the input that they need. RegistryError
        names others that had no map while recording, or says that none had; ``all_of_them``: each must have one."""
        missed = [site.name for site in sites if site.name not in self._sums and not site.needs]
        if missed and (all_of_them or not self._sums):
            raise without_map(missed)
        return {name: _mean(sums) for name, sums in self._sums.items()}


def without_map(names: Iterable[str]) -> RegistryError:
    return RegistryError(
        f"At the measured steps these attention layers had no map: {', '.join(names)}. Another node replaces it, as "
        "Perturb Attention does, or skips the layer. Measure other steps, or the model from before that node."
    )


def _mean(sums: _Sums) -> Figures:
    energy = Energy(*(total / sums.weight for total in sums.energy))
    return Figures(
        sums.tokens,
        sums.keys,
        sums.entropy / sums.weight,
        sums.half_width / sums.weight,
        energy,
        tuple(each / sums.weight for each in sums.heads),
        tuple(total / count for _, (total, count) in sorted(sums.by_step.items())),
    )
