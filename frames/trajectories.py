"""Paths of patches through a clip, made of its optical flow: FLATTEN (arXiv 2310.05922, §3.2 and its authors' code).

In a frame of h × w patches each patch moves to the patch of the next frame that its flow, shrunk to h × w and rounded,
leads to. Where it leaves the frame its path ends. Where several meet in one patch, all but one are hidden behind it and
end, too; patches that none arrives at begin a path. So every patch of the clip is on exactly one path.

The authors keep a random one of those that meet; here it is the one whose exact target lies nearest, which needs no
seed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def paths(flow: Tensor, grid: tuple[int, int]) -> Tensor:
    """For every path of a clip and every frame the patch it is in, row by row, or −1 where it has ended or not begun:
    (paths, frames).

    ``flow``: (frames − 1, 2, H, W), how far every place moves to the next frame, right and down, as a share of the
    frame's width and height.
    """
    height, width = grid
    sizes = torch.tensor([width, height]).to(flow)
    moves = F.interpolate(flow, grid, mode="bilinear", align_corners=False).flatten(2).movedim(1, -1) * sizes
    place = torch.arange(height * width, device=flow.device)
    x, y = place % width, place // width
    table = place[:, None]
    at = place.clone()
    """Of every patch of the last frame in the table, which path it is on."""
    for move in moves:
        to_x, to_y = (x + move[:, 0].round()).long(), (y + move[:, 1].round()).long()
        target = (to_y * width + to_x).masked_fill((to_x < 0) | (to_x >= width) | (to_y < 0) | (to_y >= height), -1)
        off = (move - move.round()).square().sum(-1)
        order = off.argsort(stable=True, descending=True)  # the nearest comes last, and stays
        order = order[target[order] >= 0]
        last = torch.full_like(place, -1).scatter_reduce(0, target[order], torch.arange(len(order)).to(order), "amax")
        came = last >= 0
        arrived = order[last[came]]
        column = table.new_full((len(table),), -1)
        column[at[arrived]] = place[came]
        begun = table.new_full((int((~came).sum()), table.shape[1] + 1), -1)
        begun[:, -1] = place[~came]
        on = torch.empty_like(at)
        on[came] = at[arrived]
        on[~came] = torch.arange(len(table), len(table) + len(begun), device=flow.device)
        table, at = torch.cat([torch.cat([table, column[:, None]], dim=1), begun]), on
    return table
