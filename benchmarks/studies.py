"""What the studies share: the pack inside a ComfyUI, intervals, rank correlations, pictures of the documentation."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PACK = Path(__file__).resolve().parent.parent
PICTURES = PACK / "web" / "docs" / "pictures"
RESAMPLES = 4000
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, as in the nodes' charts: told apart by colour-blind readers too."""


class Estimate(NamedTuple):
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high


def enter_comfyui(comfyui: Path) -> None:
    """Make ComfyUI importable, and the pack as ``coherence``."""
    sys.path.insert(0, str(comfyui))
    import comfy.options  # noqa: F401  (this script owns the command line)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    spec = importlib.util.spec_from_file_location(
        "coherence", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    sys.modules["coherence"] = importlib.util.module_from_spec(spec)


def pack(name: str) -> Any:
    """A module of the pack."""
    return importlib.import_module(f"coherence.{name}")


class LiveTensors(TorchDispatchMode):
    """``peak``: the most bytes that tensors made in this context held at once; views count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = StorageWeakRef(x.untyped_storage())
                self._live[storage.cdata] = storage, x.untyped_storage().nbytes()
        self._live = {key: live for key, live in self._live.items() if not live[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def font(size: int) -> Any:
    """matplotlib's DejaVu Sans, which is the same everywhere; Pillow's own has no ² or λ."""
    from matplotlib.font_manager import findfont
    from PIL import ImageFont

    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def slim(path: Path) -> None:
    """Give a PNG a palette of 256 colours, which takes a third of the bytes: the package for the registry has to stay
    small."""
    from PIL import Image

    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


# Statistics ----------------------------------------------------------------------------------------------------------


def resamples(count: int, seed: int = 0) -> Tensor:
    """The bootstrap's draws of ``count`` units with replacement: (RESAMPLES, count) int64."""
    return torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))


def bootstrap(values: Tensor, seed: int = 0) -> Estimate:
    """The mean of ``values`` and its percentile bootstrap interval (Efron 1979).

    ``values``: (units, ...) of independent units, such as scenes; what of a unit follows on the first axis goes with
    it. NaN counts as not measured.
    """
    units = values.double().reshape(len(values), -1)
    means = units[resamples(len(units), seed)].flatten(1).nanmean(1)
    return Estimate(units.nanmean().item(), *_interval(means))


def _interval(statistics: Tensor) -> tuple[float, float]:
    """NaN where more than one in a hundred resamples has no value: of the rest, the interval would be too narrow."""
    if statistics.isnan().double().mean() > 0.01:
        return math.nan, math.nan
    low, high = statistics.nanquantile(torch.tensor([0.025, 0.975], dtype=statistics.dtype)).tolist()
    return low, high


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last axis, equal values sharing their mean rank; (..., n) float64."""
    smaller = (values[..., None, :] < values[..., :, None]).double().sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).double().sum(-1)
    return smaller + (equal + 1) / 2


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's rank correlation along the last axis, (...,) float64; NaN where all of one are equal."""
    a, b = (each - each.mean(-1, keepdim=True) for each in (ranks(x), ranks(y)))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def permutation_p(x: Tensor, y: Tensor) -> float:
    """Exact two-sided p-value of :func:`spearman` of two short vectors (n,): the share of all n! orders of ``y`` that
    correlate with ``x`` at least as strongly; NaN where all of one are equal."""
    if len(x) > 8:
        raise ValueError(f"x has {len(x)} values, expected at most 8: all their orders are tried")
    orders = torch.tensor(list(permutations(range(len(y)))))
    rho = spearman(x, y)
    as_strong = spearman(x.expand(len(orders), -1), y[orders]).abs() >= rho.abs() - 1e-9
    return torch.where(rho.isnan(), torch.nan, as_strong.double().mean()).item()


def rank_correlation(entropy: Tensor, damage: Tensor, seed: int = 0) -> dict[str, Any]:
    """How the damage of layers goes with their entropy; ``entropy``, ``damage``: (scenes, layers).

    Of the means over scenes: ``rho``; ``by_scenes``, its interval with scenes resampled: would other pictures of this
    model say the same; ``by_layers``, with layers resampled as well: would other layers; ``p``, exact.
    """
    scenes, layers = damage.shape
    drawn = resamples(scenes, seed)
    x, y = entropy[drawn].mean(1), damage[drawn].mean(1)
    chosen = resamples(layers, seed + 1)
    mean_x, mean_y = entropy.mean(0), damage.mean(0)
    return {
        "rho": spearman(mean_x, mean_y).item(),
        "by_scenes": _interval(spearman(x, y)),
        "by_layers": _interval(spearman(x.gather(1, chosen), y.gather(1, chosen))),
        "p": permutation_p(mean_x, mean_y),
    }


# Markdown ------------------------------------------------------------------------------------------------------------


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float, form: str) -> str:
    """``value`` with a true minus sign; zero has no sign, and what is not there is a dash."""
    text = format(value, form)
    text = text if any(digit in text for digit in "123456789") else text.lstrip("+-")
    return "–" if math.isnan(value) else text.replace("-", "−")


def between(low: float, high: float, form: str) -> str:
    """``−0.01 to +0.30``."""
    return "–" if math.isnan(low) else f"{number(low, form)} to {number(high, form)}"


def shown(estimate: Estimate, form: str) -> str:
    """``+0.12 (−0.01 to +0.30)``."""
    return f"{number(estimate.value, form)} ({between(estimate.low, estimate.high, form)})"
