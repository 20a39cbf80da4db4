"""The maps that are looked at: right, labelled, and refused where they would not fit."""

import math

import pytest
import torch
from coherence.attention.maps import MAX_CELLS, MAX_MAPS, MapRecorder, MapTooLargeError, mean_map
from coherence.attention.sites import NoSuchSiteError, Site
from coherence.demo.model import load_model
from coherence.techniques.technique import AttentionCall
from measured import maps_of
from register_runs import demo_start, start_of
from tiny_models import FAMILIES


@pytest.fixture(scope="module")
def unet():
    return load_model()


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def call(q, k, kind="spatial", frame_indices=(0,), frames_in="rows", **options) -> AttentionCall:
    """q, k: (rows, heads, tokens, channels)."""
    site = Site("middle.0.attn1", 0, kind, q.shape[1], torch.nn.Identity(), frames_in=frames_in)
    return AttentionCall(q, k, k, q.shape[1], site, ((0, None),), frame_indices, 1.0, **options)


def recorded(attention_call, threshold=1.0, memory=math.inf):
    recorder = MapRecorder(threshold, lambda device: memory, recording=True)
    assert torch.equal(recorder.attend(attention_call, lambda q, k, v: 2 * v), 2 * attention_call.v)
    return recorder.maps


@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
def test_a_map_is_the_mean_over_heads_of_the_softmax(mask):
    q, k = random(3, 1, 20, 8)[:, 0], random(3, 30, 8)
    hidden = torch.arange(30) % 4 == 1
    added = torch.zeros(3, 1, 30).masked_fill(hidden, -torch.inf)
    masks = {None: None, "boolean": ~hidden.expand(3, 1, 30), "additive": added}
    scores = torch.einsum("hqc,hkc->hqk", q.double(), k.double()) * 0.7 + (0 if mask is None else added)
    result = mean_map(q, k, 0.7, masks[mask])
    assert torch.allclose(result.double(), scores.softmax(-1).mean(0), atol=1e-6)


def test_a_map_for_each_frame_and_sixteen_at_most():
    q, k = random(3, 2, 8, 4), random(1, 2, 8, 4).expand(3, -1, -1, -1)
    maps = recorded(call(q, k, frame_indices=(4, 5, 9)))
    assert [each.label for each in maps] == [f"frame {i}, mean of 2 heads" for i in (4, 5, 9)]
    for each, row, keys in zip(maps, q, k, strict=True):
        assert torch.equal(each.plain, mean_map(row, keys, None))
    many = random(40, 2, 8, 4)
    assert len(recorded(call(many, many, frame_indices=tuple(range(40))))) == MAX_MAPS


def test_a_clip_attended_as_a_whole_has_one_map_without_a_frame():
    q = random(1, 2, 12, 4)
    (only,) = recorded(call(q, q, "joint", frame_indices=(0, 1, 2), frames_in="tokens"))
    assert only.label == "mean of 2 heads"


def test_temporal_maps_are_the_mean_over_positions():
    q, k = random(50, 2, 6, 4), random(50, 2, 6, 4)
    (only,) = recorded(call(q, k, "temporal", frame_indices=tuple(range(6))))
    assert only.label == "mean of 2 heads and 50 positions"
    reference = torch.stack([mean_map(a, b, None) for a, b in zip(q, k, strict=True)]).mean(0)
    assert torch.allclose(only.plain, reference, atol=1e-6)


def test_the_threshold_counts_in_even_weights():
    q = torch.zeros(1, 1, 4, 2)
    q[0, 0, 0] = torch.tensor([1.0, 0.0])
    k = torch.zeros(1, 1, 4, 2)
    k[0, 0, 2, 0] = 10
    weight = recorded(call(q, k))[0].plain[0, 2].item()
    assert weight > 0.99
    for threshold, peaks in ((0.5, 13), (1.5, 1), (4 * weight - 0.01, 1), (4 * weight + 0.01, 0)):
        assert recorded(call(q, k), threshold)[0].above.sum() == peaks


def test_large_maps_are_shown_as_means_over_cells():
    q, k = random(1, 1, 2 * MAX_CELLS, 4), random(1, 1, 40, 4)
    (only,) = recorded(call(q, k))
    assert (only.plain.shape, only.tokens, only.keys) == ((MAX_CELLS, 40), 2 * MAX_CELLS, 40)
    full = mean_map(q[0], k[0], None)
    assert torch.allclose(only.plain, (full[::2] + full[1::2]) / 2, atol=1e-6)
    assert set(only.above.unique().tolist()) == {0.0, 0.5, 1.0}


def test_a_map_that_does_not_fit_memory_is_refused_with_the_figures():
    q = random(1, 2, 1000, 4)
    assert recorded(call(q, q), memory=12_000_000)
    with pytest.raises(
        MapTooLargeError, match=r"1,000 × 1,000 .* needs 12,000,000 bytes, but 11,999,999 are available"
    ):
        recorded(call(q, q), memory=11_999_999)


def test_maps_of_a_run_are_those_of_the_step_that_was_asked_for(unet):
    start = demo_start(unet)
    runs = [maps_of(unet, start, step) for step in (0, 2)]
    for site, maps in runs:
        assert site.name == "middle.0.attn1"
        assert [each.label[:7] for each in maps] == ["frame 0", "frame 1", "frame 2"]
        for each in maps:
            assert torch.allclose(each.plain.sum(1), torch.ones(16), atol=1e-5)
    (_, first), (_, third) = runs
    assert not torch.allclose(first[0].plain, third[0].plain, atol=1e-3)


def test_cross_attention_can_be_looked_at_by_its_whole_name(unet):
    site, maps = maps_of(unet, demo_start(unet), layer="middle.0.attn2")
    assert (site.kind, maps[0].plain.shape) == ("cross", (16, 32))


def test_a_video_transformer_has_one_map_of_the_whole_clip(tiny_models):
    model, family = tiny_models.load("wan21"), FAMILIES["wan21"]
    start = start_of(model, family.conditioning()[0], family.latent_shape)
    site, (only,) = maps_of(model, start, layer="blocks.2")
    assert (site.name, only.tokens, only.label) == ("blocks.2.self_attn", 192, "mean of 2 heads")


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"layer": "output"}, ValueError, r"expected one layer, but 'output' names 4: output\.0\.attn1, .* Write one"),
        ({"layer": "blocks.3"}, NoSuchSiteError, r"'blocks\.3' matches no .*middle\.0\.attn1"),
        ({"step": 4}, ValueError, "step: 4 does not exist, the run has 4 steps: 0 to 3"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_what_can(unet, options, error, reason):
    with pytest.raises(error, match=reason):
        maps_of(unet, demo_start(unet), **options)
