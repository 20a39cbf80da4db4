"""Which techniques an edit puts on a model, and which branches take from which there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from comfy.model_patcher import ModelPatcher

from ..attention.keys import TECHNIQUES
from ..attention.registry import SELECTABLE
from ..attention.run import Tapped
from ..attention.sites import Kind, UnknownModelError, select_sites, sites_of
from ..attention.steps import is_between
from ..attention.tap import tap
from ..techniques.blend import Blend, WordMasks
from ..techniques.branches import Branch
from ..techniques.choice import ALL_HEADS
from ..techniques.pairs import Pairs, Partner, UnpairedBranchError
from ..techniques.prompt_to_prompt import AlignedMaps
from ..techniques.replacement import Replacement, Taken
from ..techniques.technique import Stage, Technique

if TYPE_CHECKING:
    from .editing import Edit, Prompts

Replace = Literal["map", "key_value", "value", "cross_map", "map_and_cross", "blend"]
REPLACES = get_args(Replace)
_OF_WORDS = ("cross_map", "map_and_cross", "blend")
_TAKEN: dict[Replace, Taken] = {"key_value": "key_value", "value": "value"}


class AlignmentError(ValueError):
    """The words of an edit's prompts are not aligned, or not in a way that it can use."""


def require_words(model: ModelPatcher, edit: Edit, prompts: Prompts) -> None:
    """AlignmentError, UnpairedBranchError or UnknownModelError where ``edit`` needs words that are not told."""
    replace, alignment = edit.replace, edit.alignment
    if replace not in _OF_WORDS:
        if alignment is not None:
            raise AlignmentError(
                f"alignment: replace {replace} does not look at words, so an alignment changes nothing. Choose one of "
                f"{', '.join(_OF_WORDS)}, or disconnect alignment."
            )
        return
    if not any(site.kind == "cross" and site.reads_text for site in sites_of(model)):
        raise UnknownModelError(
            f"replace {replace} needs layers in which the clip attends to the prompt alone. In this model text and "
            "picture share one attention and its weights: words have no map of their own, and exchanging theirs alone "
            "would leave weights that do not add up. Use map, key_value or value, whose prompts may differ in length, "
            "or a model with cross-attention (SD1.5, SDXL, Wan, LTXV, Cosmos)."
        )
    if alignment is None:
        if replace == "blend":
            raise AlignmentError(
                "replace blend needs to know which words are edited, and alignment is not connected. Connect "
                "AlignPrompts: its source, target and alignment."
            )
        _require_as_long(replace, prompts)
        return
    for name, given, made in (
        ("source", prompts.source, alignment.source),
        ("target", prompts.target, alignment.target),
    ):
        if not all(any(_equal(text, each) for each in made) for text, *_ in given):
            raise AlignmentError(
                f"alignment was made of other prompts than {name}. Connect AlignPrompts' own {name}, without nodes "
                "that change its tokens in between, such as ConditioningConcat or GEAdapterTokens."
            )
    if replace == "blend" and not alignment.edited:
        raise AlignmentError(
            "replace blend: source_text and target_text of AlignPrompts have the same words, so it is not known where "
            "the edit is. Change a word, or mark one in source_text, as in (word:1)."
        )


def _require_as_long(replace: Replace, prompts: Prompts) -> None:
    sources, targets = ([text.shape[1] for text, *_ in each] for each in (prompts.source, prompts.target))
    sources = sources * len(targets) if len(sources) == 1 else sources
    for source, target in zip(sources, targets, strict=False):
        if source != target:
            raise UnpairedBranchError(
                f"replace {replace} goes by the prompts' tokens, and source and target have {source} and {target}. It "
                "needs prompts with the same number of tokens, or AlignPrompts' source, target and alignment."
            )


def _equal(some: torch.Tensor, other: torch.Tensor) -> bool:
    return some is other or (some.shape == other.shape and torch.equal(some.to(other), other))


