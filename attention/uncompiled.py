"""Model calls that run as they are written, whatever torch.compile made of the model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_lock, _switch = threading.Lock(), ExitStack()
_inside = 0


@contextmanager
def uncompiled() -> Iterator[None]:
    """For hooks that come and go: compiled code sees no new ones, and keeps those that it was made with.

    The switch is the whole process's, and threads of several GPUs call at once: the last to leave turns it back.
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
