"""Which frames of a clip see the reference picture of one of them, with momentum attention and without.

    python benchmarks/frame_references.py --comfyui DIR [--frames 8] [--size 128] [--out FOLDER] [--publish]

The small random Flux of momentum_flux.py, its attention made sharp. Every frame has a reference of its own; that of
frame 2 is exchanged, and the change of each frame's latent is measured, relative to its largest value. Two steps.
"""

from __future__ import annotations

import torch
from figures import PICTURES, as_webp, legend, panels, slim, style, table
from harness import Json, command_line, enter, guided, pack, save
from momentum_flux import SIGMAS, flux, random_prompt, with_momentum

CHANGED = 2


def measure(frames: int, size: int) -> Json:
    generator = torch.Generator().manual_seed(1)
    noise, references, other = (torch.randn(frames, 16, size // 8, size // 8, generator=generator) for _ in range(3))
    prompt = random_prompt(generator)
    changed = references.clone()
    changed[CHANGED] = other[CHANGED]
    node, model = pack("nodes.frame_references").FrameReferences, flux(256, sharpness=3.0)
    prompts = [node.execute(prompt, latents={"samples": each})[0] for each in (references, changed)]
    found: Json = {}
    for name, each in (("without momentum", model), ("with momentum, mu 0.9", with_momentum(model, 0.9))):
        before, after = (guided(each, noise, 0 * noise, SIGMAS, p) for p in prompts)
        found[name] = ((after - before).abs().flatten(1).amax(1) / before.abs().max()).tolist()
    return found


def draw(found: Json) -> None:
    frames = len(next(iter(found.values())))
    title = f"Who sees the reference of frame {CHANGED}"
    subtitle = f"A small random Flux, {frames} frames, each with a reference"
    figure, panel = panels(title, subtitle, 1, 1, (720, 300))
    axes = panel[0, 0]
    for place, (name, values) in enumerate(found.items()):
        axes.bar([frame + 0.4 * (place - 0.5) for frame in range(len(values))], values, 0.38, label=name)
    style(axes, "", "frame", "change of its latent when that reference is exchanged")
    legend(figure, axes)
    path = PICTURES / "FrameReferences.png"
    figure.savefig(path)
    slim(path)
    as_webp(path)


def main() -> None:
    arguments = command_line(__doc__, "publish", frames=(8, ""), size=(128, "pixels, height and width")).parse_args()
    enter(arguments, attention="pytorch")
    with torch.inference_mode():
        found = measure(arguments.frames, arguments.size)
    save(arguments.out, found)
    frames = range(arguments.frames)
    print(table(["", *map(str, frames)], ([name, *(f"{x:.1e}" for x in values)] for name, values in found.items())))
    if arguments.publish:
        draw(found)


if __name__ == "__main__":
    main()
