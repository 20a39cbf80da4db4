"""Entropy and energy (IE-Adapt §3) against the map itself, in float64."""

import math

import pytest
import torch
from coherence.techniques import entropy as module
from coherence.techniques.entropy import (
    BACKENDS,
    Energy,
    attention_energy,
    attention_entropy,
    chunked,
    flash_cpu,
    indicator_key,
    measure,
    usable_backends,
)
from hypothesis import given, settings
from hypothesis import strategies as st

HALF = {torch.bfloat16: 2e-3, torch.float16: 1e-3}  # normalised; of the mean, half precision throughout
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
RUNNABLE = [flash_cpu, indicator_key, chunked]  # the backends that a CPU has


def tensors(seed, *shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def attention_map(q, k, scale=None, mask=None):
    """softmax(scale·q kᵀ + mask) in float64, (B, H, N_q, N_k)."""
    scores = q.double() @ k.double().mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.double()
    return scores.softmax(dim=-1)


def map_entropy(q, k, scale=None, mask=None):
    """Mean normalised entropy, one head at a time."""
    rows = []
    for head in range(q.shape[1]):
        one = slice(head, head + 1)
        per_head = mask is not None and mask.ndim > 2 and mask.shape[-3] > 1
        a = attention_map(q[:, one], k[:, one], scale, mask[..., one, :, :] if per_head else mask)
        rows.append(torch.special.entr(a).sum(dim=-1))
    return (torch.stack(rows).mean() / math.log(k.shape[2])).item()


def qk_of_blend(alpha, n):
    """Queries and keys whose map is αI + (1−α)U, with scale 1."""
    ratio = math.log((alpha + (1 - alpha) / n) / ((1 - alpha) / n))
    return (torch.eye(n) * ratio)[None, None], torch.eye(n)[None, None]


@pytest.mark.parametrize("backend", RUNNABLE)
def test_entropy_of_identity_is_zero(backend):
    q = 1000 * torch.eye(48)[None, None]
    assert attention_entropy(q, q, backends=(backend,)).mean == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("backend", RUNNABLE)
def test_entropy_of_uniform_is_one(backend):
    q, key = tensors(0, (2, 3, 50, 16), (2, 3, 1, 16))
    k = key.expand(-1, -1, 50, -1)
    assert attention_entropy(q, k, backends=(backend,)).mean == pytest.approx(1, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*(st.integers(1, n) for n in (2, 3, 40, 40, 33))),
    spread=st.floats(0, 1e3),
)
def test_entropy_lies_between_zero_and_one(seed, shape, spread):
    b, h, n_q, n_k, d = shape
    q, k = tensors(seed, (b, h, n_q, d), (b, h, n_k, d))
    for backend in RUNNABLE:
        assert 0 <= attention_entropy(spread * q, k, backends=(backend,)).mean <= 1


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 64), alpha=st.floats(0, 0.98), step=st.floats(0.01, 1))
def test_entropy_of_blend_with_uniform_falls_strictly(n, alpha, step):
    higher = alpha + step * (0.999 - alpha)
    a, b = (attention_entropy(*qk_of_blend(x, n), scale=1).mean for x in (alpha, higher))
    assert a > b


@pytest.mark.parametrize("alpha", [0, 0.3, 0.9, 0.999])
def test_entropy_of_blend_with_uniform_is_its_closed_form(alpha):
    n = 64
    diagonal, rest = alpha + (1 - alpha) / n, (1 - alpha) / n
    expected = -(diagonal * math.log(diagonal) + (n - 1) * rest * math.log(rest)) / math.log(n)
    assert attention_entropy(*qk_of_blend(alpha, n), scale=1).mean == pytest.approx(expected, abs=3e-6)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_permuting_rows_or_keys_changes_nothing(seed):
    q, k = tensors(seed, (2, 2, 37, 24), (2, 2, 29, 24))
    rows, keys = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n in (37, 29))
    assert attention_entropy(q[:, :, rows], k[:, :, keys]).mean == pytest.approx(attention_entropy(q, k).mean, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "d", "spread"), [(256, 64, 0.3), (256, 64, 4), (1024, 40, 1), (2048, 128, 0.3), (4096, 64, 4)]
)
def test_equals_float64_map_up_to_4096(n, d, spread):
    q, k, offset = tensors(n + d, (1, 2, n, d), (1, 2, n, d), (1, 2, 1, d))
    q, k = spread * q, k + 3 * offset
    assert attention_entropy(q, k).mean == pytest.approx(map_entropy(q, k), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*(st.integers(low, n) for low, n in ((1, 3), (1, 3), (1, 50), (2, 50), (1, 41)))),
    scale=st.none() | st.floats(0.01, 2) | st.floats(-2, -0.01),
)
def test_every_backend_equals_float64_map(seed, shape, scale):
    """Cross-attention, odd head dims and custom scales among them."""
    b, h, n_q, n_k, d = shape
    q, k = tensors(seed, (b, h, n_q, d), (b, h, n_k, d))
    expected = map_entropy(q, k, scale)
    for backend in RUNNABLE:
        measured = attention_entropy(q, k, scale=scale, backends=(backend,)).mean
        assert measured == pytest.approx(expected, abs=1e-5)


