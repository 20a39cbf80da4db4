"""Where the words of a prompt lie among the tokens of its conditioning, for any text encoder of ComfyUI.

ComfyUI numbers the weighted parts of a prompt, not its words, and chat models have a template around them. So a word is
found by what is written in the tokens: the bytes that the vocabulary has for them are compared with those of the text.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any, NamedTuple

from comfy.sd1_clip import escape_important, token_weights, unescape_important

_WORD = re.compile(
    r"(?<!\S)embedding:\S+"  # a textual inversion
    r"|[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"  # written without spaces
    r"|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+(?:['’-][^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+)*"
    r"|[^\w\s]"
)
_JOINED = ("l", "g", "h")
"""ComfyUI's names of CLIP's text encoders. Several share the positions of their tokens."""


class WordsError(ValueError):
    """The words of a prompt cannot be matched to its tokens."""


@dataclass(frozen=True)
class Text:
    """A prompt as it is encoded: ``plain``, without weights; of each of its ``words`` the weight, None where the text
    gives none."""

    plain: str
    words: tuple[str, ...]
    weights: tuple[float | None, ...]

    @classmethod
    def of(cls, prompt: str) -> Text:
        """``prompt`` with weights such as ``(word:1.5)``, as ComfyUI reads them."""
        plain, starts = "", [0]
        weights: list[float | None] = [None]
        for part, weight in _weighted(prompt):
            starts.append(len(plain))
            weights.append(weight)
            plain += part
        found = list(_WORD.finditer(plain))
        weight_of = [weights[bisect_right(starts, match.start()) - 1] for match in found]
        return cls(plain, tuple(match.group() for match in found), tuple(weight_of))

    @property
    def escaped(self) -> str:
        """``plain`` as ComfyUI's tokenizers take it: its parentheses are no weights."""
        return self.plain.replace("(", r"\(").replace(")", r"\)")


def _weighted(prompt: str) -> list[tuple[str, float | None]]:
    """The parts of ``prompt`` and their weights; None outside all parentheses."""
    return [
        (unescape_important(part), None if weight is _NO_WEIGHT else float(weight))
        for part, weight in token_weights(escape_important(prompt), _NO_WEIGHT)
    ]


class _NoWeight(float):
    """A weight of 1 that can be told from a written one."""


_NO_WEIGHT = _NoWeight(1.0)


class Place(NamedTuple):
    """One stretch of a conditioning's tokens, that one text encoder made of one chunk of the prompt: from ``start`` to
    before ``end``."""

    start: int
    end: int


@dataclass(frozen=True)
class WordTokens:
    """The words of one prompt in its conditioning.

    ``tokens``: of each of ``words`` the positions of its tokens, of all text encoders, in order. A word that shares its
    only token with another has that one; empty if it has none at all. ``length``: how many tokens layers attend
    to; ``chunks``: their parts, each with a beginning and an end of its own.
    """

    words: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    length: int
    chunks: tuple[Place, ...]

    def find(self, phrase: str) -> list[tuple[int, ...]]:
        """The tokens of every place where ``phrase``, one or several words, is written; case does not matter."""
        wanted, here = [[each.casefold() for each in words] for words in (_WORD.findall(phrase), self.words)]
        size = len(wanted)
        found = [n for n in range(len(here) - size + 1) if size and here[n : n + size] == wanted]
        return [tuple(sorted({token for each in self.tokens[n : n + size] for token in each})) for n in found]


