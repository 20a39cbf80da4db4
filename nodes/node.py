"""The base of the pack's nodes, which holds every input to :mod:`.checks` before it begins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any, ClassVar

from comfy_api.latest import io

from .checks import require


class Node(io.ComfyNode):
    """A node whose ``execute`` gets only inputs that are what they must be, and raises InputError for others.

    ``node_name``: of the class as it was written; ComfyUI runs copies of it that are called otherwise.
    """

    node_name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        execute = cls.__dict__.get("execute")
        if execute is not None and not hasattr(execute.__func__, "__wrapped__"):  # a copy is checked already
            cls.node_name = cls.__name__
            cls.execute = classmethod(_checked(cls, execute.__func__))


def _checked(owner: type[Node], execute: Callable) -> Callable:
    signature = inspect.signature(execute)

    @cache
    def inputs() -> Sequence[io.Input]:
        return owner.define_schema().inputs

    @wraps(execute)
    def checked(cls: type[Node], *args: Any, **kwargs: Any) -> io.NodeOutput:
        given = signature.bind(cls, *args, **kwargs).arguments
        for each in inputs():
            if each.id in given:
                require(each, given[each.id], owner)
        return execute(cls, *args, **kwargs)

    return checked