LOWEST = torch.finfo(torch.float32).min
MASKS = {
    "causal": lambda q, k: torch.ones(q, k, dtype=torch.bool).tril(),
    "padding per batch entry": lambda q, k: torch.arange(k) < torch.tensor([k, 5]).view(-1, 1, 1, 1),
    "per head": lambda q, k: torch.arange(3 * q * k).view(1, 3, q, k) % 5 < 2,
    "additive, −inf": lambda q, k: torch.zeros(1, 1, q, k).masked_fill(torch.arange(k) > 20, -math.inf),
    "additive, minimum": lambda q, k: torch.zeros(2, 1, 1, k).masked_fill(torch.arange(k) > 20, LOWEST),
    "additive, −10000": lambda q, k: torch.where(torch.arange(k) > 20, -1e4, 0.0).expand(q, k),
    "bias of keys": lambda q, k: torch.linspace(-3, 2, k),
    "bias of pairs": lambda q, k: torch.linspace(-1, 1, q).view(-1, 1) * torch.linspace(-3, 2, k),
    "bias and hidden keys": lambda q, k: torch.linspace(0, 4, k).masked_fill(torch.arange(k) > 20, -math.inf),
}


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("n_q", "n_k"), [(33, 33), (40, 77)])
def test_masked_attention_equals_float64_map(name, n_q, n_k, backend):
    q, k = tensors(5, (2, 3, n_q, 24), (2, 3, n_k, 24))
    mask = MASKS[name](n_q, n_k)
    measured = attention_entropy(q, k, mask=mask, backends=(backend,)).mean
    assert measured == pytest.approx(map_entropy(q, k, mask=mask), abs=1e-5)


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("hide", [False, -math.inf, LOWEST])
def test_row_that_sees_no_key_counts_as_zero(backend, hide):
    q, k = tensors(6, (1, 1, 4, 8), (1, 1, 10, 8))
    mask = torch.ones(4, 10, dtype=torch.bool) if hide is False else torch.zeros(4, 10)
    mask[1] = hide
    others = attention_entropy(q[:, :, [0, 2, 3]], k).mean
    measured = attention_entropy(q, k, mask=mask, backends=(backend,)).mean
    assert measured == pytest.approx(0.75 * others, abs=1e-6)


def test_single_key_has_entropy_zero():
    q, k = tensors(0, (2, 2, 5, 8), (2, 2, 1, 8))
    assert attention_entropy(q, k) == module.EntropyEstimate(0.0, 0.0, (0.0, 0.0))


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_on_cpu_is_computed_in_float32(dtype):
    q, k, offset = tensors(7, (1, 2, 1024, 64), (1, 2, 1024, 64), (1, 2, 1, 64), dtype=dtype)
    q, k = 4 * q, k + 3 * offset
    assert attention_entropy(q, k).mean == pytest.approx(map_entropy(q, k), abs=1e-5)


@pytest.mark.parametrize("spread", [1, 4, 20])
@pytest.mark.parametrize("backend", [flash_cpu, indicator_key])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_kernels_are_within_tolerance(dtype, backend, spread):
    """As a device would run them: the same functions, in half precision throughout."""
    q, k = tensors(8, (1, 2, 1024, 64), (1, 2, 1024, 64), dtype=dtype)
    k = k - k.mean(dim=2, keepdim=True)
    rows = backend(spread * q, k, 0.125, None) / math.log(1024)
    assert rows.clamp(0, 1).mean().item() == pytest.approx(map_entropy(spread * q, k), abs=HALF[dtype])


@pytest.mark.parametrize("backend", RUNNABLE)
def test_large_offset_of_the_keys_costs_no_precision(backend):
    q, k, offset = tensors(9, (1, 2, 512, 64), (1, 2, 512, 64), (1, 2, 1, 64))
    k = k + 1000 * offset
    assert attention_entropy(q, k, backends=(backend,)).mean == pytest.approx(map_entropy(q, k), abs=1e-6)


