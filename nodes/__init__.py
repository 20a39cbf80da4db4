"""The faces: one file per technique, each exporting its nodes as ``NODES``."""

from comfy_api.latest import ComfyExtension, io

from . import (
    align_prompts,
    coherent_sampler,
    colour,
    consistency,
    cross_frame,
    demo,
    editing,
    entropy_register,
    flow_attention,
    flow_edit,
    frame_references,
    ge_adapter,
    ge_adapter_train,
    guidance,
    inflation,
    inversion,
    layer_sweep,
    map_preview,
    momentum,
    momentum_of_run,
    motion_field,
    noise,
    noise_chart,
    null_text,
    one_shot,
    perturbation,
    pix2video,
    rave,
    word_maps,
)

FACES = (
    noise,
    noise_chart,
    coherent_sampler,
    momentum,
    momentum_of_run,
    motion_field,
    cross_frame,
    flow_attention,
    demo,
    entropy_register,
    map_preview,
    layer_sweep,
    word_maps,
    perturbation,
    guidance,
    pix2video,
    consistency,
    colour,
    inversion,
    null_text,
    editing,
    align_prompts,
    frame_references,
    flow_edit,
    rave,
    inflation,
    one_shot,
    ge_adapter_train,
    ge_adapter,
)


class CoherenceExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for face in FACES for node in face.NODES]
