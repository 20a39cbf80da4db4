"""Specks in the pictures of long noise: the paper's random search beside orthogonal candidates.

    python benchmarks/noise_specks.py --comfyui DIR [--clips 48] [--frame 15] [--steps 16] [--kl 0.1]
        [--out FOLDER]

The search of ZS² (best of 10) makes outliers that grow from frame to frame. Clips of the demo model, one random prompt
and seed each, are drawn with both noises, without any attention of the pack, and one late frame is looked at. A clip
has a speck if more than 12 joined pixels, apart from the thing and away from its outline, are off in colour by more
than 0.25: the limits of the gate that the pictures of the world's models are held to. Too few steps make specks with
any noise: at 6, nearly every clip has one. Intervals: 95%, Wilson.
"""

from __future__ import annotations

import random

import torch
from figures import table
from harness import Demo, command_line, dependency_noise, empty, enter, pack, save
from torch import Tensor

NOISES = {"best of 10 (the paper's)": 10, "orthogonal (the default)": 0}
"""A noise → its candidates, as :func:`harness.dependency_noise` takes them."""


def largest_speck(picture: Tensor) -> int:
    """Pixels of the largest speck of a picture (H, W, 3): apart from the largest thing, or within it."""
    from scipy import ndimage

    wrong, joined = pack("demo.world.form").WRONG, torch.ones(3, 3).numpy()

    def parts(mask: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.from_numpy(ndimage.label(mask.numpy(), structure=joined)[0])
        return labels, labels.flatten().bincount()[1:]

    border = torch.cat([picture[[0, -1]].flatten(0, 1), picture[:, [0, -1]].flatten(0, 1)])
    labels, sizes = parts((picture - border.median(0).values).norm(dim=-1) > wrong)
    if not len(sizes):
        return 0
    thing = labels == sizes.argmax() + 1
    filled = ndimage.binary_fill_holes(thing.numpy())
    inside = torch.from_numpy(ndimage.binary_erosion(filled, joined, iterations=3))
    colour = picture[thing].median(0).values
    _, within = parts(inside & ((picture - colour).norm(dim=-1) > wrong))
    others = sizes[sizes != sizes.max()]
    return int(torch.cat([others, within]).max()) if len(others) + len(within) else 0


def frames_of(demo: Demo, candidates: int, clips: int, frame: int, steps: int, kl: float) -> Tensor:
    """Frame number ``frame`` of every clip, (clips, height, width, 3)."""
    shapes, rng, drawn = pack("demo.shapes"), random.Random(0), []
    for seed in range(clips):
        scene = shapes.random_scene(rng)
        latent = empty(1) | {"batch_index": [frame]}
        noise = dependency_noise(seed, kl, candidates).generate_noise(latent)
        drawn.append(demo.decode(demo.sample(demo.model, noise, demo.encode(shapes.caption(scene, rng)), steps)))
    return torch.cat(drawn)


def main() -> None:
    numbers = {"clips": (48, ""), "frame": (15, "counted from 0"), "steps": (16, ""), "kl": (0.1, "")}
    arguments = command_line(__doc__, **numbers).parse_args()
    enter(arguments)
    demo, wilson, limit = Demo(), pack("demo.evaluation").wilson, pack("demo.world.evaluation").SPECK
    asked = {name: getattr(arguments, name) for name in numbers}
    largest, rows = {}, []
    with torch.inference_mode():
        for name, candidates in NOISES.items():
            frames = frames_of(demo, candidates, **asked)
            largest[name] = [largest_speck(frame) for frame in frames]
            count = sum(size > limit for size in largest[name])
            low, high = wilson(count, arguments.clips)
            rows.append([name, f"{count} of {arguments.clips}", f"{low:.0%} to {high:.0%}"])
    save(arguments.out, asked | {"largest": largest})
    print(table(["noise", "clips with a speck", "95% interval"], rows))


if __name__ == "__main__":
    main()
