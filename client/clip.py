"""Look at a clip: frames, temporal consistency, contact sheet, MP4."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

_SIGMA, _RADIUS = 1.5, 5


def _blur(images: np.ndarray) -> np.ndarray:
    """Gaussian window 11×11, σ = 1.5, over the last two axes; only where it lies inside the picture."""
    weights = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (-2, -1):
        windows = np.lib.stride_tricks.sliding_window_view(images, len(weights), axis)
        images = windows @ weights
    return images


def ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004, eq. 13) of grey pictures in [0, 1].

    Args:
        x, y: Shape (..., height, width), each side at least 11 pixels.

    Returns:
        Mean over the picture, shape (...).
    """
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(axis=(-2, -1))


def read_frames(path: Path) -> tuple[np.ndarray, float]:
    """Frames (count, height, width, 3) uint8 and frames per second of an animated picture.

    Equal frames that the file joined into a longer one are told apart again by its durations.
    """
    with Image.open(path) as image:
        frames, durations = [], []
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB")))
            durations.append(round(frame.info.get("duration", 0)) or 100)
    shortest = math.gcd(*durations)
    repeats = [duration // shortest for duration in durations]
    return np.repeat(np.stack(frames), repeats, axis=0), 1000 / shortest


def temporal_consistency(frames: np.ndarray) -> float:
    """Mean SSIM of the luma (Rec. 601) of neighbouring frames (count ≥ 2, height, width, 3) uint8."""
    luma = frames.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    return float(ssim(luma[:-1], luma[1:]).mean())


def contact_sheet(frames: np.ndarray, most: int = 16) -> Image.Image:
    """At most ``most`` frames, evenly spaced in time, side by side in rows of at most 8."""
    count = min(most, len(frames))
    chosen = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    columns = math.ceil(count / math.ceil(count / 8))
    gap, (height, width) = 4, frames.shape[1:3]
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for index, frame in enumerate(chosen):
        place = (index % columns * (width + gap) + gap, index // columns * (height + gap) + gap)
        sheet.paste(Image.fromarray(frame), place)
    return sheet


def write_mp4(frames: np.ndarray, fps: float, path: Path) -> None:
    """H.264 in MP4, which every player and browser shows; odd sides lose their last pixel."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = (side // 2 * 2 for side in frames.shape[1:3])
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "14"}
        for frame in frames[:, : stream.height, : stream.width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        container.mux(stream.encode(None))


def look(clip: Path, sheet: Path, mp4: Path | None = None) -> dict[str, Any]:
    """Write the contact sheet, and the MP4 if one is asked for; returns what was measured."""
    frames, fps = read_frames(clip)
    contact_sheet(frames).save(sheet)
    if mp4:
        write_mp4(frames, fps, mp4)
    consistency = temporal_consistency(frames) if len(frames) > 1 else None
    return {"frames": len(frames), "fps": fps, "temporal_consistency": consistency}
