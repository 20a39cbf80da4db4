"""The running average over frames: what it keeps, what it smooths, and its two ends."""

import numpy as np
import pytest
import torch
from coherence.frames.running import running_average
from hypothesis import given, settings
from hypothesis import strategies as st

FRAMES = 20
momenta = st.floats(0, 1)
few = settings(max_examples=20, deadline=None)


def noise(frames: int = FRAMES, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@few
@given(momentum=momenta, slope=st.floats(-5, 5), frames=st.integers(1, 30))
def test_a_steady_change_comes_out_as_it_went_in(momentum, slope, frames):
    line = (1 + slope * torch.arange(frames, dtype=torch.float64))[:, None]
    torch.testing.assert_close(running_average(line, momentum), line, rtol=1e-7, atol=1e-7)


def test_without_momentum_nothing_is_averaged():
    assert torch.equal(running_average(noise(), 0.0), noise())


def test_with_full_momentum_all_frames_lie_on_the_least_squares_line():
    x = np.arange(FRAMES)
    expected = np.stack([np.polyval(np.polyfit(x, y, 1), x) for y in noise().numpy().T], axis=1)
    torch.testing.assert_close(running_average(noise(), 1.0), torch.from_numpy(expected))


def test_each_frame_lies_on_the_line_of_weighted_least_squares():
    x, momentum = np.arange(FRAMES), 0.8
    for frame in (0, 7, FRAMES - 1):
        weights = np.sqrt(momentum ** abs(x - frame))  # polyfit squares them
        expected = [np.polyval(np.polyfit(x, y, 1, w=weights), frame) for y in noise().numpy().T]
        assert running_average(noise(), momentum)[frame].tolist() == pytest.approx(expected)


def test_the_more_momentum_the_less_follows_from_frame_to_frame():
    steps = [running_average(noise(), momentum).diff(dim=0).abs().mean().item() for momentum in (0, 0.5, 0.8, 0.95, 1)]
    assert steps == sorted(steps, reverse=True)
    assert steps[-2] < 0.1 * steps[0]


@few
@given(momentum=momenta)
def test_it_is_linear_and_does_not_know_before_from_after(momentum):
    a, b = noise(), noise(seed=1)
    both = running_average(2 * a - b, momentum)
    torch.testing.assert_close(both, 2 * running_average(a, momentum) - running_average(b, momentum))
    torch.testing.assert_close(running_average(a.flip(0), momentum).flip(0), running_average(a, momentum))
