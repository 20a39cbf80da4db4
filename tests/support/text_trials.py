"""What nodes that work on a prompt's tokens do on a family (:mod:`family_table`)."""

from __future__ import annotations

from typing import Any

from coherence.nodes.null_text import NullTextInvert
from watching import difference


def null_text(s: Any) -> tuple[Any, float]:
    how = (2.0, s.latent, s.sigmas(), 1, 1e-2, 0.0, 0, "fp32")
    scheduled, *latents, _ = NullTextInvert.execute(s.model, *s.conditioning, *how).result
    texts = [text for text, _ in scheduled]
    return [*texts, *(each["samples"] for each in latents)], max(difference(x, s.conditioning[1][0][0]) for x in texts)
