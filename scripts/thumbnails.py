"""Draws the thumbnails of the workflows that make a clip, for ComfyUI's template browser: four of its frames.

    python scripts/thumbnails.py --comfyui DIR [NAME ...]

Run it with the Python of that ComfyUI, after a change of a workflow or of the demo model. Workflows for models that do
not ship with the pack are drawn by its demo model, and their notes say so.
"""

import argparse
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, ImageSequence

PACK = Path(__file__).resolve().parent.parent
FOLDER = PACK / "workflows"
SIDE, GAP = 150, 4
sys.path.append(str(PACK))

import _enter_pack  # noqa: E402

_enter_pack.enter()
from coherence.client.server import outputs  # noqa: E402
from coherence.client.workflow import to_prompt  # noqa: E402
from help_scenes import start  # noqa: E402

Prompt = dict[str, Any]


@dataclass(frozen=True)
class StandIn:
    """How the demo model draws a workflow in place of the models that it is for.

    Args:
        text: The prompt; of an edit, the target's.
        source: The source prompt of an edit.
        denoise: Share of the noise that the workflow's video gets, which takes the place of what would have
            conditioned the frames by it; 1: there is no video.
        kind: Of the demo model.
        steps: In place of a distilled model's few.
    """

    text: str
    denoise: float = 1.0
    kind: str = "image"
    source: str = ""
    steps: int = 0


STAND_INS = {
    "zs2_lora": StandIn("a large white star in the centre on a blue background"),
    "zs2_controlnet": StandIn("a large purple circle on a white background", 0.6, "shapes"),
    "zs2_pose_schedule": StandIn("a large purple circle on a white background", 0.7, "shapes", steps=8),
    "animatediff_guidance": StandIn("a small green fish on a red background, moving right", kind="video", steps=10),
    "animatediff_lightning_edit": StandIn(
        "a small blue fish on a red background, moving right",
        kind="video",
        source="a small green fish on a red background, moving right",
        steps=8,
    ),
    "rave_controlnet": StandIn("a large orange circle on a white background", 0.6, "shapes"),
    "zs2_instruct_pix2pix": StandIn("a large orange circle on a white background", 0.6, "shapes"),
    "zs2_flux": StandIn("a large yellow house in the centre on a blue background", kind="flux"),
    "edit_video_with_image_editor": StandIn("a large orange circle on a white background", 0.6, "shapes"),
    "edit_two_experts": StandIn(
        "a small blue fish on a red background, moving right",
        kind="video",
        source="a small green fish on a red background, moving right",
    ),
    "ie_guidance_video_transformer": StandIn("a large green rocket on a red background, moving up", kind="video"),
}
LOADERS = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
"""Nodes that load a part of a model, and which output of the demo model's that is."""
BYPASSED = {
    "LoraLoader": ("model", "clip"),
    "ControlNetApplyAdvanced": ("positive", "negative"),
    "FrameReferences": ("conditioning",),
    "ModelSamplingSD3": ("model",),
}
"""Nodes that the demo model cannot use: the inputs that stand for their outputs."""
WITHOUT = ("CLIPVisionLoader", "CLIPVisionEncode")
"""Nodes that are bypassed, as those of missing packs are: their models are too large to come along."""
SMALL = {"width": 128, "height": 128, "size": 128}
SCALES = ("cfg", "cfg_conds", "source_cfg")


