"""The faces: one file per technique, each exporting its nodes as ``NODES``."""

from comfy_api.latest import ComfyExtension, io

from . import consistency, cross_frame, demo, guidance, map_preview, momentum, noise, perturbation, register

FACES = (noise, momentum, cross_frame, demo, register, map_preview, perturbation, guidance, consistency)


class CoherenceExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for face in FACES for node in face.NODES]