class Replacing:
    """``edit``'s techniques. ``partner``: hands layers over where source and target are calls of their own."""

    def __init__(self, edit: Edit, partner: Partner) -> None:
        self._edit = edit
        self.pairs = Pairs({}, partner)
        """Of all branches, for techniques that were put on the model before the edit."""
        replace, alignment = edit.replace, edit.alignment
        self._own: Replacement | None = None
        self._words: AlignedMaps | None = None
        self._masks: WordMasks | None = None
        if replace in _OF_WORDS:
            self._words = AlignedMaps("map", {}, partner, alignment)
        if replace == "blend" and edit.layers and alignment is not None:
            self._masks = WordMasks(alignment.edited, len(alignment.mapper))
            self._own = Blend("map", self.pairs.source_of, partner, self._masks, choice=edit.choice)
        elif replace != "cross_map" and edit.layers:
            self._own = Replacement(_TAKEN.get(replace, "map"), self.pairs.source_of, partner, choice=edit.choice)
        self._others_take = False

    @property
    def active(self) -> bool:
        """Whether any technique takes from the source: of the edit, or put on the model before it."""
        return bool(self._taking)

    @property
    def _taking(self) -> list[Pairs]:
        """By which pairs techniques take."""
        of_all = [self.pairs] if self._own is not None or self._others_take else []
        return of_all if self._words is None else [*of_all, self._words.pairs]

    def on(self, model: ModelPatcher, asked_by: str) -> ModelPatcher:
        """A clone of ``model`` with the techniques.

        Raises:
            ValueError: TokenFlow would meet a layer in parts.
            UnknownModelError, NoSuchSiteError: as in :mod:`..attention`.
        """
        edit, model = self._edit, model.clone()
        there = model.model_options["transformer_options"].get(TECHNIQUES, ())
        own = [] if self._own is None else select_sites(sites_of(model), edit.layers, SELECTABLE)
        exchanging = [(asked_by, self._own, frozenset(site.name for site in own))]
        exchanging += [(e.asked_by, e.technique, e.sites) for e in there if e.technique.takes_from_source]
        for taker in there:
            if taker.technique.takes_from_source and taker.technique.stage is Stage.MERGE:
                _require_undivided(taker, exchanging)
        self._others_take = any(each.technique.takes_from_source for each in there)
        tapped: list[tuple[Technique | None, str, Sequence[Kind]]] = [
            (self._own, edit.layers, SELECTABLE),
            (self._words, "*", ("cross",)),
            (self._masks, "*", ("cross",)),
        ]
        for technique, layers, kinds in tapped:
            if technique is not None:
                model, _ = tap(
                    model,
                    technique,
                    layers=layers,
                    kinds=kinds,
                    asked_by=asked_by,
                    start_percent=edit.start_percent,
                    end_percent=edit.end_percent,
                )
        return model

    def pair(self, source: str, target: str, uuids: Iterable[tuple[Any, Any]]) -> None:
        """Branches ``uuids`` of ``target`` take from those of ``source``.

        A negative's words are not the source's: at cross-attention it takes from a negative alone, and as in
        Prompt-to-Prompt from none where words are aligned.
        """
        uuids = list(uuids)
        self.pairs.source_of.update(uuids)
        if self._words is not None:
            alike = source.endswith("negative") == target.endswith("negative")
            free = not alike or (self._edit.alignment is not None and target.endswith("negative"))
            self._words.source_of.update((tag, None if free else donor) for tag, donor in uuids)

    def require_donors(self, branches: Sequence[Branch]) -> None:
        """UnpairedBranchError where a branch is without the one that it takes from."""
        for pairs in self._taking:
            pairs.donors(branches)

    def looks(self, sigma: float, model_sampling: Any) -> bool:
        """Whether the source must be seen before a step at ``sigma``."""
        edit = self._edit
        return self._masks is not None and is_between(sigma, edit.start_percent, edit.end_percent, model_sampling)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """For the source's model call that is only looked at."""
        assert self._masks is not None
        with self._masks.measures():
            yield


def _require_undivided(taker: Tapped, exchanging: Iterable[tuple[str, Technique | None, frozenset[str]]]) -> None:
    """ValueError where one of the techniques ``exchanging`` maps, by node and sites, would let ``taker``, which takes
    from the source behind it, meet a layer in parts, or twice."""
    for node, technique, sites in exchanging:
        if not taker.sites & sites:
            continue
        if isinstance(technique, Blend):
            why = "with replace blend computes each twice, for the two sides of its mask. Choose map_and_cross instead"
        elif getattr(technique, "choice", ALL_HEADS).per_head:
            why = "divides them by heads: its registry was measured with per_head. Measure it without"
        else:
            continue
        raise ValueError(
            f"{taker.asked_by} takes whole layers from the source, and {node} {why}, give the two other layers, or "
            f"remove {taker.asked_by}."
        )
