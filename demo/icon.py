"""Draws the pack's icon: one shape, frame by frame along its way, each a little clearer than the one before.

    python demo/icon.py --comfyui DIR

Run it with the Python of that ComfyUI.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from PIL import Image

PACK = Path(__file__).resolve().parent.parent
SIDE, OVERSAMPLED, FRAMES = 256, 4, 6
GROUND, NEAR, FAR = (18, 22, 38), (255, 138, 76), (86, 108, 240)


def icon() -> Image.Image:
    """(256, 256) RGBA: stars on an arc, on a ground with round corners."""
    from demo.shapes import coverage

    side = SIDE * OVERSAMPLED
    picture = torch.tensor(GROUND, dtype=torch.float32).expand(side, side, 3)
    for frame in range(FRAMES):
        share = frame / (FRAMES - 1)
        x = side * (0.2 + 0.47 * share)
        y = side * (0.74 - 0.34 * math.sin(share * math.pi / 2))
        radius = side * (0.1 + 0.16 * share)
        mask = coverage("star", radius, torch.tensor(x), torch.tensor(y), share * math.pi / 5, side)[0, ..., None]
        colour = torch.lerp(torch.tensor(FAR, dtype=torch.float32), torch.tensor(NEAR, dtype=torch.float32), share)
        picture = torch.lerp(picture, colour, mask * (0.2 + 0.8 * share**1.5))
    corner = torch.zeros(side, side)
    reach, middle = 0.18 * side, torch.arange(side) + 0.5
    away = (torch.maximum(reach - middle, middle - (side - reach))).clamp(min=0)
    corner = (away[:, None] ** 2 + away[None] ** 2 <= reach**2).float() * 255
    pixels = torch.cat([picture, corner[..., None]], dim=-1).round().byte()
    return Image.fromarray(pixels.numpy(), "RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    sys.path[:0] = [str(parser.parse_args().comfyui.resolve()), str(PACK)]
    icon().quantize(64).save(PACK / "icon.png", optimize=True)
