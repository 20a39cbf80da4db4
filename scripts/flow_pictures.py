"""Draws the pictures of FlowEdit: its help page's, and its template's thumbnail.

    python scripts/flow_pictures.py --comfyui DIR

Run it with the Python of that ComfyUI; it takes minutes. The demo model predicts noise, so it is read as a flow model
(demo/flow.py): its predictions are the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from help_scenes import Frames, strips
from PIL import Image
from thumbnails import FOLDER, thumbnail

CLIP = {"shape": "circle", "colour": "red", "background": "white", "motion": "slide", "frames": 8, "seed": 3}
SOURCE = "a red circle on a white background"
EDITS = {
    "a blue circle,\nskip_steps 2": ("a blue circle on a white background", 2),
    "a red square,\nskip_steps 2": ("a red square on a white background", 2),
    "a red square,\nskip_steps 6": ("a red square on a white background", 6),
    "a red circle on\ngreen, skip_steps 2": ("a red circle on a green background", 2),
}
STEPS, SHOWN = 12, "a red circle on\ngreen, skip_steps 2"


def enter_comfyui(folder: Path) -> None:
    """ComfyUI's modules come before ours, whose names they share."""
    sys.path.insert(0, str(folder))
    import comfy.options  # noqa: F401  (so that ComfyUI leaves our arguments alone)
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def frames_of(images: Iterable) -> Frames:
    return [Image.fromarray((np.clip(np.asarray(x), 0, 1) * 255).round().astype(np.uint8)) for x in images]


def rows() -> dict[str, Frames]:
    import torch
    from coherence.demo.clips import render_clip
    from coherence.demo.flow import as_flow
    from coherence.demo.model import load_clip, load_model, load_vae
    from coherence.nodes.flow_edit import FlowEdit
    from comfy.samplers import calculate_sigmas

    model, encoder, vae = as_flow(load_model()), load_clip(), load_vae()
    sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)

    def encode(text: str) -> list:
        return encoder.encode_from_tokens_scheduled(encoder.tokenize(text))

    with torch.inference_mode():
        frames = render_clip(**CLIP).frames
        latent, found = {"samples": vae.encode(frames)}, {f"the clip:\n{SOURCE[:12]}": frames_of(frames)}
        for name, (target, skipped) in EDITS.items():
            prompts = (encode(SOURCE), encode(target), encode(""))
            edited = FlowEdit.execute(model, *prompts, latent, sigmas, 1.5, 5.5, skipped, 1, 1).args[0]
            found[name] = frames_of(vae.decode(edited["samples"]))
            print(name.replace("\n", " "), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    enter_comfyui(parser.parse_args().comfyui.resolve())
    found = rows()
    strips("FlowEdit", found)
    clip, *_ = found.values()
    thumbnail(found[SHOWN], clip).save(FOLDER / "edit_flow.jpg", quality=70, optimize=True, progressive=True)


if __name__ == "__main__":
    main()
