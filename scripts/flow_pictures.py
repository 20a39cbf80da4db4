"""Draws the pictures of FlowEdit: its help page's, and its template's thumbnail.

    python scripts/flow_pictures.py --comfyui DIR

Run it with the Python of that ComfyUI; it takes minutes. The demo model predicts noise, so it is read as a flow model
(demo/flow.py): its predictions are the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from help_scenes import Frames, strips
from thumbnails import FOLDER, save_thumbnail

CLIP = {"shape": "circle", "colour": "red", "background": "white", "motion": "slide", "frames": 8, "seed": 3}
SOURCE = "a red circle on a white background"
EDITS = {
    "a blue circle,\nskip_steps 2": ("a blue circle on a white background", 2),
    "a red square,\nskip_steps 2": ("a red square on a white background", 2),
    "a red square,\nskip_steps 6": ("a red square on a white background", 6),
    "a red circle on\ngreen, skip_steps 2": ("a red circle on a green background", 2),
}
STEPS, SHOWN = 12, "a red circle on\ngreen, skip_steps 2"


def rows() -> dict[str, Frames]:
    import torch
    from coherence.demo.clips import render_clip
    from coherence.demo.flow import as_flow
    from coherence.nodes.flow_edit import FlowEdit
    from figures import image_of
    from harness import Demo

    demo = Demo()
    demo.model = as_flow(demo.model)
    sigmas = demo.sigmas(STEPS, "simple")
    with torch.inference_mode():
        frames = render_clip(**CLIP).frames
        latent, found = {"samples": demo.vae.encode(frames)}, {f"the clip:\n{SOURCE[:12]}": [*map(image_of, frames)]}
        for name, (target, skipped) in EDITS.items():
            prompts = map(demo.encode, (SOURCE, target, ""))
            edited = FlowEdit.execute(demo.model, *prompts, latent, sigmas, 1.5, 5.5, skipped, 1, 1).args[0]
            found[name] = [*map(image_of, demo.decode(edited["samples"]))]
            print(name.replace("\n", " "), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    arguments = parser.parse_args()
    from harness import enter_comfyui  # help_scenes has made it importable

    enter_comfyui(arguments.comfyui)
    found = rows()
    strips("FlowEdit", found)
    clip, *_ = found.values()
    save_thumbnail(FOLDER / "edit_flow.json", found[SHOWN], clip)


if __name__ == "__main__":
    main()
