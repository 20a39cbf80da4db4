"""Nodes that have been renamed: workflows saved with the old id open, and run, with the new one.

Ids and input names are a contract. When one has to change, its old form goes in here, and stays for good.
"""

from __future__ import annotations

from collections.abc import Iterable

from comfy_api.latest import ComfyAPI, io

RENAMED: tuple[io.NodeReplace, ...] = ()
"""Empty: no node has been renamed yet."""


async def register(replacements: Iterable[io.NodeReplace] = RENAMED) -> None:
    """Tell ComfyUI, whose server and page then put the new node in the old one's place."""
    api = ComfyAPI()
    for each in replacements:
        await api.node_replacement.register(each)