@pytest.mark.parametrize("d", [40, 41, 128])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("device", DEVICES)
def test_chain_of_every_device_equals_float64_map(device, dtype, d):
    q, k = tensors(23, (2, 2, 150, d), (2, 2, 77, d), dtype=dtype)
    mask = torch.arange(77) < 60
    q, k, mask = q.to(device), k.to(device), mask.to(device)
    for given_mask in (None, mask):
        measured = attention_entropy(q, k, mask=given_mask).mean
        assert measured == pytest.approx(map_entropy(q, k, mask=given_mask), abs=HALF.get(dtype, 1e-5))


def test_views_of_other_layouts_give_the_same():
    q, k = tensors(10, (2, 31, 4, 40), (2, 31, 4, 40))
    views = q.transpose(1, 2), k.transpose(1, 2)
    strided = tuple(x.mT.contiguous().mT for x in views)
    expected = map_entropy(*views)
    assert attention_entropy(*views).mean == pytest.approx(expected, abs=1e-6)
    assert attention_entropy(*strided).mean == pytest.approx(expected, abs=1e-6)


def test_chunks_join_seamlessly(monkeypatch):
    q, k = tensors(11, (2, 2, 37, 16), (2, 2, 37, 16))
    mask = torch.ones(37, 37).tril().bool()
    whole = attention_entropy(q, k, mask=mask, backends=(chunked,)).mean
    monkeypatch.setattr(module, "CHUNK_BYTES", 5 * 2 * 2 * 37 * 4)
    assert attention_entropy(q, k, mask=mask, backends=(chunked,)).mean == pytest.approx(whole, abs=1e-6)


# ---- the chain ----


def off_by_a_little(q, k, scale, mask):
    return chunked(q, k, scale, mask) + 0.01


def unavailable(q, k, scale, mask):
    raise NotImplementedError("no such operator")


def refuses_large(q, k, scale, mask):
    if q.shape[2] > 100:
        raise RuntimeError("too many rows")
    return chunked(q, k, scale, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cpu_kernels_pass_the_self_test_and_cuda_ones_are_dropped(dtype, masked):
    assert usable_backends("cpu", dtype, masked) == tuple(RUNNABLE)


def test_backend_that_fails_its_self_test_falls_through():
    q, k = tensors(12, (1, 2, 20, 8), (1, 2, 20, 8))
    chain = (off_by_a_little, unavailable, chunked)
    assert usable_backends("cpu", torch.float32, False, chain) == (chunked,)
    assert attention_entropy(q, k, backends=chain) == attention_entropy(q, k, backends=(chunked,))


def test_backend_that_refuses_a_shape_falls_through_for_that_call():
    q, k = tensors(13, (1, 2, 120, 8), (1, 2, 20, 8))
    assert usable_backends("cpu", torch.float32, False, (refuses_large, chunked)) == (refuses_large, chunked)
    measured = attention_entropy(q, k, backends=(refuses_large, chunked)).mean
    assert measured == pytest.approx(map_entropy(q, k), abs=1e-5)


def test_chain_without_a_working_backend_raises():
    q, k = tensors(14, (1, 1, 4, 8), (1, 1, 4, 8))
    with pytest.raises(RuntimeError, match=r"off_by_a_little, unavailable.*float32"):
        attention_entropy(q, k, backends=(off_by_a_little, unavailable))


@pytest.mark.parametrize("rows", [None, 8])
def test_measuring_leaves_inputs_and_global_random_state_alone(rows):
    usable_backends.cache_clear()
    inputs = tensors(15, *[(2, 2, 32, 20)] * 3)
    mask = torch.ones(32, 32).tril().bool()
    before = [x.clone() for x in (*inputs, mask)]
    state = torch.random.get_rng_state()
    measure(*inputs, mask=mask, rows=rows)
    for backend in RUNNABLE:
        attention_entropy(*inputs[:2], mask=mask, backends=(backend,))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip((*inputs, mask), before, strict=True))


def test_chain_ends_with_the_backend_that_always_works():
    assert BACKENDS[-1] is chunked


# ---- sampling ----


def test_sampled_interval_covers_the_exact_mean_in_95_of_100_sites():
    misses = 0
    for seed in range(200):
        q, k, spread = tensors(seed, (1, 2, 600, 16), (1, 2, 64, 16), (600, 1))
        q = q * spread.exp()
        exact, sampled = attention_entropy(q, k), attention_entropy(q, k, rows=128)
        misses += abs(sampled.mean - exact.mean) > sampled.half_width
    assert 2 <= misses <= 20


def test_sampled_half_width_at_4096_flat_rows_is_a_hundredth_of_a_nat():
    q, k = tensors(16, (1, 1, 4096, 64), (1, 1, 4096, 64))
    half_width = attention_entropy(q, k, rows=256).half_width * math.log(4096)
    assert half_width == pytest.approx(0.011, abs=0.003)


