"""CoherenceDemoModel and CoherenceDemoClip: a model and a clip of the project's own, to try everything on."""

from __future__ import annotations

from comfy_api.latest import io

from ..demo.clips import MOTIONS, render_clip
from ..demo.shapes import COLOURS, SHAPES, SIZE
from .node import Node


class CoherenceDemoModel(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CoherenceDemoModel",
            display_name="Coherence Demo Model",
            category="coherence/loaders",
            description="Loads the pack's own small model: it draws one coloured shape on a coloured background at "
            "128×128, as pictures or as a moving clip, in seconds on a CPU. It stands where a checkpoint loader would.",
            search_aliases=["demo checkpoint", "tiny model", "load checkpoint", "tiny video model"],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=["image", "video"],
                    default="image",
                    optional=True,
                    tooltip="image: a picture model, every frame for itself. video: the same with temporal layers; "
                    "the latent's batch is a clip of 16 frames, and the prompt says how the shape moves.",
                )
            ],
            outputs=[
                io.Model.Output(
                    tooltip="A Stable Diffusion 1.5 class UNet with 4 M parameters; for clips with 1 M more."
                ),
                io.Clip.Output(
                    tooltip="Reads prompts such as 'a small red star at the top left on a green background'; for "
                    "clips with ', moving right' after them."
                ),
                io.Vae.Output(tooltip="A tiny autoencoder, 8×8 pixels to one latent pixel."),
            ],
        )

    @classmethod
    def execute(cls, kind: str = "image") -> io.NodeOutput:
        from ..demo.model import VIDEO_TEXT_ENCODER_FILE, load_clip, load_model, load_vae, load_video_model

        if kind == "video":
            return io.NodeOutput(load_video_model(), load_clip(VIDEO_TEXT_ENCODER_FILE), load_vae())
        return io.NodeOutput(load_model(), load_clip(), load_vae())


class CoherenceDemoClip(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CoherenceDemoClip",
            display_name="Coherence Demo Clip",
            category="coherence/loaders",
            description="Draws a clip to edit, invert or measure: a coloured shape that moves over a plain background, "
            "and exactly where it is. No file, no model. It stands where Load Video would.",
            search_aliases=["demo video", "test clip", "sample video", "moving shape"],
            inputs=[
                io.Combo.Input("shape", options=list(SHAPES), tooltip="What moves. Change it to try another outline."),
                io.Combo.Input(
                    "colour",
                    options=list(COLOURS),
                    tooltip="The shape's colour. It has to differ from the background.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(COLOURS),
                    default="white",
                    tooltip="The colour behind the shape, the same in every frame. It has to differ from the shape's.",
                ),
                io.Combo.Input(
                    "motion",
                    options=list(MOTIONS),
                    tooltip="slide: across the picture. turn: by a quarter, on the spot. grow: or shrink. all: the "
                    "three at once. A circle does not show that it turns.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="Length of the clip, 1 to 1024. The path stays the same: more frames move more slowly.",
                ),
                io.Int.Input(
                    "size",
                    default=SIZE,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Height and width in pixels, 64 to 2048. 128 for the demo model; what your model likes "
                    "else, such as 512 for SD1.5.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Start, direction and size of the shape, the same for the same seed. Change it for another "
                    "path.",
                ),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The frames of the clip."),
                io.Mask.Output("mask", tooltip="Where the shape is: one mask for every frame."),
            ],
        )

    @classmethod
    def execute(
        cls, shape: str, colour: str, background: str, motion: str, frames: int, size: int, seed: int
    ) -> io.NodeOutput:
        clip = render_clip(shape, colour, background, motion, frames, seed, size)
        return io.NodeOutput(clip.frames, clip.mask)


NODES = [CoherenceDemoModel, CoherenceDemoClip]
