"""A running average over frames that keeps up with a steady change.

A plain running average lags: behind a colour that drifts by d a frame it stays d·m/(1 − m) back. Here every frame gets
the value at its place of a straight line, fitted to all frames with weights m^distance (Cleveland 1979, "Robust locally
weighted regression", of degree 1, without the robust passes). A line comes out as it went in, up to both ends.
"""

import torch
from torch import Tensor

SINGULAR = 1e-9
"""Share of its greatest value below which a line has no slope that the weights could tell."""


def running_average(values: Tensor, momentum: float) -> Tensor:
    """``values`` (frames, ...), float64, averaged over neighbours. ``momentum`` 0: unchanged; 1: one line through all.

    Also of two frames alone nothing changes: the line goes through both.
    """
    flat, result = values.flatten(1), torch.empty_like(values.flatten(1))
    numbers = torch.arange(len(values), dtype=values.dtype, device=values.device)
    for frame, row in enumerate(result):
        distance = numbers - frame
        weights = momentum ** distance.abs()
        s0, s1, s2 = (float((weights * distance**power).sum()) for power in range(3))
        spread = s0 * s2 - s1 * s1
        line = weights * (s2 - distance * s1) / spread if spread > SINGULAR * s0 * s2 else weights / s0
        torch.mv(flat.mT, line, out=row)
    return result.view_as(values)
