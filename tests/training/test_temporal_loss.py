"""GE-Adapter's temporal loss (SPEC §8), in float64 against its closed forms."""

from itertools import pairwise

import pytest
import torch
from coherence.training.temporal_loss import similarities, temporal_loss, temporal_loss_of_layers
from torch.nn.functional import cosine_similarity


def features(frames: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_gradient_of_the_similarity_has_its_closed_form_length(scale):
    x = (scale * features(2, 4, 5, 5)).requires_grad_()
    s = similarities(x.flatten(1))[0]
    each = gradient(s, x).flatten(1).norm(dim=1)
    expected = (1 - s.detach() ** 2).sqrt() / x.detach().flatten(1).norm(dim=1)
    assert torch.allclose(each, expected, rtol=1e-12, atol=0)


def test_the_loss_is_the_mean_square_of_neighbouring_differences():
    x, frames = features(7, 3, 4, 4), 7
    s = torch.stack([(a * b).sum() / a.norm() / b.norm() for a, b in pairwise(x)])
    differences = torch.zeros(frames - 2, frames - 1, dtype=torch.float64)
    for row in range(frames - 2):
        differences[row, row], differences[row, row + 1] = -1, 1
    assert temporal_loss(x, frames).item() == pytest.approx(
        ((differences @ s).norm() ** 2 / (frames - 1)).item(), 1e-12
    )


@pytest.mark.parametrize("frames", [3, 5, 16])
def test_the_gradient_of_the_loss_is_bounded_and_not_zero(frames):
    x = features(frames, 40, seed=frames).requires_grad_()
    lengths = gradient(temporal_loss(x, frames), x).norm(dim=1)
    assert (lengths <= 16 / ((frames - 1) * x.detach().norm(dim=1).min())).all()
    assert (lengths > 1e-6).all()


def test_the_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(lambda x: temporal_loss(x, 4), features(8, 3, 2).requires_grad_(), eps=1e-6)


def test_an_axis_of_length_one_changes_nothing():
    """The published code takes the cosine over one: there it is a sign, and its gradient exactly 0."""
    x = features(5, 12).requires_grad_()
    published = cosine_similarity(x[:-1, :, None], x[1:, :, None], dim=-1).diff(dim=0).square().mean()
    assert gradient(published, x).abs().max() < 1e-12
    ours = gradient(temporal_loss(x, 5), x)
    assert ours.abs().max() > 1e-3
    for shape in ((5, 12, 1), (5, 1, 12), (5, 1, 3, 4)):
        assert torch.equal(gradient(temporal_loss(x.reshape(shape), 5), x), ours)


def test_clips_and_layers_are_averaged_and_never_mixed():
    one, two, other = features(4, 9), features(4, 9, seed=1), features(8, 2, 3, seed=2)
    both = temporal_loss(torch.cat([one, two]), 4)
    assert both.item() == pytest.approx((temporal_loss(one, 4) + temporal_loss(two, 4)).item() / 2)
    layers = temporal_loss_of_layers([torch.cat([one, two]), other], 4)
    assert layers.item() == pytest.approx((both + temporal_loss(other, 4)).item() / 2)


def test_even_change_costs_nothing_and_half_precision_loses_little():
    angle = torch.arange(6, dtype=torch.float64) * 0.3
    assert temporal_loss(torch.stack([angle.cos(), angle.sin()], dim=1), 6) < 1e-30
    x = features(5, 64)
    assert temporal_loss(x.half(), 5).item() == pytest.approx(temporal_loss(x, 5).item(), rel=1e-2)
    zero = torch.zeros(3, 4, requires_grad=True)
    assert gradient(temporal_loss(zero, 3), zero).isfinite().all()


@pytest.mark.parametrize(("rows", "frames", "reason"), [(4, 2, "at least 3"), (7, 3, "whole clips"), (0, 3, "whole")])
def test_too_few_frames_are_refused(rows, frames, reason):
    with pytest.raises(ValueError, match=reason):
        temporal_loss(torch.zeros(rows, 5), frames)
    with pytest.raises(ValueError, match="at least one layer"):
        temporal_loss_of_layers([], 3)
