"""STAM and fine-coarse frame attention, against what EI²'s supplement proves and against loops, in float64."""

import math

import pytest
import torch
from coherence.attention.sites import Site
from coherence.techniques.cross_frame import CrossFrame
from coherence.techniques.fine_coarse import FineCoarse, GridError, coarse
from coherence.techniques.stam import STAM, UNIT, keep_unit, tensors_of, unit
from coherence.techniques.technique import AttentionCall
from coherence.techniques.temporal import TemporalAttention, attend
from hypothesis import given, settings
from hypothesis import strategies as st

EXACT = 1e-12
seeds, norms = st.integers(0, 2**31), st.sampled_from(["spectral", "frobenius"])
heads_and_width = st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([2, 3, 8])).map(lambda p: (p[0], p[0] * p[1]))


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(seed, heads, width, norm="spectral", **how):
    """A STAM with random weights, those of ``UNIT`` with norm 1, and a bias: as a tuned one."""
    stam = STAM(width, heads, **how).double()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(stam.named_parameters()):
            parameter.copy_(draw(seed + number, *parameter.shape))
            if name in UNIT:
                parameter.copy_(unit(parameter, norm))
    return stam.requires_grad_(False)


def largest(x):
    return x.abs().max().item()


def norm_of(weight, norm):
    return torch.linalg.matrix_norm(weight.detach().double(), 2 if norm == "spectral" else "fro").item()


# The weights of norm 1 ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seeds, heads_and_width, norms)
def test_value_and_output_weights_have_norm_1_from_the_start(seed, heads_and_width, norm):
    stam = STAM(heads_and_width[1], heads_and_width[0]).double()
    stam.reset_parameters(norm, torch.Generator().manual_seed(seed))
    assert [norm_of(x, norm) for x in (stam.to_v.weight, stam.to_out.weight)] == pytest.approx([1, 1], abs=1e-6)
    assert stam.gate == 0
    assert not stam.to_out.bias.any()


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-1])
@pytest.mark.parametrize(("width", "norm"), [(8, "spectral"), (64, "spectral"), (64, "frobenius")])
@pytest.mark.parametrize("start", ["random", "orthogonal"])
def test_the_norms_stay_1_at_every_step_of_training(start, width, norm, rate):
    """At these rates other singular vectors overtake the largest within a few steps."""
    stam = layer(5, 2, width).float().requires_grad_(True)
    if start == "orthogonal":
        stam.reset_parameters(norm, torch.Generator().manual_seed(0))
        torch.nn.init.constant_(stam.gate, 0.5)
    keep_unit(stam, norm)
    z, target = (draw(seed, 4, 16, width).float() for seed in (7, 8))
    optimizer = torch.optim.AdamW(stam.parameters(), lr=rate)
    for _ in range(12):
        optimizer.zero_grad()
        (stam(z, range(4)) - target).square().mean().backward()
        optimizer.step()
        seen = [stam.to_v.weight, stam.to_out.weight]
        assert [norm_of(x, norm) for x in seen] == pytest.approx([1, 1], abs=1e-3)
    tensors = tensors_of(stam, norm)
    assert [norm_of(tensors[name], norm) for name in UNIT] == pytest.approx([1, 1], abs=1e-6)
    assert all(largest(tensors[name] - x) < 1e-3 for name, x in zip(UNIT, seen, strict=True))


@pytest.mark.parametrize("width", [6, 64])
def test_the_norms_gradient_is_autograds_through_the_decomposition(width):
    stam = layer(3, 2, width)
    with torch.no_grad():
        stam.to_v.weight.mul_(3)
    reference, weights = stam.to_v.weight.clone().requires_grad_(), draw(9, width, width)
    (reference / torch.linalg.matrix_norm(reference, 2) * weights).sum().backward()
    keep_unit(stam.requires_grad_(True), "spectral")
    (stam.to_v.weight * weights).sum().backward()
    assert largest(stam.to_v.parametrizations.weight.original.grad - reference.grad) < 1e-8


def test_weights_of_zeros_stay_zeros():
    assert not unit(torch.zeros(3, 3), "spectral").any()


# The residual branch --------------------------------------------------------------------------------------------------

