"""What the demo measures and draws of a clip."""

import av
import numpy as np
import pytest
from coherence.client.clip import contact_sheet, read_frames, ssim, temporal_consistency, write_mp4
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, window by window."""
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (image[top : top + 11, left : left + 11] for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variance_a, variance_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
            values.append(luminance * (2 * covariance + 9e-4) / (variance_a + variance_b + 9e-4))
    return float(np.mean(values))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), noise=st.floats(0, 1), height=st.integers(11, 16), width=st.integers(11, 18))
def test_ssim_equals_its_definition(seed, noise, height, width):
    rng = np.random.default_rng(seed)
    x, other = rng.random((2, height, width))
    y = (1 - noise) * x + noise * other
    assert ssim(x, y) == pytest.approx(naive_ssim(x, y), abs=1e-12)


def noisy_clip(noise: float) -> np.ndarray:
    rng = np.random.default_rng(5)
    picture = np.kron(rng.random((4, 4, 3)), np.ones((10, 12, 1)))
    frames = picture + noise * rng.standard_normal((6, *picture.shape))
    return (frames.clip(0, 1) * 255).round().astype(np.uint8)


def test_a_still_clip_is_wholly_consistent_and_flicker_lowers_it():
    still, little, much = (temporal_consistency(noisy_clip(noise)) for noise in (0.0, 0.02, 0.2))
    assert still == pytest.approx(1.0, abs=1e-12)
    assert still > little > much > 0


def save_webp(frames: np.ndarray, path, fps: float) -> None:
    first, *rest = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=rest, duration=int(1000 / fps), lossless=True)


def test_frames_are_read_as_written_even_where_neighbours_are_equal(tmp_path):
    frames = noisy_clip(0.1)[[0, 1, 1, 1, 2, 3, 3]]
    save_webp(frames, tmp_path / "clip.webp", fps=8)
    read, fps = read_frames(tmp_path / "clip.webp")
    assert fps == 8
    np.testing.assert_array_equal(read, frames)


def test_the_mp4_shows_the_same_frames_at_the_same_rate(tmp_path):
    frames = noisy_clip(0.0)[[0] * 5].copy()
    frames[2:] = 255 - frames[2:]
    write_mp4(frames, 12.0, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert (stream.average_rate, stream.codec_context.name) == (12, "h264")
    assert shown.shape == frames.shape
    assert np.abs(shown.astype(float) - frames).mean() < 8


@pytest.mark.parametrize(
    ("count", "size"), [(1, (56, 48)), (3, (160, 48)), (8, (420, 48)), (11, (316, 92)), (50, (420, 92))]
)
def test_a_contact_sheet_holds_the_first_and_the_last_frame(count, size):
    frames = np.full((count, 40, 48, 3), 128, np.uint8)
    frames[0, ..., 0], frames[-1, ..., 2] = 255, 255
    sheet = contact_sheet(frames)
    assert sheet.size == size
    assert sheet.getpixel((10, 10))[0] == 255
    colours = {colour for _, colour in sheet.getcolors()}
    assert any(colour[2] == 255 and colour[1] == 128 for colour in colours)
