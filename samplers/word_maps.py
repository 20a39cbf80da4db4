"""Word maps: where in a clip each word of its prompt applies, and the mask that this gives for an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..attention.sites import Kind, sites_of
from ..attention.word_maps import Tokens, WordRecorder
from .latents import require_clip_alone, samples_for
from .measure import Start, look_on
from .words import Text, WordsError, WordTokens, word_tokens

MOST_TEXTS = 32


@dataclass(frozen=True)
class WordMaps:
    """``maps``: (frames, words, height, width), each word's largest value 1; ``phrases``: of each word what was asked
    for; ``layers``: whose attention was measured."""

    maps: Tensor
    phrases: tuple[str, ...]
    layers: tuple[str, ...]
    kind: Kind

    def masks(self, threshold: float) -> Tensor:
        """(frames, height, width): 1 where any word's map is above ``threshold``."""
        return (self.maps > threshold).any(1).float()


def measure_words(
    model: Any,
    start: Start,
    tokens: WordTokens,
    phrases: Sequence[str],
    steps: Sequence[int],
    layers: str,
    asked_by: str,
) -> WordMaps:
    """The maps of ``phrases``, words of the one prompt of ``start``, as the mean over ``layers`` and ``steps``.

    WordsError for a phrase that the prompt does not have; NoSuchSiteError, UnknownModelError as in :mod:`..attention`.
    """
    if tokens.length < 2:
        raise WordsError(
            "conditioning has one token for a whole picture (SVD), so it has no words. Use a model that reads a prompt."
        )
    words = [_tokens_of(tokens, phrase) for phrase in phrases]
    require_clip_alone(start.latent)
    height, width = samples_for(model, start.latent).shape[-2:]
    sites = sites_of(model)
    kind: Kind = "cross" if any(site.kind == "cross" and site.reads_text for site in sites) else "joint"
    recorder = WordRecorder(words, tokens.length, (height, width))
    look_on(model, start, recorder, steps, layers=layers, kinds=[kind], asked_by=asked_by)
    maps = recorder.maps()
    peaks = maps.amax((0, 2, 3), keepdim=True)
    named = tuple(site.name for site in sites if site.name in recorder.seen)
    return WordMaps(maps / peaks.clamp(min=1e-30), tuple(phrases), named, kind)


def _tokens_of(tokens: WordTokens, phrase: str) -> Tokens:
    found = [place for place in tokens.find(phrase) if place]
    if not found:
        there = ", ".join(dict.fromkeys(tokens.words)) or "none"
        raise WordsError(
            f"words: {phrase[:60]!r} is not in the prompt. Its words are: {there}. Write some of these, separated by "
            "commas."
        )
    return sorted({token for place in found for token in place})


def parse_phrases(text: str) -> list[str]:
    """Words from ``"circle, red star"``. ValueError for none."""
    phrases = [piece.strip() for piece in text.replace("\n", ",").split(",") if piece.strip()]
    if not phrases:
        raise ValueError("words is empty, expected at least one word of the prompt. Write some, separated by commas.")
    return list(dict.fromkeys(phrases))


def tokens_of_prompt(clip: Any, conditioning: list, texts: Sequence[str]) -> WordTokens:
    """Where the words of ``conditioning`` lie, which ``clip`` made of one of ``texts``.

    WordsError where it made it of none of them, or the conditioning combines several.
    """
    if len(conditioning) != 1:
        raise WordsError(
            f"conditioning combines {len(conditioning)} prompts, expected one. Connect one CLIP Text Encode."
        )
    ((given, _),) = conditioning
    for text in dict.fromkeys(texts[:MOST_TEXTS]):
        ((made, _), *more) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        if not more and made.shape == given.shape and _alike(made, given):
            return word_tokens(clip, Text.of(text), conditioning[0])
    told = "prompt is empty" if not texts else "prompt is not the text that clip made it of"
    raise WordsError(
        f"The text of conditioning is not known: {told}. Write that text into prompt, and connect the clip that "
        "encoded it; nodes that change the encoded text (GEAdapterTokens, weights of other packs) come after this one."
    )


def _alike(made: Tensor, given: Tensor) -> bool:
    made, given = made.float().cpu(), given.float().cpu()
    return bool((made - given).norm() <= 1e-2 * given.norm())


def texts_before(graph: Mapping[str, Any] | None, node_id: str | None, name: str) -> list[str]:
    """All texts that are typed into the nodes before the input ``name`` of a node, nearest first. ``graph``: ComfyUI's
    hidden PROMPT."""
    graph, found, seen = graph or {}, [], set()
    waiting = [graph.get(str(node_id), {}).get("inputs", {}).get(name)]
    while waiting:
        link = waiting.pop(0)
        if isinstance(link, list) and len(link) == 2 and str(link[0]) not in seen:
            seen.add(str(link[0]))
            inputs = graph.get(str(link[0]), {}).get("inputs", {}).values()
            found += [each for each in inputs if isinstance(each, str)]
            waiting += inputs
    return found
