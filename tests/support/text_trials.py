"""What nodes that work on a prompt's tokens do on a family (:mod:`family_table`)."""

from __future__ import annotations

from typing import Any

from coherence.nodes.null_text import NullTextInvert
from coherence.samplers.measure import Start
from coherence.samplers.word_maps import measure_words
from coherence.samplers.words import WordTokens
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from watching import difference


def null_text(s: Any) -> tuple[Any, float]:
    how = (2.0, s.latent, s.sigmas(), 1, 1e-2, 0.0, 0, "fp32")
    scheduled, *latents, _ = NullTextInvert.execute(s.model, *s.conditioning, *how).result
    texts = [text for text, _ in scheduled]
    return [*texts, *(each["samples"] for each in latents)], max(difference(x, s.conditioning[1][0][0]) for x in texts)


def word_maps(s: Any) -> tuple[Any, float]:
    (text, _), *_ = s.conditioning[0]
    tokens = WordTokens(("first", "last"), ((0,), (text.shape[1] - 1,)), text.shape[1], ())  # no family has its encoder
    start = Start(s.conditioning[0], Noise_RandomNoise(3), s.late, s.empty)
    maps = measure_words(s.model, start, tokens, tokens.words, (0,), "*", "WordMaps").maps
    return maps, float(maps.std())
