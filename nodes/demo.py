"""CoherenceDemoModel: a small model the project trained itself, to try everything on without a download."""

from __future__ import annotations

from comfy_api.latest import io


class CoherenceDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CoherenceDemoModel",
            display_name="Coherence Demo Model",
            category="coherence/loaders",
            description="Loads the pack's own small picture model: it draws one coloured shape on a coloured "
            "background at 128×128, in seconds on a CPU. It stands where a checkpoint loader would.",
            search_aliases=["demo checkpoint", "tiny model", "load checkpoint"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="A Stable Diffusion 1.5 class UNet with 4 M parameters."),
                io.Clip.Output(
                    tooltip="Reads prompts such as 'a small red star at the top left on a green background'."
                ),
                io.Vae.Output(tooltip="A tiny autoencoder, 8×8 pixels to one latent."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..demo.model import load_clip, load_model, load_vae

        return io.NodeOutput(load_model(), load_clip(), load_vae())


NODES = [CoherenceDemoModel]
