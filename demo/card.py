"""The pictures and figures of the model card, demo/FIRST.md."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .evaluation import Evaluation, table
from .training.first.checkpoints import FOLDER, STATE

BEGIN, END = "<!-- figures: written by evaluate.py --card -->\n", "\n<!-- end of figures -->"


def save_sheet(evaluation: Evaluation, file: Path, columns: int = 8, count: int = 40) -> None:
    """Contact sheet of the first pictures; a red bar under those with an attribute wrong."""
    from PIL import Image

    every = torch.stack(list(evaluation.correct.values())).all(0)[:count]
    tiles = torch.ones(count, 136, 132, 3)
    tiles[: len(every), 2:130, 2:130] = evaluation.pictures[:count]
    tiles[:, 132:135, 2:130][: len(every)][~every] = torch.tensor([0.85, 0.1, 0.1])
    sheet = tiles.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(file)


def _curve(part: str) -> list[dict[str, float]]:
    """Of the training that is going on here, else of the one that made the shipped weights."""
    checkpoint = STATE / f"{part}.pt"
    if checkpoint.is_file():
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["curve"]
    return json.loads((FOLDER / "curves" / f"{part}.json").read_text())


def plot_curves(file: Path) -> None:
    """What the text encoder, the UNet and the VAE's decoder learned over their training."""
    from matplotlib.figure import Figure

    whole, partial, unet, vae = (_curve(part) for part in ("text", "text_partial", "unet", "vae"))
    text = whole + [{**entry, "step": entry["step"] + whole[-1]["step"] + 1} for entry in partial]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name in ("shape", "colour", "background", "size", "row", "column"):
        left.plot([0.128 * entry["step"] for entry in text], [entry[name] for entry in text], label=name)
    left.set(title="Text encoder", xlabel="thousand captions seen", ylabel="attributes read off its output")
    left.legend(fontsize=8)
    middle.plot([entry["pictures"] / 1000 for entry in unet], [entry["loss"] for entry in unet])
    middle.set(title="UNet", xlabel="thousand pictures seen", ylabel="ε's error · (1 + σ²), smoothed", yscale="log")
    right.plot([entry["step"] for entry in vae], [entry["psnr"] for entry in vae])
    right.set(title="VAE decoder", xlabel="steps", ylabel="PSNR in dB, smoothed")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def write_card(evaluation: Evaluation, psnr: float, sampling: str) -> None:
    """Figures, curves and samples. ``psnr``: of the VAE's round trip, in dB; ``sampling``: how, in words."""
    seen = _curve("unet")[-1]["pictures"]
    figures = (
        f"{sampling}; UNet after {seen:,.0f} pictures.\n\n{table(evaluation)} Rendered pictures go through the VAE's "
        f"encoder and decoder with a PSNR of {psnr:.1f} dB."
    )
    card = FOLDER / "FIRST.md"
    before, rest = card.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    card.write_text(before + BEGIN + figures + END + after, "utf-8")
    plot_curves(FOLDER / "images" / "curves.png")
    save_sheet(evaluation, FOLDER / "images" / "samples.png")
