"""Two prompts encoded for an edit, and the alignment of their words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..techniques.prompt_to_prompt import Alignment, Words, align, align_words, edited_words
from .words import Text, WordsError, WordTokens, word_tokens


def align_prompts(clip: Any, source_text: str, target_text: str) -> tuple[list, list, Alignment, str]:
    """CONDITIONING of source and target, encoded by ``clip`` without weights; PROMPT_ALIGNMENT; a report.

    WordsError where the words cannot be matched to the tokens, or a weight is none.
    """
    source, target = Text.of(source_text), Text.of(target_text)
    _require_weights(source, target)
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(each.escaped)) for each in (source, target)]
    here, there = (
        word_tokens(clip, text, conditioning[0]) for text, conditioning in zip((source, target), encoded, strict=True)
    )
    words = align_words(source.words, target.words)
    weighted = [one for one, other in words.pairs if target.weights[other] is not None]
    marked = sorted({*weighted, *(n for n, weight in enumerate(source.weights) if weight is not None)})
    alignment = align(here, there, words, target.weights, marked)
    texts = [tuple(tensor for tensor, *_ in conditioning) for conditioning in encoded]
    alignment = replace(alignment, source=texts[0], target=texts[1])
    return encoded[0], encoded[1], alignment, _report(here, there, words, target, edited_words(words, marked))


def _require_weights(source: Text, target: Text) -> None:
    for name, text in (("source_text", source), ("target_text", target)):
        for word, weight in zip(text.words, text.weights, strict=True):
            if weight is not None and not math.isfinite(weight):
                raise WordsError(f"{name}: {word!r} has the weight {weight}, expected a number, as in ({word}:1.5).")
            if text is source and weight not in (None, 1):
                raise WordsError(
                    f"source_text: {word!r} has the weight {weight:g}, but the source is drawn as it is. Weights "
                    f"belong in target_text. Write ({word}:1) to mark a word for blend, or \\( and \\) for parentheses."
                )


def _report(source: WordTokens, target: WordTokens, words: Words, text: Text, edited: Sequence[int]) -> str:
    lines = [f"{len(each.words)} words in {each.length} tokens: {name}" for name, each in _sides(source, target)]
    partner = {there: here for here, there in words.pairs}
    for n, word in enumerate(target.words):
        weight = text.weights[n]
        if n not in partner:
            line = f"+ {word}: inserted, keeps its own map"
        elif (partner[n], n) in words.replaced:
            line = f"{source.words[partner[n]]} → {word}: replaced, takes that word's map"
        else:
            line = f"{word}: takes its map in the source"
        lines.append(line if weight is None else f"{line}, times {weight:g}")
    lines += [f"- {source.words[n]}: removed" for n in words.removed]
    for name, each in _sides(source, target):
        without = [word for word, tokens in zip(each.words, each.tokens, strict=True) if not tokens]
        if without:
            lines.append(f"Not in the text encoder's vocabulary, so without a map ({name}): {', '.join(without)}")
    shown = ", ".join(source.words[n] for n in edited) or "none"
    lines.append(f"Where blend edits: {shown}")
    return "\n".join(lines)


def _sides(source: WordTokens, target: WordTokens) -> tuple[tuple[str, WordTokens], tuple[str, WordTokens]]:
    return ("source", source), ("target", target)
