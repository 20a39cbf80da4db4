"""CoherenceDemoModel and CoherenceDemoClip: a model and a clip of the project's own, to try everything on."""

from __future__ import annotations

from comfy_api.latest import io

from ..demo.clips import KINDS, MOTIONS, render_clip
from ..demo.shapes import COLOURS, SIZE
from .inputs import seed_input
from .node import Node


class CoherenceDemoModel(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CoherenceDemoModel",
            display_name="Coherence Demo Model",
            category="coherence/loaders",
            description="Loads the pack's own small model. It draws one or two coloured things on a coloured "
            "background at 128×128, as pictures or as a moving clip, in seconds on a CPU. Use it in place of a "
            "checkpoint loader.",
            search_aliases=["demo checkpoint", "tiny model", "load checkpoint", "tiny video model"],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=["image", "video", "wan", "flux", "shapes", "shapes_video"],
                    default="image",
                    optional=True,
                    tooltip="image: an image model, which draws each frame independently. video: the same with "
                    "temporal layers; the latent's batch is a clip of 16 frames, and the prompt says how the thing "
                    "moves. wan: a video transformer of Wan's class, for 9, 13 or 17 frames in a video latent. flux: "
                    "a picture transformer of Flux's class, which draws what image draws. shapes, shapes_video: the "
                    "pack's first models, which draw five shapes. Use shapes to edit a rendered clip, which it follows "
                    "more closely, and either to repeat a published measurement.",
                )
            ],
            outputs=[
                io.Model.Output(
                    tooltip="A UNet of the Stable Diffusion 1.5 class with 5 M parameters; the video model has 1 M "
                    "more. With wan, a Wan model with 6 M; with flux, a Flux model with 5 M."
                ),
                io.Clip.Output(
                    tooltip="Reads prompts such as 'a small red cat at the top left on a green background'; for "
                    "video and wan, add ', moving right'."
                ),
                io.Vae.Output(
                    tooltip="A tiny autoencoder: each latent pixel covers 8×8 pixels. With wan, a latent frame holds "
                    "four frames, the first one a single frame."
                ),
            ],
        )

    @classmethod
    def execute(cls, kind: str = "image") -> io.NodeOutput:
        from ..demo import model as shapes
        from ..demo.world import model as world

        if kind == "video":
            return io.NodeOutput(world.load_video_model(), world.load_clip("video_text"), world.load_vae())
        if kind == "wan":
            return io.NodeOutput(world.load_transformer(), world.load_clip(), world.load_clip_vae())
        if kind == "flux":
            return io.NodeOutput(world.load_picture_transformer(), world.load_clip(), world.load_vae())
        if kind == "shapes":
            return io.NodeOutput(shapes.load_model(), shapes.load_clip(), shapes.load_vae())
        if kind == "shapes_video":
            words = shapes.load_clip(shapes.VIDEO_TEXT_ENCODER_FILE)
            return io.NodeOutput(shapes.load_video_model(), words, shapes.load_vae())
        return io.NodeOutput(world.load_model(), world.load_clip(), world.load_vae())


class CoherenceDemoClip(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CoherenceDemoClip",
            display_name="Coherence Demo Clip",
            category="coherence/loaders",
            description="Draws a clip to edit, invert or measure: a coloured shape that moves over a plain "
            "background, with a mask of its exact position. It needs no file and no model. Use it in place of Load "
            "Video.",
            search_aliases=["demo video", "test clip", "sample video", "moving shape"],
            inputs=[
                io.Combo.Input(
                    "shape",
                    options=list(KINDS),
                    tooltip="The moving shape or thing. Change it to try another outline. Kind image of the demo "
                    "model draws all of them; kind shapes, better for edits, the first five.",
                ),
                io.Combo.Input(
                    "colour",
                    options=list(COLOURS),
                    tooltip="The shape's colour. It must differ from the background.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(COLOURS),
                    default="white",
                    tooltip="The background colour, the same in every frame. It must differ from the shape's colour.",
                ),
                io.Combo.Input(
                    "motion",
                    options=list(MOTIONS),
                    tooltip="slide: moves across the picture. turn: rotates a quarter turn in place. grow: grows or "
                    "shrinks. all: all three at once. A circle or ring shows no rotation.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="Length of the clip, 1 to 1024 frames. The path stays the same, so more frames move more "
                    "slowly.",
                ),
                io.Int.Input(
                    "size",
                    default=SIZE,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Height and width in pixels, 64 to 2048. Use 128 for the demo model; otherwise your "
                    "model's usual size, such as 512 for SD1.5.",
                ),
                seed_input(
                    "Sets the shape's start, direction and size. The same seed gives the same path. Change it "
                    "for another path.",
                    control_after_generate=False,
                ),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The frames of the clip."),
                io.Mask.Output("mask", tooltip="The shape's position: one mask per frame."),
            ],
        )

    @classmethod
    def execute(
        cls, shape: str, colour: str, background: str, motion: str, frames: int, size: int, seed: int
    ) -> io.NodeOutput:
        clip = render_clip(shape, colour, background, motion, frames, seed, size)
        return io.NodeOutput(clip.frames, clip.mask)


NODES = [CoherenceDemoModel, CoherenceDemoClip]
