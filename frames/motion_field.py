"""Motion in latents: Text2Video-Zero (arXiv 2303.13439) §3.3.1, Algorithm 1, and background smoothing, §3.3.3.

One latent of the first frame, denoised for a few steps so that it holds a layout, is translated by a motion field that
grows with the frames, and noised again:

    x_{t0}^k = W_k(x_{t0}^1),   W_k a translation by δ^k = λ (k − 1) δ,   k = 1, 2, ... (λ is part of δ here)
    x_{t1}^k = √(ᾱ_{t1} / ᾱ_{t0}) x_{t0}^k + √(1 − ᾱ_{t1} / ᾱ_{t0}) ε

which in ComfyUI's terms, x = x₀ + σε with σ² = 1/ᾱ − 1, adds noise of variance σ_{t1}² − σ_{t0}².
"""

from torch import Tensor, arange, minimum
from torch.nn.functional import interpolate, max_pool2d


def translated(frame: Tensor, right: int, down: int) -> Tensor:
    """``frame`` (..., H, W) moved by whole cells; what enters is what leaves, as in a mirror along the border.

    Whole cells, as the authors' nearest neighbour: interpolation would average noise, and a model takes the lesser
    spread for less noise.
    """
    return frame[..., _source(frame.shape[-2], down)[:, None], _source(frame.shape[-1], right)]


def displacement(frame: int, delta: float, cell: int) -> int:
    """How many cells of ``cell`` pixels a frame, counted from 0, has moved at ``delta`` pixels a frame."""
    return round(frame * delta / cell)


def renoised(frame: Tensor, noise: Tensor, sigma: float, sigma_to: float) -> Tensor:
    """DDPM forward: ``frame`` at level ``sigma`` taken to ``sigma_to``, a higher one, by ``noise`` ~ N(0, I)."""
    return frame + noise * (sigma_to**2 - sigma**2) ** 0.5


def foreground(mask: Tensor, height: int, width: int) -> Tensor:
    """Masks (F, H, W), 1 on the salient object, in latent cells, widened by two of these as the authors do."""
    cells = interpolate(mask[:, None].float(), (height, width), mode="nearest-exact")
    return max_pool2d(cells, 5, stride=1, padding=2)[:, 0]


def smoothed(
    frame: Tensor, first: Tensor, own: Tensor, of_first: Tensor, right: int, down: int, alpha: float
) -> Tensor:
    """Background smoothing, §3.3.3: ``frame`` with the share ``alpha`` of the moved ``first`` where neither has its
    foreground: M x + (1 − M) (α W(x¹) + (1 − α) x), M the union of the frame's and the moved first frame's.

    The paper has the frame's foreground alone. The authors' code leaves out the moved one, too, where the first frame
    has no background to give.
    """
    background = (1 - own) * (1 - translated(of_first, right, down))
    return frame + alpha * background.to(frame) * (translated(first, right, down) - frame)


def _source(size: int, shift: int) -> Tensor:
    """For each cell of a row the one it is taken from: 1 0 | 0 1 2 3 | 3 2, mirrors facing each other."""
    index = (arange(size, device="cpu") - shift) % (2 * size)
    return minimum(index, 2 * size - 1 - index)
