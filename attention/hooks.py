"""What is put on a model's modules for one call: it acts in that call alone, and is undone after it.

Threads may share a model: several GPUs, or source and target of an edit (:mod:`..samplers.lockstep`). A hook of one
call is then on the modules while another thread's call runs through them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .keys import HOLD


@contextmanager
def undone_after(options: dict[str, Any]) -> Iterator[ExitStack]:
    """What is put on modules for a model call is undone after it; in training, after its backward pass, which may run
    parts of the model once more."""
    held = options.get(HOLD)
    if held is not None:
        yield held
        return
    with ExitStack() as stack:
        yield stack


def of_this_call(options: dict[str, Any]) -> Callable[[], bool]:
    """Whether modules run for the model call that begins here: in this thread or, in training, in any. There is one
    call at a time there, and on a GPU a thread of autograd's runs parts of it once more."""
    if HOLD in options:
        return lambda: True
    thread = threading.get_ident()
    return lambda: threading.get_ident() == thread


def heard(hook: Callable, options: dict[str, Any]) -> Callable:
    """A module's ``hook`` that changes nothing outside the model call that begins here, with these ``options``, nor in
    compiled code, which keeps the hooks that it was made with."""
    is_ours = of_this_call(options)

    def ours(*args: Any) -> Any:
        return None if torch.compiler.is_compiling() or not is_ours() else hook(*args)

    return ours
