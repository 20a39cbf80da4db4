"""Plug-and-Play: an edit keeps the layout of its source (arXiv 2211.12572, §3.3, Algorithm 1).

At every step until τ the target takes from the source, where both are denoised side by side,

    the map of self-attention,  out = softmax(Q_s K_sᵀ / √c) V_t,  at decoder layers 4 to 11;
    the features f⁴_s,          h_t = skip(x_t) + f⁴_s,            at the residual block of decoder layer 4.

In the paper the source is the clip's inversion; here it is the source of the edit, whichever it starts from. As in the
authors' code the features are what the residual block adds to its input, and both of the target's branches take them.
The paper ends the map after 25 of 50 steps and the features after 40; here one end is for both.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .branches import rows_of
from .choice import ALL_HEADS, Choice
from .pairs import UNPAIRED, UnpairedBranchError, pairs_in
from .replacement import Replacement
from .technique import AttentionCall, FeaturesCall, Proceed, Stage, Technique


@dataclass(frozen=True)
class PlugAndPlay(Technique):
    """The technique, in edits alone. ``choice``: the heads whose map is taken; features have none."""

    choice: Choice = ALL_HEADS
    stage = Stage.MAPS
    supports_chunks = True
    by_frame = True
    takes_from_source = True

    def begin(self) -> None:
        self.choice.begin()

    def attend(self, call: AttentionCall, proceed: Proceed) -> Tensor:
        pairs = pairs_in(call, "PlugAndPlay")
        return Replacement("map", pairs.source_of, pairs.partner, choice=self.choice).attend(call, proceed)

    def transform(self, call: FeaturesCall) -> Tensor:
        pairs = pairs_in(call, "PlugAndPlay")
        if pairs.are_apart:
            source = pairs.from_partner(call)
            if source is None:
                return call.features
            if source.features.shape != call.features.shape:
                raise UnpairedBranchError(UNPAIRED)
            return source.features
        donors = pairs.donors(call.branches)
        if donors == list(range(len(donors))):
            return call.features
        return rows_of(call.features, len(donors), donors)