clips = st.tuples(st.integers(2, 6), st.integers(1, 5), st.integers(1, 2))  # frames, tokens, clips


@settings(max_examples=40, deadline=None)
@given(seeds, heads_and_width, clips, norms)
def test_the_residual_is_odd_around_its_bias_and_blind_to_what_all_frames_share(seed, heads_and_width, clip, norm):
    heads, width = heads_and_width
    frames, tokens, copies = clip
    stam, z = layer(seed, heads, width, norm), draw(seed, copies * frames, tokens, width)
    residual = stam.branch(z, frames)
    assert largest(residual + stam.branch(-z, frames) - 2 * stam.to_out.bias) < EXACT
    shared = 5 * draw(seed + 1, copies, 1, tokens, width)
    moved = (z.unflatten(0, (copies, frames)) + shared).flatten(0, 1)
    assert largest(stam.branch(moved, frames) - residual) < EXACT * 100
    assert largest(residual - stam.to_out.bias) > 1e-6  # it sees what frames do not share


@settings(max_examples=20, deadline=None)
@given(seeds, heads_and_width, st.integers(1, 5))
def test_a_single_frame_gets_the_bias_alone(seed, heads_and_width, tokens):
    heads, width = heads_and_width
    stam = layer(seed, heads, width)
    residual = stam.branch(draw(seed, 2, tokens, width), 1)
    assert torch.equal(residual, stam.to_out.bias.expand_as(residual))


@settings(max_examples=20, deadline=None)
@given(seeds, clips)
def test_a_shut_gate_adds_nothing_bitwise_and_an_open_one_its_tangent(seed, clip):
    frames, tokens, copies = clip
    stam, z = layer(seed, 2, 8), draw(seed, copies * frames, tokens, 8)
    assert largest(stam(z, range(frames)) - math.tanh(stam.gate) * stam.branch(z, frames)) < EXACT
    stam.gate.zero_()
    assert torch.equal(z + stam(z, range(frames)), z)


def test_every_clip_and_every_position_is_for_itself():
    stam, z = layer(0, 2, 8), draw(0, 2 * 3, 4, 8)
    residual = stam.branch(z, 3)
    for clip in range(2):
        for token in range(4):
            rows = slice(3 * clip, 3 * clip + 3)
            alone = stam.branch(z[rows, token : token + 1], 3)
            assert largest(residual[rows, token : token + 1] - alone) < EXACT


def test_the_frobenius_norm_nearly_switches_stam_off():
    """At width 320 the residual is about a hundredth of the spectral one's."""
    z = draw(1, 8, 4, 320)
    sizes = {}
    for norm in ("spectral", "frobenius"):
        stam = STAM(320, 8).double()
        stam.reset_parameters(norm, torch.Generator().manual_seed(0))
        sizes[norm] = stam.branch(z, 8).square().mean().sqrt().item()
    assert sizes["frobenius"] < 0.02 * sizes["spectral"]
    assert sizes["frobenius"] > 0


# Proposition 3 --------------------------------------------------------------------------------------------------------


def largest_variance(x):
    """‖Cov‖ of the rows of ``x`` (…, channels)."""
    rows = x.flatten(0, -2) - x.flatten(0, -2).mean(dim=0)
    return torch.linalg.matrix_norm(rows.T @ rows / len(rows), 2).item()


def attend_by(maps):
    """Attention with ``maps`` (heads, frames, frames), whatever queries and keys are."""

    def attention(q, k, v, heads, **_):
        return torch.einsum("hij,rjhc->rihc", maps, v.unflatten(-1, (heads, -1))).flatten(2)

    return attention


