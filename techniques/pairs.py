"""Which branch of an edit's target takes from which branch of its source, and how what is taken gets there.

Branches of one model call find each other's rows there. Prompts that differ in length are in calls of their own, which
go through the layers in step: there the source gives every layer's tensors to its partner, the target.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .branches import Branch

if TYPE_CHECKING:
    from .technique import AttentionCall, FeaturesCall, Proceed

Call = TypeVar("Call", "AttentionCall", "FeaturesCall")

UNPAIRED = (
    "Source and target cannot be paired at every layer. Give source, target and negative the same areas, step ranges "
    "and hooks (LoRA schedules, attention couple), and combine the same number of conditionings in each."
)


class UnpairedBranchError(RuntimeError):
    """A target's branch has no branch of the source to take from."""


class NoEditError(ValueError):
    """A technique takes from an edit's source, and there is no edit."""


class Partner(Protocol):
    """What hands the source's layers to the target, where these are calls that go through the model in step."""

    is_running: bool

    def give(self, value: Any) -> None: ...

    def take(self) -> Any: ...


@dataclass(frozen=True)
class Given(Generic[Call]):
    """A layer of the source, and how it attends there."""

    call: Call
    proceed: Proceed | None


@dataclass(frozen=True)
class Pairs:
    """Every branch whose uuid is in ``source_of`` takes from the branch with the uuid found there: one of the same call
    or, while ``partner`` runs, of the source's. None there: from none."""

    source_of: MutableMapping[Any, Any]
    partner: Partner | None = None

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
            raise UnpairedBranchError(UNPAIRED) from None

    def given(self, call: Call, proceed: Proceed | None = None) -> Given[Call] | None:
        """In calls that go in step: of the target's the rows that its branches take from, and how the source attends
        there. None where it takes from none, and of the source's, which gives its own. Asked once a layer by each
        technique, in either."""
        assert self.partner is not None
        if not any(tag in self.source_of for _, tag in call.branches):
            self.partner.give(Given(call, proceed))
            return None
        source = self.partner.take()
        if all(self.source_of[tag] is None for _, tag in call.branches):
            return None
        place = {tag: position for position, (_, tag) in enumerate(source.call.branches)}
        donors = [place.get(self.source_of[tag]) for _, tag in call.branches]
        if type(source.call) is not type(call) or source.call.site.name != call.site.name or None in donors:
            raise UnpairedBranchError(UNPAIRED)
        return replace(source, call=source.call.only([donor for donor in donors if donor is not None]))

    def from_partner(self, call: Call) -> Call | None:
        """What is :meth:`given`, without how the source attends."""
        given = self.given(call)
        return None if given is None else given.call

    @property
    def are_apart(self) -> bool:
        return self.partner is not None and self.partner.is_running


def pairs_in(call: AttentionCall | FeaturesCall, what: str) -> Pairs:
    """The pairs of the edit that ``call`` is in. NoEditError where there is none; ``what`` takes from its source."""
    if call.pairs is None:
        raise NoEditError(
            f"{what} takes from the source clip of an edit, but this model is sampled without one. Connect the model "
            "to EntropyGuidedEdit or FlowEdit, or remove the node."
        )
    return call.pairs
