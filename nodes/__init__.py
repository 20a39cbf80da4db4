"""The faces: one file per technique, each exporting its nodes as ``NODES``."""

from comfy_api.latest import ComfyExtension, io

from . import cross_frame, demo, map_preview, momentum, noise, register


class CoherenceExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*noise.NODES, *momentum.NODES, *cross_frame.NODES, *demo.NODES, *register.NODES, *map_preview.NODES]
