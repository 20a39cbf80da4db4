"""Replaces ComfyUI's shape errors with one that lists the inputs."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from comfy.model_management import is_oom
from comfy.model_patcher import ModelPatcher


class UnfitError(ValueError):
    """A model cannot run on the latents or prompts that it was given."""


@contextmanager
def explain_unfit_inputs(model: ModelPatcher, latent: Mapping[str, Any], **prompts: list | None) -> Iterator[None]:
    """Raise UnfitError in place of errors from ComfyUI's model code, which checks neither shapes nor a prompt's
    content.

    ``prompts``: CONDITIONING by the names of the inputs. Errors from other code, including this pack's, pass through.
    """
    try:
        yield
    except (RuntimeError, LookupError, TypeError, AttributeError, AssertionError) as error:
        if is_oom(error) or not _is_of_the_model(error):
            raise
        given = [f"latent_image {tuple(latent['samples'].shape)}"]
        given += [f"{name} {_told(prompt)}" for name, prompt in prompts.items() if prompt]
        raise UnfitError(
            f"The model ({type(model.model.model_config).__name__}) cannot run on these inputs: {', '.join(given)}. "
            "Use prompts of this model's text encoder, and latents of its kind and size. ComfyUI says: "
            f"{type(error).__name__}: {error}"
        ) from error


def _is_of_the_model(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("comfy", "torch", "einops")


def _told(prompt: list) -> str:
    """Shapes of the texts, and what comes with them."""
    return " and ".join(
        f"{tuple(text.shape)}{f' with {names}' if (names := ', '.join(extras)) else ''}" for text, extras in prompt
    )
