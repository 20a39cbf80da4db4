"""Model calls that run uncompiled, even if torch.compile wrapped the model."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from comfy_api.torch_helpers.torch_compile import TORCH_COMPILE_KWARGS

_lock, _switch = threading.Lock(), ExitStack()
_inside = 0


@contextmanager
def uncompiled() -> Iterator[None]:
    """For temporary hooks: compiled code ignores new hooks and keeps those that it was compiled with.

    The switch is global, and threads of several GPUs call at once, so the last one to leave restores it.
    """
    global _inside
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        yield
        return
    with _lock:
        if _inside == 0:
            _switch.enter_context(torch.compiler.set_stance("force_eager"))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _switch.close()


@contextmanager
def uncompiled_if_unguarded(model_options: dict[str, Any]) -> Iterator[None]:
    """For a run whose transformer options hold what others of the same model do not: what this pack writes there.

    ComfyUI's TorchCompileModel tells torch.compile not to look at transformer options (``guard_filter_fn``). Code
    that it made for one run is then used in every other: with ours in a plain one, or the reverse. torch takes that
    function out of the options that it is given, so any options at all may have held it.
    """
    if model_options.get(TORCH_COMPILE_KWARGS, {}).get("options") is None:
        yield
        return
    if _inside == 0:  # several of our wrappers are around one run
        logging.warning(
            "Coherence: this run is not compiled, because TorchCompileModel would reuse code that was compiled for "
            "other patches."
        )
    with uncompiled():
        yield
