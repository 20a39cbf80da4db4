"""What the frames of clips show, by the user's own encoders: how alike, and what their prompts ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..metrics.embeddings import consistency_with_first, directional_similarity, frame_consistency, similarity
from .checks import InputError
from .encoders import TEXTS, embed_images, embed_text


def texts_of(
    clip_vision: Any, clip: Any, reference: Tensor | None, prompt: str, reference_prompt: str
) -> dict[str, str]:
    """The prompt of each clip that has one. InputError where one could not be used."""
    texts = {"clip": prompt.strip(), "reference": reference_prompt.strip()}
    texts = {name: text for name, text in texts.items() if text}
    if not texts:
        return {}
    name = "prompt" if "clip" in texts else "reference_prompt"
    missing = [each for each, given in (("clip_vision", clip_vision), ("clip", clip)) if given is None]
    if missing:
        raise InputError(
            f"{name} is given without {' and '.join(missing)}, expected both encoders. Connect Load CLIP Vision and "
            f"the Load CLIP that belongs to it, or leave {name} empty."
        )
    if "reference" in texts and reference is None:
        raise InputError(
            "reference_prompt is given without a reference, expected the clip that it describes. Connect reference, or "
            "leave reference_prompt empty."
        )
    return texts


def content_of(
    clip_vision: Any,
    clip: Any,
    clips: Mapping[str, Tensor | None],
    texts: Mapping[str, str],
    progress: Callable[[], object],
) -> dict[str, dict[str, Tensor]]:
    """What the frames show, for the entries of the report: cosines of vectors by name."""
    seen = {name: embed_images(clip_vision, each, progress) for name, each in clips.items() if each is not None}
    channels = seen["clip"].shape[-1]
    told = {name: embed_text(clip, text, clip_vision, channels) for name, text in texts.items()}
    whole = "background_consistency" if clip_vision.model_type == TEXTS else "subject_consistency"
    shown = {}
    for name, frames in seen.items():
        shown[name] = {"frame_consistency": frame_consistency(frames), whole: consistency_with_first(frames)}
        if name in told:
            shown[name]["text_similarity"] = similarity(frames, told[name])
    if "reference" in seen:
        shown["against_reference"] = {"image_similarity": similarity(seen["clip"], seen["reference"])}
        if len(told) == 2:
            directional = directional_similarity(seen["clip"], seen["reference"], told["clip"], told["reference"])
            shown["against_reference"]["directional_similarity"] = directional
    return shown
