"""ComfyUI's wrappers, put on a model once however often it is patched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def put_wrappers(clone: ModelPatcher, key: str, wrappers: Mapping[str, Callable]) -> None:
    """``wrappers`` by kind (``WrappersMP``) on ``clone``, in place of those that ``key`` has there; innermost."""
    for kind, wrapper in wrappers.items():
        clone.remove_wrappers_with_key(kind, key)
        clone.add_wrapper_with_key(kind, key, wrapper)
