"""The workflows that ship with the pack: which there are, and what comes out of their runs."""

import json
from pathlib import Path

import numpy as np
from coherence.client.clip import read_frames
from coherence.client.server import outputs
from coherence.hosting.provision import PACK

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
FOR_CHECKPOINTS = [
    path
    for path in WORKFLOWS
    for text in [path.read_text("utf-8")]
    if any(f'"{loader}"' in text for loader in ("CheckpointLoaderSimple", "UNETLoader"))
    and '"CoherenceDemoModel"' not in text
]
"""For models that everybody has and nobody ships: they run small, on random models under the same names."""
ANIMATEDIFF = "ADE_AnimateDiffLoaderGen1"
LEFT_OUT = {
    "animatediff_guidance": {ANIMATEDIFF},
    "animatediff_lightning_edit": {ANIMATEDIFF},
    "ge_adapter_frame_tokens": {"CLIPVisionLoader", "CLIPVisionEncode"},
}
"""Nodes of a pack that the tests' ComfyUI lacks, or of a model whose smallest size is too large for them: bypassed."""
AS_SHIPPED = [path for path in WORKFLOWS if path not in FOR_CHECKPOINTS]
CLIPS = [path for path in AS_SHIPPED if '"SaveAnimatedWEBP"' in path.read_text("utf-8")]
TAKING_VIDEOS = [path for path in WORKFLOWS if '"LoadVideo"' in path.read_text("utf-8")]
ZS2 = PACK / "workflows" / "zs2_text_to_video.json"
SMALL = {"width": 64, "height": 64, "size": 64, "batch_size": 2, "frames": 2, "steps": 2, "lossless": True}
SMALL |= {"length": 2, "skip_steps": 0, "refine_iterations": 0, "step": 1}
"""Inputs of a workflow on small random models."""
_SHORTER = {
    "bilateral_inversion": {"frames": 8, "batch_size": 8, "steps": 8},
    "clip_consistency": {"steps": 5, "frames": 8},
    "demo_picture_transformer": {"steps": 4},
    "demo_video": {"steps": 6, "batch_size": 8},
    "demo_video_transformer": {"steps": 4, "length": 9},
    "edit_generated_clip": {"steps": 5},
    "edit_real_clip": {"steps": 5},
    "edit_text2video_zero_adapter": {"steps": 4, "frames": 4},
    "edit_tokenflow": {"steps": 5, "refine_iterations": 1},
    "edit_tokenflow_adapter": {"steps": 4, "frames": 4},
    "edit_vid2vid_zero_adapter": {"steps": 4, "frames": 4},
    "edit_vidtome": {"steps": 5, "refine_iterations": 1},
    "edit_vidtome_adapter": {"steps": 4, "frames": 4},
    "edit_words": {"steps": 5},
    "edit_zero_shot": {"steps": 5, "refine_iterations": 1},
    "ei2_edit": {"steps": 5, "refine_iterations": 1},
    "ei2_p2p": {"steps": 5},
    "ei2_tune": {"steps": 8},
    "entropy_register": {"steps": 6, "measure_steps": "0, 3", "step": 3},
    "ge_adapter_apply": {"steps": 6},
    "ge_adapter_frame_tokens": {"steps": 6},
    "ge_adapter_train": {"steps": 8},
    "ie_guidance": {"steps": 4, "measure_steps": "0, 3"},
    "layer_sweep": {"steps": 3},
    "null_text": {"steps": 3, "inner_steps": 3},
    "perturbation": {"steps": 4, "measure_steps": "0, 3"},
    "text2video_zero": {"steps": 10},
    "word_maps": {"steps": 6, "measure_steps": "3-5"},
    "zs2_baselines": {"steps": 8},
    "zs2_continue_clip": {"steps": 5},
    "zs2_lcm": {"steps": 6, "batch_size": 8},
    "zs2_long_clip": {"steps": 4, "batch_size": 24},
    "zs2_loop": {"steps": 6},
    "zs2_super_resolution": {"steps": 4},
    "zs2_text_to_video": {"steps": 6, "batch_size": 8},
}
SMALLER = {"scale_by": 1, "width": 64, "height": 64, "size": 64}
AS_TRAINED = {"width": 128, "height": 128, "size": 128}
SHORTER = {path.stem: SMALLER | _SHORTER.get(path.stem, {}) for path in AS_SHIPPED}
"""Inputs that make the runs of workflows shorter and nothing else: fewer steps, and pictures of half the side that the
demo model was trained at, except where the test of what comes out needs it. Clips keep eight frames."""
for name in (ZS2.stem, "zs2_lcm", "bilateral_inversion", "text2video_zero"):
    SHORTER[name] |= AS_TRAINED
FRAMES = {"edit_flow": 5, "edit_two_experts": 5, "ie_guidance_video_transformer": 5, "rave_controlnet": 9}
"""Of clips for models that do not take any number (4k + 1), and for a grid of 3 × 3 frames."""
MODEL_FILES = {
    "ckpt_name": "checkpoints",
    "control_net_name": "controlnet",
    "lora_name": "loras",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "vae_name": "vae",
    "model_name": "animatediff_models",
}
"""Inputs that name a model → its folder."""


def runnable(path: Path) -> dict:
    """A workflow as it ships, but for what is left out."""
    workflow = json.loads(path.read_text("utf-8"))
    for node in workflow["nodes"]:
        if node["type"] in LEFT_OUT.get(path.stem, ()):
            node["mode"] = 4
    return workflow


def small(path: Path) -> dict:
    """SMALL, with as many frames as the workflow's model takes."""
    frames = FRAMES.get(path.stem, SMALL["frames"])
    return SMALL | {"frames": frames, "length": frames}


def frames_of(server, entry: dict, folder: Path) -> np.ndarray:
    """Frames (count, height, width, 3) uint8 of the animated WEBP among the outputs."""
    (file,) = (file for file in outputs(entry) if file["filename"].endswith(".webp"))
    path = folder / file["filename"]
    path.write_bytes(server.download(file))
    return read_frames(path)[0]


def inputs_of(prompt: dict, class_type: str) -> dict:
    """The inputs of the only node of a class."""
    (node,) = (node for node in prompt.values() if node["class_type"] == class_type)
    return node["inputs"]