def word_tokens(clip: Any, text: Text, entry: Sequence) -> WordTokens:
    """Where the words of ``text`` lie among the tokens that layers attend to, for ``entry`` (tensor and options), the
    one of the conditioning that ``clip`` (ComfyUI's CLIP) made of ``text.escaped``.

    WordsError where that cannot be told.
    """
    made: Mapping[str, list] = clip.tokenize(text.escaped, return_word_ids=True)
    empty: Mapping[str, list] = clip.tokenize("", return_word_ids=True)
    length, encoder = entry[0].shape[1], _read_anew(entry)
    tokens: list[list[int]] = [[] for _ in text.words]
    chunks: list[Place] = []
    loaded = {name: sum(map(len, each)) for name, each in made.items() if _is_loaded(clip, name)}
    if encoder:
        length = loaded[encoder]
        loaded = {encoder: length}
    for name, offset in _layout(loaded, length).items():
        if text.words and not any(token[2] for chunk in made[name] for token in chunk):
            raise _unknown(clip, "it does not tell which tokens are the prompt's")
        position = offset
        for chunk in made[name]:
            start, position = position, position + len(chunk)
            if position > 0:
                chunks.append(Place(max(start, 0), min(position, length)))
        for word, positions in enumerate(_tokens_of_words(_tokenizer(clip, name), text, made[name], empty[name])):
            if any(not 0 <= position + offset < length for position in positions):
                raise _unknown(clip, f"the word {text.words[word]!r} is not among its {length} tokens")
            tokens[word] += [position + offset for position in positions]
    if (further := _padded_to(entry) - length) > 0:
        length += further
        chunks[-1] = Place(chunks[-1].start, length)
    return WordTokens(text.words, tuple(map(tuple, tokens)), length, tuple(chunks))


def _read_anew(entry: Sequence) -> str:
    """The encoder whose tokens the model makes of the conditioning's: Anima's adapter, which is given T5's."""
    return "t5xxl" if entry[1].get("t5xxl_ids") is not None else ""


def _padded_to(entry: Sequence) -> int:
    """How many tokens the model makes of fewer: Anima adds zeros, LTX-2 registers."""
    options = entry[1]
    return 512 if _read_anew(entry) else 1024 if options.get("unprocessed_ltxav_embeds") else 0


def _layout(sizes: Mapping[str, int], length: int) -> dict[str, int]:
    """Of the encoders whose tokens are in the conditioning, the place of their first; negative where the template
    before the prompt has been cut off. ``sizes``: how many tokens each was given."""
    joined = [name for name in sizes if name in _JOINED][:1]
    others = [name for name in sizes if name not in _JOINED][:1]
    if joined and others and length == sizes[joined[0]] + sizes[others[0]]:  # SD3: CLIP's tokens, then T5's
        return {joined[0]: 0, others[0]: sizes[joined[0]]}
    if others and length <= sizes[others[0]]:
        return {others[0]: length - sizes[others[0]]}
    if joined and not others and length == sizes[joined[0]]:
        return {joined[0]: 0}
    told = ", ".join(f"{name} {size}" for name, size in sizes.items())
    raise WordsError(
        f"The conditioning has {length} tokens, and the text encoders were given others ({told}), so its words cannot "
        "be told. Connect the conditioning that this clip made of this text, before any node that changes it."
    )


def _is_loaded(clip: Any, name: str) -> bool:
    """SD3 may be without some of its text encoders."""
    return not any(getattr(clip.cond_stage_model, each, clip) is None for each in (name, f"clip_{name}"))


def _tokenizer(clip: Any, name: str) -> Any:
    """The tokenizer whose tokens ComfyUI calls ``name``."""
    whole = clip.tokenizer
    names = [name, f"clip_{name}", *([whole.clip] if getattr(whole, "clip_name", None) == name else [])]
    for each in (getattr(whole, each, None) for each in names):
        if hasattr(each, "inv_vocab"):
            return each
    raise _unknown(clip, f"its tokenizer {name!r} has no vocabulary")


def _unknown(clip: Any, reason: str) -> WordsError:
    return WordsError(
        f"The words cannot be matched to the tokens of this text encoder ({type(clip.tokenizer).__name__}): {reason}. "
        "Use a CLIP, T5, Gemma, Qwen or Llama text encoder."
    )