@settings(max_examples=40, deadline=None)
@given(seeds, heads_and_width, st.integers(2, 6), st.sampled_from([0.0, 1.0, 1e3]))
def test_with_given_maps_the_residuals_covariance_is_bounded_by_the_features(seed, heads_and_width, frames, sharpness):
    """Proposition 3 as it is proved: maps are given, frames are independent, N(µ, Σ). Then no sample is needed: the
    residual is linear, and its covariance at every frame known. The bound is Σ(ẑ) = (1 − 1/n)Σ, of the centred
    features, with any number of heads: Σⱼ Dᵢⱼ (Wᵥ ᵀ Wᵥ) Dᵢⱼ ≤ maxₕ ω, Dᵢⱼ the heads' weights on the diagonal."""
    heads, width = heads_and_width
    maps = (sharpness * draw(seed, heads, frames, frames)).softmax(-1)
    stam = layer(seed, heads, width, attention=attend_by(maps))
    basis = torch.eye(frames * width, dtype=torch.float64).unflatten(1, (frames, width)).transpose(0, 1)
    linear = stam.branch(basis, frames) - stam.to_out.bias  # (frames, frames · width in, width out)
    root = draw(seed + 1, width, width)
    sigma = root @ root.T
    added = linear.mT @ torch.block_diag(*[sigma] * frames) @ linear
    bound = (1 - 1 / frames) * torch.linalg.matrix_norm(sigma, 2)
    assert (torch.linalg.matrix_norm(added, 2) <= bound * (1 + 1e-9)).all()


def gaussian_clips(seed, frames, width, tokens=400):
    """Frames of N(µ, Σ), independent, with as many samples as tokens."""
    return draw(seed, frames, tokens, width) @ draw(seed + 1, width, width) * width**-0.5 + draw(seed + 2, width)


def covariance_ratio(stam, z):
    """‖Cov(residual)‖ / ‖Σ(ẑ)‖ with the layer's own maps."""
    return largest_variance(stam.branch(z, len(z))) / largest_variance(z - z.mean(dim=0))


@settings(max_examples=8, deadline=None)
@given(seeds, st.sampled_from([(1, 32), (2, 32), (2, 64)]), st.integers(2, 8))
def test_with_its_own_maps_a_layer_keeps_within_the_bound(seed, heads_and_width, frames):
    heads, width = heads_and_width
    z = gaussian_clips(seed, frames, width)
    assert covariance_ratio(layer(seed, heads, width), z) < 1.03
    fresh = STAM(width, heads).double().requires_grad_(False)
    fresh.reset_parameters("spectral", torch.Generator().manual_seed(seed))
    assert covariance_ratio(fresh, z) < 1.03


def test_sharp_maps_of_narrow_heads_exceed_the_bound_with_one_head_too():
    """What the proof leaves out: maps that look for the frames farthest from the mean are no given maps."""
    stam = STAM(2, 1).double().requires_grad_(False)
    stam.reset_parameters("spectral", torch.Generator().manual_seed(0))
    stam.to_q.weight.mul_(100)
    assert 1.5 < covariance_ratio(stam, gaussian_clips(0, 8, 2)) < 8


# Tune-A-Video's layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
def test_temporal_attention_knows_the_order_of_frames_only_if_it_is_told(ordered):
    temporal = TemporalAttention(8, 2, ordered).double().requires_grad_(False)
    for number, parameter in enumerate(temporal.parameters()):
        parameter.copy_(draw(number, *parameter.shape))
    z, order = draw(1, 4, 3, 8), [2, 0, 3, 1]
    change = largest(temporal(z[order], range(4)) - temporal(z, range(4))[order])
    assert change > 0.1 if ordered else change < EXACT
    assert largest(temporal(z[order], order) - temporal(z, range(4))[order]) < EXACT


# Fine-coarse frame attention ------------------------------------------------------------------------------------------

grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


def fine_coarse(q, k, v, frames, grid, pool, heads=2):
    branches = len(q) // frames
    site = Site("input.1.attn1", 0, "spatial", heads, None)
    call = AttentionCall(
        q, k, v, heads, site, tuple((i, None) for i in range(branches)), tuple(range(frames)), 1.0, grid=grid
    )
    return FineCoarse(pool).attend(call, lambda q, k, v: attend(q, k, v, heads))


def qkv(seed, frames, grid, width=4):
    return (draw(seed + n, frames, grid[0] * grid[1], width) for n in range(3))


