"""What the tests of edits by words share: prompts whose words are told, and the papers' maps, multiplied out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from attended import output_by, scores_of
from coherence.techniques.prompt_to_prompt import Alignment, align, align_words
from editing_runs import Run, StoredMaps


@dataclass(frozen=True)
class Told:
    """A prompt as ``align`` sees it: a beginning of one token, one or more tokens a word, and padding."""

    words: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    length: int

    @property
    def chunks(self):
        return ((0, self.length),)


def told(text: str, length: int) -> Told:
    """``text``, whose longer words are said to have a token for each four letters."""
    words, tokens, position = text.split(), [], 1
    for word in words:
        size = -(-len(word) // 4)
        tokens.append(tuple(range(position, position + size)))
        position += size
    assert position < length
    return Told(tuple(words), tuple(tokens), length)


def aligned(
    run: Run, source: str, target: str, weights: dict[str, float] | None = None, sharpness: float = 1.0
) -> tuple[Run, Alignment]:
    """``run`` with the source's text in the target's words where they are the same; and the alignment. ``sharpness``:
    a factor of the text, as random text is looked at evenly."""
    (text, kept), (other, rest) = run.source[0], run.target[0]
    text, other = text * sharpness, other * sharpness
    here, there = told(source, text.shape[1]), told(target, other.shape[1])
    words = align_words(here.words, there.words)
    other = other.clone()
    for i, j in words.pairs:
        if here.words[i] == there.words[j]:
            other[:, list(there.tokens[j])] = text[:, list(here.tokens[i])]
    other[:, 0] = text[:, 0]
    alignment = align(here, there, words, [(weights or {}).get(word) for word in there.words])
    run = replace(run, source=[[text, kept]], target=[[other, rest]])
    return run, replace(alignment, source=(text,), target=(other,))


class StoredWords(StoredMaps):
    """Prompt-to-Prompt and FateZero with the source's maps in memory, in float64; negatives as in Prompt-to-Prompt."""

    def __init__(self, how: str, alignment: Alignment):
        self.maps, self.how, self.alignment = {}, how, alignment
        self.kinds = {"cross_map": ("cross",)}.get(how, ("spatial", "joint", "cross"))
        self._keeping, self._keeps = False, 0
        self.words = {}

    @property
    def keeping(self):
        return self._keeping

    @keeping.setter
    def keeping(self, keeping):
        self._keeping = keeping
        self._keeps += keeping

    @property
    def is_positive(self):
        return self._keeps % 2 == 1

    def attend(self, call, proceed):
        own, name = torch.softmax(scores_of(call), dim=-1), call.site.name
        if self.keeping:
            self.maps[name] = own
            if call.site.kind == "cross" and self.is_positive:
                looked = own[..., list(self.alignment.edited)].sum(-1).mean(1)
                self.words[name] = looked.unflatten(-1, (-1, *call.grid))
            return proceed(call.q, call.k, call.v)
        source = self.maps[name]
        if call.site.kind == "cross":
            probabilities = self._of_words(source, own) if self.is_positive else own
        elif self.how == "blend":
            mask = self._mask(call).double().reshape(len(own), 1, -1, 1)
            probabilities = mask * own + (1 - mask) * source
        else:
            probabilities = source
        return output_by(call, probabilities)

    def _of_words(self, source, own):
        """Token by token, as the paper's Algorithm 1 has it."""
        made = torch.zeros_like(own)
        for j, (is_mapped, weight) in enumerate(zip(self.alignment.mapped, self.alignment.weights, strict=True)):
            column = own[..., j]
            if is_mapped:
                column = sum(source[..., i] * m for i, m in enumerate(self.alignment.mapper[:, j].double()) if m)
            made[..., j] = column * weight
        return made

    def _mask(self, call):
        sizes = [each.shape[-2:] for each in self.words.values()]
        largest = max(sizes, key=lambda size: size[0] * size[1])

        def resized(x, size):
            return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)

        mean = torch.stack([resized(each, largest) for each in self.words.values()]).mean(0)
        mean = resized(mean, call.grid)
        return mean / mean.amax(dim=(-2, -1), keepdim=True) > 0.3