def _tokens_of_words(tokenizer: Any, text: Text, made: Sequence, empty: Sequence) -> list[list[int]]:
    """Of each word of ``text`` the positions of its tokens among those ``made`` of it; tokens that an ``empty`` text
    has, too, are of the template."""
    stream = [(n, each[0]) for n, each in enumerate(token for chunk in made for token in chunk) if each[2]]
    around = [each[0] for chunk in empty for each in chunk if each[2]]
    before = _shared([each for _, each in stream], around)
    after = _shared([each for _, each in stream[before:]][::-1], around[before:][::-1])
    stream = stream[before : len(stream) - after]

    by_bytes = not any(piece.startswith("▁") for piece in tokenizer.inv_vocab.values())
    lowers = any(piece.endswith("</w>") for piece in tokenizer.inv_vocab.values())
    here = [(byte, word) for word, each in enumerate(text.words) for byte in _normal(each, by_bytes, lowers)]
    pieces = [tokenizer.inv_vocab.get(token, "") if isinstance(token, int) else "" for _, token in stream]
    there = [(byte, n) for n, piece in enumerate(pieces) for byte in _written(piece, by_bytes)]
    matched = SequenceMatcher(None, [byte for byte, _ in here], [byte for byte, _ in there], autojunk=False)
    votes: list[dict[int, int]] = [{} for _ in stream]
    for block in matched.get_matching_blocks():
        for (_, word), (_, n) in zip(here[block.a :][: block.size], there[block.b :][: block.size], strict=True):
            votes[n][word] = votes[n].get(word, 0) + 1

    tokens: list[list[int]] = [[] for _ in text.words]
    for (position, _), word in zip(stream, _filled(votes, pieces, len(text.words)), strict=True):
        tokens[word].append(position)
    return [
        own or [position for (position, _), each in zip(stream, votes, strict=True) if word in each]
        for word, own in enumerate(tokens)
    ]


def _filled(votes: Sequence[Mapping[int, int]], pieces: Sequence[str], words: int) -> list[int]:
    """The word of every token: the one that most of its bytes are in. A space goes with what follows. What is written
    otherwise in the vocabulary, or not at all, belongs to the first word between its neighbours' that no token has."""
    found = [max(each, key=lambda word: (each[word], -word)) if each else None for each in votes]
    taken, last = set(found), -1
    for n, word in enumerate(found):
        if word is None and not _is_space(pieces[n]):
            following = next((each for each in found[n:] if each is not None), words)
            free = [each for each in range(last + 1, following) if each not in taken]
            begins = pieces[n][:1] in ("▁", "Ġ") or last < 0 or (n > 0 and _is_space(pieces[n - 1]))
            found[n] = free[0] if free else following if begins and following < words else max(last, 0)
        last = last if found[n] is None else found[n]  # type: ignore[assignment]
    return [next((each for each in found[n:] if each is not None), max(last, 0)) for n in range(len(found))]


def _is_space(piece: str) -> bool:
    return piece != "" and not piece.strip("▁Ġ ")


def _shared(some: Sequence, others: Sequence) -> int:
    """How many both have at their beginning."""
    pairs = zip(some, others, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if type(a) is not int or a != b), min(len(some), len(others)))


def _normal(word: str, by_bytes: bool, lowers: bool) -> bytes:
    """``word`` as a vocabulary has it, without spaces."""
    word = unicodedata.normalize("NFC" if by_bytes else "NFKC", word)
    return "".join((word.lower() if lowers else word).split()).encode()


def _written(piece: str, by_bytes: bool) -> bytes:
    """What a ``piece`` of a vocabulary stands for, without spaces; nothing for <unk> and its like."""
    if by_bytes:
        letters = _letters()
        piece = piece.removesuffix("</w>")
        if all(letter in letters for letter in piece):
            return b"".join(bytes([letters[letter]]) for letter in piece if not chr(letters[letter]).isspace())
    elif byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
        return bytes([int(byte[1], 16)])
    if re.fullmatch(r"<\w+>", piece):
        return b""
    return "".join(piece.replace("▁", " ").split()).encode()


@cache
def _letters() -> dict[str, int]:
    """The byte that each letter stands for in GPT-2's kind of vocabulary, CLIP's too: printable bytes for themselves,
    the others for the letters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