def seen_by(frame, x, frames, grid, pool):
    """The keys or values of one frame, one by one."""
    height, width = grid
    rows = list(x[frame])
    for other in range(frames):
        if other == frame:
            continue
        picture = x[other].reshape(height, width, -1)
        for top in range(0, height, pool):
            for left in range(0, width, pool):
                cell = [
                    picture[y, x]
                    for y in range(top, min(top + pool, height))
                    for x in range(left, min(left + pool, width))
                ]
                rows.append(sum(cell) / len(cell))
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(2, 4), grids, st.integers(1, 6))
def test_fine_coarse_attention_is_its_definition_on_every_grid(seed, frames, grid, pool):
    q, k, v = qkv(seed, 2 * frames, grid)
    ours = fine_coarse(q, k, v, frames, grid, pool)
    for branch in range(2):
        rows = slice(branch * frames, (branch + 1) * frames)
        for frame in range(frames):
            keys, values = (seen_by(frame, x[rows], frames, grid, pool) for x in (k, v))
            one = q[rows][frame].unflatten(-1, (2, -1)).transpose(0, 1)
            keys, values = (x.unflatten(-1, (2, -1)).transpose(0, 1) for x in (keys, values))
            expected = ((one @ keys.mT / math.sqrt(2)).softmax(-1) @ values).transpose(0, 1).flatten(1)
            assert largest(ours[rows][frame] - expected) < EXACT


def test_a_clip_of_one_frame_is_self_attention_bitwise():
    q, k, v = qkv(0, 2, (3, 5))
    assert torch.equal(fine_coarse(q, k, v, 1, None, 2), attend(q, k, v, 2))


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(2, 4), grids)
def test_with_pool_1_it_is_full_attention_among_all_frames(seed, frames, grid):
    q, k, v = qkv(seed, frames, grid)
    joint = [x.flatten(0, 1)[None] for x in (q, k, v)]
    assert largest(fine_coarse(q, k, v, frames, grid, 1).flatten(0, 1) - attend(*joint, 2)[0]) < EXACT


@settings(max_examples=10, deadline=None)
@given(seeds, st.permutations([1, 2, 3]), grids)
def test_the_order_of_the_other_frames_does_not_matter(seed, order, grid):
    q, k, v = qkv(seed, 4, grid)
    moved = [x[[0, *order]] for x in (k, v)]
    assert largest(fine_coarse(q, k, v, 4, grid, 2)[0] - fine_coarse(q, *moved, 4, grid, 2)[0]) < EXACT


@pytest.mark.parametrize("keys", ["first", "previous", "first_and_previous"])
def test_a_clip_that_stands_still_is_changed_by_coarse_keys_alone(keys):
    q, k, v = (x.expand(4, -1, -1) for x in qkv(0, 1, (4, 6)))
    alone = attend(q, k, v, 2)
    assert largest(fine_coarse(q, k, v, 4, (4, 6), 2) - alone) > 0.1 * largest(alone)
    assert largest(fine_coarse(q, k, v, 4, (4, 6), 1) - alone) < EXACT
    site = Site("input.1.attn1", 0, "spatial", 2, None)
    call = AttentionCall(q, k, v, 2, site, ((0, None),), (0, 1, 2, 3), 1.0, grid=(4, 6))
    crossed = CrossFrame(keys).attend(call, lambda q, k, v: attend(q, k, v, 2))
    assert largest(crossed - alone) < EXACT


def test_it_takes_heads_that_are_already_apart():
    q, k, v = qkv(0, 3, (3, 2), width=8)
    split = [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v)]
    site = Site("input.1.attn1", 0, "spatial", 2, None)
    call = AttentionCall(*split, 2, site, ((0, None),), (0, 1, 2), 1.0, grid=(3, 2))
    apart = FineCoarse(2).attend(call, torch.nn.functional.scaled_dot_product_attention)
    assert largest(apart.transpose(1, 2).flatten(2) - fine_coarse(q, k, v, 3, (3, 2), 2)) < EXACT


def test_equal_tokens_have_themselves_as_mean():
    assert torch.equal(coarse(torch.full((2, 15, 3), 0.5), (3, 5), 2), torch.full((2, 6, 3), 0.5))


def test_a_layer_that_does_not_tell_its_grid_is_refused():
    with pytest.raises(GridError, match=r"at input\.1\.attn1.*sparse_causal"):
        fine_coarse(*qkv(0, 2, (3, 2)), 2, None, 2)
