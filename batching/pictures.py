"""Look at what runs saved: frames of clips and pictures, and how steady a clip is. Needs Pillow, NumPy and PyAV."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

Json = dict[str, Any]
VIDEOS = {".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v"}
PICTURES = {".webp", ".gif", ".png", ".apng", ".jpg", ".jpeg", ".bmp", ".tiff", ".avif"}
_LARGEST_SIDE = 512  # of frames that are measured: larger ones are made smaller first
_MOST_PAIRS = 48
_LEAST_SIDE = 11  # of SSIM's window
PACKAGES = {"PIL": "pillow", "numpy": "numpy", "av": "av", "matplotlib": "matplotlib"}


def missing(*modules: str) -> list[str]:
    """Those of the packages that this Python lacks, as pip calls them."""
    return [PACKAGES[module] for module in modules if find_spec(module) is None]


def can_read(path: Path) -> bool:
    """Whether a file is a picture or a clip that this Python can open."""
    suffix = path.suffix.lower()
    return (suffix in PICTURES and not missing("PIL")) or (suffix in VIDEOS and not missing("PIL", "av"))


def frames(path: Path) -> "list[Image.Image]":
    """All frames of a clip or a picture; empty if the file is damaged or of a kind that cannot be read."""
    from PIL import Image, ImageSequence, UnidentifiedImageError

    if not can_read(path):
        return []
    if path.suffix.lower() in VIDEOS:
        import av

        try:
            with av.open(str(path)) as container:
                return [frame.to_image() for frame in container.decode(video=0)]
        except (av.FFmpegError, IndexError):
            return []
    try:
        with Image.open(path) as image:
            return [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
    except (UnidentifiedImageError, OSError):
        return []


def is_clip(path: Path) -> bool:
    """Whether a file holds more than one frame."""
    return len(frames(path)) > 1


def show(record: Json, folder: Path, most: int) -> "list[Image.Image]":
    """What a run is shown by: at most ``most`` frames, evenly spaced, of its first clip, else its first pictures.

    What was saved is preferred to previews.
    """
    groups: dict[tuple[bool, str], list[Path]] = {}
    for file in record["files"]:
        if can_read(folder / file["path"]):
            groups.setdefault((file["kind"] != "output", file["node"]), []).append(folder / file["path"])
    shown: list[Image.Image] = []
    for is_preview in (False, True):
        for paths in (paths for (preview, _), paths in groups.items() if preview == is_preview):
            if len(paths) == 1 and len(clip := frames(paths[0])) > 1:
                return _spread(clip, most)
            shown = shown or [frame for path in _spread(paths, most) for frame in frames(path)[:1]]
        if shown:
            break
    return shown


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)] if most > 1 else [items[0]]


def steadiness(path: Path) -> float | None:
    """Mean SSIM of neighbouring frames of a clip; None for what is none, or too small.

    Of long clips 48 pairs are measured, evenly spaced; frames larger than 512 pixels are made smaller.
    """
    if missing("PIL", "numpy") or len(clip := frames(path)) < 2 or min(clip[0].size) < _LEAST_SIDE:
        return None
    from ..client.clip import ssim

    values = [float(ssim(_luma(clip[at]), _luma(clip[at + 1]))) for at in _spread(range(len(clip) - 1), _MOST_PAIRS)]
    return sum(values) / len(values)


def _luma(frame: "Image.Image") -> "np.ndarray":
    """Rec. 601, in [0, 1]."""
    import numpy as np

    largest = max(frame.size)
    if largest > _LARGEST_SIDE:
        width, height = (max(round(side * _LARGEST_SIDE / largest), _LEAST_SIDE) for side in frame.size)
        frame = frame.resize((width, height))
    return np.asarray(frame, dtype=np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