def test_sampling_as_many_rows_as_there_are_is_exact():
    q, k = tensors(17, (1, 2, 40, 16), (1, 2, 40, 16))
    assert attention_entropy(q, k, rows=40) == attention_entropy(q, k)


def test_sampling_is_the_same_at_every_call():
    q, k = tensors(18, (1, 2, 400, 16), (1, 2, 400, 16))
    assert attention_entropy(q, k, rows=32) == attention_entropy(q, k, rows=32)


def test_sampled_rows_keep_their_rows_of_the_mask():
    q, k = tensors(19, (1, 1, 400, 16), (1, 1, 400, 16))
    mask = torch.ones(400, 400).tril().bool()
    rows = module._sample(400, 64)
    expected = map_entropy(q[:, :, rows], k, mask=mask[rows])
    assert attention_entropy(q, k, mask=mask, rows=64).mean == pytest.approx(expected, abs=1e-6)


# ---- energy ----


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), shape=st.tuples(*(st.integers(1, n) for n in (2, 3, 30, 30, 20))))
def test_energies_are_those_of_the_map_identity_and_uniform(seed, shape):
    b, h, n_q, n_k, d = shape
    q, k, v = tensors(seed, (b, h, n_q, d), (b, h, n_k, d), (b, h, n_k, d))
    a, values = attention_map(q, k), v.double()
    uniform = torch.full_like(a, 1 / n_k)
    outputs = a @ values, uniform @ values, values
    expected = [x.square().sum(dim=-1).mean().item() for x in outputs]
    energy = measure(q, k, v).energy
    assert [energy.attention, energy.uniform, energy.identity] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("alpha", "expected"), [(0, 0), (1, 1), (0.5, 0.25), (-2, 4), (1.5, 2.25)])
def test_energy_proportion_is_not_clipped(alpha, expected):
    """αI + (1−α)U on centred values scales them by α: the proportion is α²."""
    (v,) = tensors(20, (2, 2, 30, 8))
    v = v - v.mean(dim=2, keepdim=True)
    assert attention_energy(alpha * v, v).proportion == pytest.approx(expected, abs=1e-6)


def test_energy_proportion_of_equal_values_is_zero():
    assert Energy(3.0, 3.0, 3.0).proportion == 0


def test_energy_in_half_precision_accumulates_in_float32():
    (v,) = tensors(21, (1, 1, 2048, 64), dtype=torch.float16)
    v = 40 * v  # its squared norms exceed the largest float16
    expected = v.double().square().sum(dim=-1).mean().item()
    assert attention_energy(v, v).identity == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mask", [None, torch.ones(24, 24).tril().bool(), torch.linspace(-1, 1, 24)])
def test_given_output_is_used_and_absent_output_computed(mask):
    q, k, v = tensors(22, *[(2, 2, 24, 16)] * 3)
    out = (attention_map(q, k, 0.7, mask) @ v.double()).float()
    computed = measure(q, k, v, scale=0.7, mask=mask)
    doubled = measure(q, k, v, out=2 * out, scale=0.7, mask=mask)
    assert doubled.entropy == computed.entropy == attention_entropy(q, k, scale=0.7, mask=mask)
    assert doubled.energy.attention == pytest.approx(4 * computed.energy.attention, rel=1e-5)


# ---- errors ----


@pytest.mark.parametrize(
    ("q", "k", "options", "message"),
    [
        ((2, 2, 4, 8), (2, 2, 4, 9), {}, r"\(2, 2, 4, 8\) and \(2, 2, 4, 9\)"),
        ((2, 4, 8), (2, 4, 8), {}, r"\(B, H, N_q, D\)"),
        ((1, 1, 4, 8), (1, 1, 0, 8), {}, "not empty"),
        ((1, 1, 4, 8), (1, 1, 4, 8), {"scale": 0.0}, "scale"),
        ((1, 1, 4, 8), (1, 1, 4, 8), {"rows": 1}, "at least 2 rows"),
        ((1, 1, 4, 8), (1, 1, 6, 8), {"mask": torch.ones(6, 4)}, r"to \(1, 1, 4, 6\), got \(6, 4\)"),
    ],
)
def test_misfit_raises_with_what_was_expected_and_what_came(q, k, options, message):
    with pytest.raises(ValueError, match=message):
        attention_entropy(torch.zeros(q), torch.zeros(k), **options)


def test_output_with_merged_heads_raises():
    with pytest.raises(ValueError, match=r"\(2, 4, 16\) and \(2, 2, 4, 8\)"):
        attention_energy(torch.zeros(2, 4, 16), torch.zeros(2, 2, 4, 8))


def test_mixed_dtypes_raise():
    with pytest.raises(ValueError, match=r"float32 and torch\.float16"):
        attention_entropy(torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8, dtype=torch.float16))
