"""Momentum and cross-frame attention on picture transformers: the picture's keys cross frames, the text's do not."""

from __future__ import annotations

import pytest
import torch
from coherence.attention.sites import sites_of
from coherence.attention.tap import tap
from coherence.techniques.cross_frame import CrossFrame
from coherence.techniques.fine_coarse import FineCoarse
from coherence.techniques.momentum import TemporalMomentum
from picture_runs import SAME, WatchAfter, momentum, patched
from tiny_models import FAMILIES, sample
from watching import difference

PICTURES = [name for name, family in FAMILIES.items() if family.unet_config and name != "anima"]
"""Anima attends as a UNet does: to the picture, then to the text."""
MU = 0.8


@pytest.fixture(scope="module", params=PICTURES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family, tiny_models):
    return tiny_models.load(next(name for name, each in FAMILIES.items() if each is family))


@pytest.fixture(scope="module")
def noise(family):
    return torch.randn(family.latent_shape, generator=torch.Generator().manual_seed(3))


def draw(model, family, noise, steps=2):
    how = {"steps": steps, "cfg": 3.0, "scheduler": "simple"}
    return sample(model, family, empty=torch.zeros_like(noise), noise=noise, **how)


@pytest.fixture(scope="module")
def plain(model, family, noise):
    return draw(model, family, noise)


@pytest.fixture(scope="module")
def with_momentum(model, family, noise):
    return draw(momentum(model), family, noise)


def test_momentum_of_0_changes_nothing(model, family, noise, plain):
    assert difference(draw(momentum(model, 0.0), family, noise), plain) <= 1e-5


def test_one_frame_is_the_plain_model_to_the_bit(model, family, noise):
    assert torch.equal(draw(momentum(model), family, noise[:1]), draw(model, family, noise[:1]))


def test_a_frame_reaches_those_after_it_alone(model, family, noise, plain, with_momentum):
    changed = noise.clone()
    changed[2] = torch.randn(changed[2].shape, generator=torch.Generator().manual_seed(4))
    without, with_it = draw(model, family, changed), draw(momentum(model), family, changed)
    parted = [difference(a, b) > SAME for a, b in zip(without, plain, strict=True)]
    assert parted == [False, False, True, False]
    parted = [difference(a, b) > SAME for a, b in zip(with_it, with_momentum, strict=True)]
    assert parted == [False, False, True, True]
    assert difference(with_momentum, plain) > 0.005


def test_the_first_frames_alone_are_those_of_the_whole_clip(model, family, noise, with_momentum):
    assert difference(draw(momentum(model), family, noise[:2]), with_momentum[:2]) <= SAME


@pytest.mark.parametrize("technique", [TemporalMomentum(MU), CrossFrame("first"), CrossFrame("first_and_previous")])
def test_chunks_of_frames_give_the_whole_clip(model, family, noise, technique):
    chunked = momentum(patched(model, technique), 0.0, frames_per_batch=3)
    whole = momentum(patched(model, technique), 0.0)
    assert difference(draw(chunked, family, noise), draw(whole, family, noise)) <= SAME


def keys_of_first_layer(model, family, noise):
    """k and v of the first layer of text and picture, one branch's rows, and where the picture lies."""
    site = next(site for site in sites_of(model) if site.kind == "joint")
    watch = WatchAfter()
    draw(tap(model, watch, layers=site.name, kinds=["joint"], asked_by="test")[0], family, noise, steps=1)
    call = watch.calls[0]
    return call, (call.k[: call.frames].double(), call.v[: call.frames].double())


@pytest.mark.parametrize("technique", [TemporalMomentum(MU), CrossFrame("first"), CrossFrame("previous")])
def test_the_pictures_keys_come_from_other_frames_and_all_others_keep_their_bits(model, family, noise, technique):
    _, before = keys_of_first_layer(model, family, noise)
    site = next(site for site in sites_of(model) if site.kind == "joint")
    only_here = tap(model, technique, layers=site.name, kinds=["joint"], by_row=True, asked_by="test")[0]
    call, after = keys_of_first_layer(only_here, family, noise)
    for x, made in zip(before, after, strict=True):
        expected = call.of_frame(x).clone()
        for i in range(1, call.frames):
            if isinstance(technique, TemporalMomentum):
                expected[i] = MU * expected[i - 1] + (1 - MU) * call.of_frame(x)[i]
            else:
                expected[i] = call.of_frame(x)[0 if technique.keys == "first" else i - 1]
        assert difference(call.of_frame(made), expected) <= 1e-6
        end = x.shape[-2] - call.trailing_tokens
        assert torch.equal(made[..., : call.leading_tokens, :], x[..., : call.leading_tokens, :])
        assert torch.equal(made[..., end:, :], x[..., end:, :])
        assert call.leading_tokens >= family.context[0]


@pytest.mark.parametrize(
    ("technique", "pictures"), [(FineCoarse(1), 4), (FineCoarse(2), 1 + 3 / 4), (CrossFrame("first_and_previous"), 2)]
)
def test_further_keys_are_the_pictures_of_other_frames(model, family, noise, technique, pictures):
    site = next(site for site in sites_of(model) if site.kind == "joint")
    only_here = tap(model, technique, layers=site.name, kinds=["joint"], by_row=True, asked_by="test")[0]
    call, (k, _) = keys_of_first_layer(only_here, family, noise)
    assert k.shape[-2] == call.q.shape[-2] + (pictures - 1) * call.tokens_per_frame
    rows, columns = call.grid
    assert rows * columns == call.tokens_per_frame
    assert draw(only_here, family, noise).isfinite().all()
