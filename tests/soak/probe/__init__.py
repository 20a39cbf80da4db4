"""What a soaked server's process holds, at ``/soak/memory``: for that server's custom_nodes, never part of the pack."""

import ctypes
import gc
import sys

import psutil
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict = {}
WITHOUT_STORAGE = ("meta",)


@PromptServer.instance.routes.get("/soak/memory")
async def memory(_):
    """Bytes of the storages of all tensors that Python reaches, their number, and the resident set's bytes."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps for later is no leak
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    held = [
        tensor.untyped_storage()
        for tensor in tensors
        if tensor.layout is torch.strided and tensor.device.type not in WITHOUT_STORAGE
    ]
    storages = {storage.data_ptr(): storage.nbytes() for storage in held}
    resident = psutil.Process().memory_info().rss
    return web.json_response({"tensors": sum(storages.values()), "storages": len(storages), "resident": resident})