def with_demo_model(prompt: Prompt, stand_in: StandIn) -> Prompt:
    """The prompt of a workflow for other models, changed so that the demo model draws it."""
    named: dict[str, str] = {}
    for key, node in prompt.items():
        named.setdefault(node["class_type"], key)
        if node["class_type"] == "CheckpointLoaderSimple":
            node |= {"class_type": "CoherenceDemoModel", "inputs": {"kind": stand_in.kind}}
        if node["class_type"] == "CLIPTextEncode":
            texts = {"Negative": "", "Source": stand_in.source}
            node["inputs"]["text"] = texts.get(node["_meta"]["title"].partition(" ")[0], stand_in.text)
        if node["class_type"] in ("EmptyFlux2LatentImage", "EmptyHunyuanLatentVideo"):
            frames = 16 if "length" in node["inputs"] else node["inputs"]["batch_size"]
            node |= {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": frames}}
        if node["class_type"] == "Flux2Scheduler":
            scheduler = "simple" if stand_in.kind == "flux" else "karras"
            how = {"model": ["demo", 0], "scheduler": scheduler, "steps": 20, "denoise": 1.0}
            node |= {"class_type": "BasicScheduler", "inputs": how}
            named["BasicScheduler"] = key
        cfg = 5.0 if stand_in.kind.startswith("shapes") else 3.0
        small = (
            SMALL
            | dict.fromkeys(SCALES, cfg)
            | ({"steps": stand_in.steps, "scheduler": "karras"} if stand_in.steps else {})
        )
        node["inputs"] |= {name: value for name, value in small.items() if name in node["inputs"]}
    load = named.get("CheckpointLoaderSimple", "demo")
    if load == "demo":
        prompt[load] = {"class_type": "CoherenceDemoModel", "inputs": {"kind": stand_in.kind}}
        for key in [key for key, node in prompt.items() if node["class_type"] in LOADERS]:
            relink(prompt, key, [[load, LOADERS[prompt[key]["class_type"]]]])
            del prompt[key]
    if stand_in.denoise < 1:
        frames = {"pixels": [named["CoherenceDemoClip"], 0], "vae": [load, 2]}
        prompt["start"] = {"class_type": "VAEEncode", "inputs": frames}
        prompt[named["SamplerCustomAdvanced"]]["inputs"]["latent_image"] = ["start", 0]
        prompt[named["BasicScheduler"]]["inputs"]["denoise"] = stand_in.denoise
    for key in [key for key, node in prompt.items() if node["class_type"] in BYPASSED]:
        removed = prompt.pop(key)
        relink(prompt, key, [removed["inputs"][name] for name in BYPASSED[removed["class_type"]]])
    return {key: node for key, node in prompt.items() if node["class_type"] != "ControlNetLoader"}


def relink(prompt: Prompt, key: str, links: list[list[Any]]) -> None:
    """What comes from the outputs of a node comes from ``links``."""
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == key:
                node["inputs"][name] = links[value[1]]


def without_what_is_missing(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The workflow with such nodes bypassed."""
    for node in workflow["nodes"]:
        if node["type"] in WITHOUT or (node["type"] not in object_info and "Note" not in node["type"]):
            node["mode"] = 4
    return workflow


def frames_of(files: list[tuple[str, bytes]]) -> list[Image.Image]:
    """Of the animated WEBP among the files, else of the video. Of three pictures side by side the outer ones."""
    name, data = max(files, key=lambda file: file[0].endswith(".webp"))
    if name.endswith(".webp"):
        with Image.open(io.BytesIO(data)) as image:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
    else:
        import av

        with av.open(io.BytesIO(data)) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
    height, width = frames[0].height, frames[0].width
    if width < 2.5 * height:
        return frames
    for place, frame in enumerate(frames):
        frames[place] = Image.new("RGB", (2 * height + GAP, height), "white")
        frames[place].paste(frame.crop((0, 0, height, height)), (0, 0))
        frames[place].paste(frame.crop((width - height, 0, width, height)), (height + GAP, 0))
    return frames


def thumbnail(clip: list[Image.Image], beside: list[Image.Image]) -> Image.Image:
    """Four frames, evenly spaced from the first to the last, two by two; or two of the clip, each with that ``beside``
    it, or two that are twice as wide."""
    wide = clip[0].width > 1.5 * clip[0].height
    count = 2 if beside or wide else 4
    chosen = [round(place * (len(clip) - 1) / (count - 1)) for place in range(count)]
    pictures = [frames[index] for index in chosen for frames in (beside, clip) if frames]
    size = (2 * SIDE + GAP if wide else SIDE, SIDE)
    picture = Image.new("RGB", (2 * SIDE + GAP, 2 * SIDE + GAP), "white")
    for place, frame in enumerate(pictures):
        row, column = divmod(place, 1 if wide else 2)
        picture.paste(ImageOps.fit(frame.convert("RGB"), size), (column * (SIDE + GAP), row * (SIDE + GAP)))
    return picture


def save_thumbnail(workflow: Path, clip: list[Image.Image], beside: list[Image.Image]) -> Path:
    """As the template browser finds it: beside its workflow."""
    path = workflow.with_suffix(".jpg")
    thumbnail(clip, beside).save(path, quality=45, optimize=True, progressive=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="workflows to draw; all, if none is named")
    options = parser.parse_args()
    with start(options.comfyui) as server:
        object_info = server.object_info()
        for path in sorted(FOLDER.glob("*.json")):
            workflow = without_what_is_missing(json.loads(path.read_text("utf-8")), object_info)
            prompt = to_prompt(workflow, object_info)
            makes_a_clip = any(node["class_type"] in ("SaveAnimatedWEBP", "SaveVideo") for node in prompt.values())
            if not makes_a_clip or (options.names and path.stem not in options.names):
                continue
            if path.stem in STAND_INS:
                prompt = with_demo_model(prompt, STAND_INS[path.stem])
            entry = server.queue(prompt)
            files = [file for file in outputs(entry) if file["filename"].endswith((".webp", ".mp4"))]
            frames = frames_of([(file["filename"], server.download(file)) for file in files])
            beside = []
            if path.stem in STAND_INS:
                beside = [Image.open(io.BytesIO(server.download(file))) for file in outputs(entry, "temp")]
            print(save_thumbnail(path, frames, beside))


if __name__ == "__main__":
    main()
