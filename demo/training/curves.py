"""Draws what the world's models learned over their training, for the model card, demo/README.md:

    python demo/training/curves.py

From the logged losses beside the repository's weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

DEMO = Path(__file__).resolve().parent.parent
PANELS = {
    "image": ("thousand pictures seen", {"fine": "below σ 1.6", "coarse": "above"}, "ε's error, weighted, smoothed"),
    "decoder": ("thousand crops seen", {"psnr": "noisy crops"}, "PSNR in dB, smoothed"),
    "video": ("thousand clips seen", {"loss": "clips"}, "ε's error, weighted, smoothed"),
    "transformer": (
        "thousand clips and pictures seen",
        {"fine": "noise below 0.5", "coarse": "above"},
        "velocity's error, smoothed",
    ),
    "flux": ("thousand pictures seen", {"fine": "noise below 0.5", "coarse": "above"}, "velocity's error, smoothed"),
}
"""Of each part: the x-axis, its figures and their names, and the y-axis."""


def main() -> None:
    figure = Figure(figsize=(18, 3.4), layout="constrained")
    for axes, (part, (seen, figures, title)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        curve = json.loads((DEMO / "world" / "weights" / f"world_{part}.json").read_text())
        for name, label in figures.items():
            logged = [entry for entry in curve if name in entry]
            axes.plot([entry["seen"] / 1000 for entry in logged], [entry[name] for entry in logged], label=label)
        axes.set(title=part, xlabel=seen, ylabel=title, yscale="linear" if part == "decoder" else "log")
        axes.legend(fontsize=8)
    figure.savefig(DEMO / "images" / "world_curves.png", dpi=100)


if __name__ == "__main__":
    main()
