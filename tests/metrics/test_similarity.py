"""SSIM, PSNR and IoU are what their papers say, checked in float64 against other code and by hand."""

import math

import pytest
import torch
from coherence.client.clip import ssim as ssim_of_numpy
from coherence.metrics.similarity import FINEST, LUMA, iou, psnr, ssim
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


def pictures(count: int, height: int = 24, width: int = 31, seed: int = 0) -> Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ssim_equals_the_definition_written_out_in_numpy() -> None:
    first, second = pictures(3), pictures(3, seed=1)
    blend = 0.8 * first + 0.2 * second
    lumas = [(each @ torch.tensor(LUMA, dtype=torch.float64)).numpy() for each in (first, blend)]
    torch.testing.assert_close(ssim(first, blend), torch.from_numpy(ssim_of_numpy(*lumas)), atol=1e-10, rtol=0)


def test_ssim_of_flat_pictures_is_the_luminance_term() -> None:
    a, b, c1 = 0.3, 0.7, 0.01**2
    first, second = (torch.full((1, 16, 16, 3), value, dtype=torch.float64) for value in (a, b))
    assert ssim(first, second).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-9)


@given(seed=st.integers(0, 100), amount=st.floats(0.01, 1))
def test_ssim_is_one_for_equal_pictures_symmetric_and_less_for_others(seed: int, amount: float) -> None:
    first = pictures(1, seed=seed)
    second = first.lerp(pictures(1, seed=seed + 1), amount)
    assert ssim(first, first).item() == pytest.approx(1, abs=1e-12)
    assert ssim(first, second).item() == pytest.approx(ssim(second, first).item(), abs=1e-12)
    assert ssim(first, second).item() < 1


@given(difference=st.floats(1e-3, 1))
def test_psnr_of_a_constant_difference(difference: float) -> None:
    black = torch.zeros(2, 8, 9, 3, dtype=torch.float64)
    assert psnr(black, black + difference).tolist() == pytest.approx([-20 * math.log10(difference)] * 2)


def test_psnr_of_equal_pictures_is_finite() -> None:
    assert psnr(pictures(1), pictures(1)).item() == pytest.approx(-20 * math.log10(FINEST))


def test_psnr_counts_the_pixels_asked_for_alone() -> None:
    first, where = pictures(2), torch.zeros(2, 24, 31, dtype=torch.bool)
    where[:, :5] = True
    second = torch.where(where[..., None], first + 0.1, first + 10)
    assert psnr(first, second, where).tolist() == pytest.approx([20, 20])
    assert psnr(first, second, ~where).tolist() == pytest.approx([-20, -20])
    assert psnr(first, second, where & False).isnan().all()


def test_iou_of_rectangles() -> None:
    first, second = torch.zeros(4, 10, 10, dtype=torch.bool), torch.zeros(4, 10, 10, dtype=torch.bool)
    first[:3, :6], second[0, :6], second[1, 4:], second[2, 6:] = True, True, True, True
    assert iou(first, second).tolist() == pytest.approx([1, 0.2, 0, 1])


@pytest.mark.parametrize("measure", [ssim, psnr])
def test_what_cannot_be_compared_is_refused(measure) -> None:
    with pytest.raises(ValueError, match=r"\(1, 24, 31, 3\) and \(1, 24, 30, 3\), expected twice the same"):
        measure(pictures(1), pictures(1)[:, :, 1:])
    with pytest.raises(ValueError, match="expected twice the same"):
        measure(pictures(1)[..., :2], pictures(1)[..., :2])


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="10×31 pixels, SSIM needs 11×11"):
        ssim(pictures(1, height=10), pictures(1, height=10))
