"""Contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def save_sheet(pictures: Sequence[Tensor], file: Path, columns: int = 8) -> None:
    """Pictures (H, W, 3) of one size in [0, 1], ``columns`` in a row, with white between them."""
    from PIL import Image

    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    sheet = torch.ones(rows * (height + 4), columns * (width + 4), 3)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + 4) + 2, index % columns * (width + 4) + 2
        sheet[top : top + height, left : left + width] = picture
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().numpy()).save(file)
