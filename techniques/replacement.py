"""A target clip attends as its source does: IE-Adapt's editing (§4.2, Algorithm 1), and what it is compared with.

Source and target are branches of one model call, so what the target takes is already there: its rows of q, k or v are
exchanged for the source's before the layer attends.

    map         softmax(Q_s K_sᵀ / √c) V_t    (IE-Adapt; at cross-attention, Prompt-to-Prompt: arXiv 2208.01626)
    key_value   softmax(Q_t K_sᵀ / √c) V_s    (MasaCtrl, arXiv 2304.08465)
    value       softmax(Q_t K_tᵀ / √c) V_s

No map is ever computed on its own, and nothing outlives the layer.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .branches import Branch, rows_of
from .technique import AttentionCall, Proceed, Stage, Technique

Taken = Literal["map", "key_value", "value"]
_FROM_SOURCE: dict[Taken, tuple[bool, bool, bool]] = {
    "map": (True, True, False),
    "key_value": (False, True, True),
    "value": (False, False, True),
}
"""Which of q, k and v the target takes from the source."""


class UnpairedBranchError(RuntimeError):
    """A target's branch is in a model call without the source's branch."""


@dataclass(frozen=True)
class Replacement(Technique):
    """The technique: every branch whose uuid is in ``source_of`` takes from the branch with the uuid found there."""

    taken: Taken
    source_of: MutableMapping[Any, Any]
    stage = Stage.MAPS
    supports_chunks = True

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        branches, donors = len(call.branches), self.donors(call.branches)
        if donors == list(range(branches)):
            return proceed(call.q, call.k, call.v)
        query, key, value = _FROM_SOURCE[self.taken]
        q, k, v = (
            rows_of(x, branches, donors) if taken else x
            for x, taken in ((call.q, query), (call.k, key), (call.v, value))
        )
        if key and call.mask is not None:  # which of the source's keys are seen, the source's mask says
            return proceed(q, k, v, branches=tuple(call.branches[donor] for donor in donors))
        return proceed(q, k, v)

    def donors(self, branches: Sequence[Branch]) -> list[int]:
        """For every branch the position of the one it takes from, its own if from none.

        Raises:
            UnpairedBranchError: that one is not among ``branches``.
        """
        place = {tag: position for position, (_, tag) in enumerate(branches)}
        sources = [self.source_of.get(tag) for _, tag in branches]
        try:
            return [n if source is None else place[source] for n, source in enumerate(sources)]
        except KeyError:
            raise UnpairedBranchError(
                "Source and target must be in the same model call, but ComfyUI put them into different ones. Give "
                "source, target and negative the same number of tokens, areas, step ranges, hooks (LoRA schedules, "
                "attention couple) and ControlNets, and no GLIGEN boxes. Two Apply ControlNet nodes must have equal "
                "settings; use one node for both prompts if it is another pack's. If all of that matches, memory is "
                "too low: use fewer frames or a smaller size."
            ) from None
