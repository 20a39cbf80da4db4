"""Exact entropy and energy of softmax attention, without the N×N map.

With scores s_ij = scale·q_i·k_j and p = softmax(s), the entropy of row i is

    H_i = logsumexp_j(s_ij) − scale·q_i·(Σ_j p_ij k_j),

so one more attention call with V := K, by a kernel that also returns the log-sum-exp, is enough: memory O(N)
(IE-Adapt §3.1, Eq. 2). The keys are centred first: softmax does not change, the rounding error falls.

A *backend* is a function ``(q, k, scale, mask) -> row entropies in nats (B, H, N_q)`` with q (B, H, N_q, D),
centred k (B, H, N_k, D) and an additive mask of zeros and −inf, (B or 1, H or 1, N_q or 1, N_k), or None.
Which of them work is found out once per device type, dtype and presence of a mask, by a self-test.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)
aten = torch.ops.aten

Backend = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]

HIDDEN = -1e4  # additive masks hide a key with −inf, the dtype's minimum or, by old custom, −10000
CHUNK_BYTES = 32 * 2**20  # of the map, held at once by `chunked`
SELF_TEST_TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.02}  # nats, per row
FULL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class EntropyEstimate:
    """Mean normalised entropy in [0, 1], the half-width of its 95% interval (0 if exact), and the mean of each head."""

    mean: float
    half_width: float
    heads: tuple[float, ...] = ()


@dataclass(frozen=True)
class Energy:
    """Mean over rows of ‖row‖² of an attention output, E(AV), and its empirical bounds E(UV) and E(V)."""

    attention: float
    uniform: float
    identity: float

    @property
    def proportion(self) -> float:
        """(E(AV) − E(UV)) / (E(V) − E(UV)), never clipped; 0 if the bounds coincide: all values are equal."""
        span = self.identity - self.uniform
        share = (self.attention - self.uniform) / span if span else 0.0
        return share if math.isfinite(share) else 0.0  # a span may be too small to divide by


@dataclass(frozen=True)
class AttentionMeasurement:
    entropy: EntropyEstimate
    energy: Energy


@torch.no_grad()
def attention_entropy(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    rows: int | None = None,
    backends: tuple[Backend, ...] | None = None,
) -> EntropyEstimate:
    """Mean over batch, heads and rows of H(row) / log N_k of softmax(scale·q kᵀ + mask).

    Args:
        q, k: (B, H, N_q, D) and (B, H, N_k, D), one floating dtype, one device. Self- or cross-attention.
        scale: of the scores; 1/√D if None.
        mask: broadcasts to (B, H, N_q, N_k); boolean (True = attend) or additive. N_k counts hidden keys too.
            An additive mask that does more than hide is measured by `chunked`, as its own mean needs the map.
        rows: None measures every row. A number measures that many (256 is usual), the same at every call, in
            every batch entry and head, and states the half-width of the 95% interval.
        backends: the chain to try in order, `BACKENDS` if None.

    A single key has entropy 0, as has a row that sees no key. The CPU computes half precision in float32.

    Raises:
        ValueError: shapes, scale, mask or rows that do not fit.
    """
    scale = _check(q, k, scale, mask, rows)
    n_q, n_k = q.shape[2], k.shape[2]
    if n_k == 1:
        return EntropyEstimate(0.0, 0.0, (0.0,) * q.shape[1])
    if mask is not None:
        mask = _four_dims(mask)
    count = n_q if rows is None else min(rows, n_q)
    if count < n_q:
        chosen = _sample(n_q, count).to(q.device)
        q = q[:, :, chosen]
        mask = mask[:, :, chosen] if mask is not None and mask.shape[2] > 1 else mask

    per_row = _row_entropies(q, k, scale, mask, backends or BACKENDS).div_(math.log(n_k)).clamp_(0, 1)
    mean, heads = per_row.mean().item(), tuple(per_row.mean(dim=(0, 2)).tolist())
    if count == n_q:
        return EntropyEstimate(mean, 0.0, heads)
    # 1.96 standard errors, of a sample drawn without replacement.
    deviation = per_row.mean(dim=(0, 1)).std().item()
    return EntropyEstimate(mean, 1.96 * deviation * math.sqrt((1 - count / n_q) / count), heads)


@torch.no_grad()
def attention_energy(out: Tensor, v: Tensor) -> Energy:
    """Energies of an attention output `out` (B, H, N_q, D) = A·v over the values `v` (B, H, N_k, D).

    Mean over batch, heads and rows of the squared norm: of A·V, of U·V (the mean over all keys, even hidden)
    and of V, which has N_k rows also in cross-attention. Not divided by D (IE-Adapt §3.1).

    Raises:
        ValueError: shapes that do not fit.
    """
    if out.ndim != 4 or v.ndim != 4 or out.shape[:2] != v.shape[:2] or out.shape[3] != v.shape[3]:
        raise ValueError(
            f"Expected an output (B, H, N_q, D) and values (B, H, N_k, D), got {tuple(out.shape)} and {tuple(v.shape)}."
        )
    uniform = v.mean(dim=2, keepdim=True, dtype=_precise(v.dtype))
    return Energy(_mean_square_norm(out), _mean_square_norm(uniform), _mean_square_norm(v))


@torch.no_grad()
def measure(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    out: Tensor | None = None,
    scale: float | None = None,
    mask: Tensor | None = None,
    rows: int | None = None,
) -> AttentionMeasurement:
    """Entropy and energies of one attention, (B, H, N, D) each; arguments as for `attention_entropy`.

    out: the attention output, if the caller has it already; else one more plain attention call computes it.
    The energies are always those of every row.
    """
    entropy = attention_entropy(q, k, scale=scale, mask=mask, rows=rows)
    if out is None:
        if mask is not None:
            mask = _four_dims(mask if mask.dtype == torch.bool else mask.to(q.dtype))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return AttentionMeasurement(entropy, attention_energy(out, v))


def four_dimensional(mask: Tensor | None) -> Tensor | None:
    """A mask as ComfyUI's attention takes it, (N_q, N_k) or (rows, N_q, N_k), as (rows, heads, N_q, N_k)."""
    if mask is None or mask.ndim == 4:
        return mask
    return mask.unsqueeze(1) if mask.ndim == 3 else mask[None, None]


# ---- backends ----


def flash_cpu(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """The CPU's flash kernel, which returns the log-sum-exp."""
    mean_key, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, k, attn_mask=mask, scale=scale)
    return lse - _scores(q, mean_key, scale)


def flash_cuda(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """FlashAttention on CUDA or ROCm: half precision, no mask."""
    _refuse(mask)
    q, k = _aligned(q), _aligned(k)
    mean_key, lse = aten._scaled_dot_product_flash_attention(q, k, k, scale=scale)[:2]
    return lse[..., : q.shape[2]] - _scores(q, mean_key, scale)


def efficient_cuda(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """The memory-efficient kernel on CUDA or ROCm: float32 too. It pads the rows of its log-sum-exp."""
    _refuse(mask)
    q, k = _aligned(q), _aligned(k)
    mean_key, lse = aten._scaled_dot_product_efficient_attention(q, k, k, None, True, scale=scale)[:2]
    return lse[..., : q.shape[2]] - _scores(q, mean_key, scale)


def indicator_key(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Public API only: one more key, of known score c and weight p, gives the log-sum-exp c + log((1 − p)/p).

    c is the row's own expected score, at most log N_k below its log-sum-exp: p lies in [1/(1 + N_k), 1/2] and
    can neither underflow nor saturate. A first call gives the expected score: two calls instead of one.
    """
    mean_key = F.scaled_dot_product_attention(q, k, k, attn_mask=mask, scale=scale)
    expected = _scores(q, mean_key, scale)
    # The extra key has a channel to itself. `known` is the score c as the dtype represents it.
    level, unit = expected.to(q.dtype), torch.tensor(1 / scale, dtype=q.dtype)
    known = level.to(expected.dtype) * (unit.item() * scale)
    q = torch.cat((q, level.unsqueeze(-1)), dim=-1)
    k = F.pad(k, (0, 1, 0, 1))
    indicator = torch.zeros_like(k)
    k[..., -1, -1] = unit
    indicator[..., -1, -1] = 1
    mask = None if mask is None else F.pad(mask, (0, 1))
    weights = F.scaled_dot_product_attention(q, k, indicator, attn_mask=mask, scale=scale)
    p = weights[..., -1].to(expected.dtype)
    return known + torch.log1p(-p) - torch.log(p) - expected


def chunked(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """The map itself, a few rows at a time; takes any additive mask. Several times the cost of one call."""
    dtype = _precise(q.dtype)
    keys = k.to(dtype).transpose(-2, -1)
    step = max(1, CHUNK_BYTES // (keys.shape[0] * keys.shape[1] * keys.shape[3] * keys.element_size()))
    out = torch.empty(q.shape[:3], dtype=dtype, device=q.device)
    for start in range(0, q.shape[2], step):
        part = slice(start, start + step)
        scores = (q[:, :, part].to(dtype) * scale) @ keys
        if mask is not None:
            scores += mask[:, :, part] if mask.shape[2] > 1 else mask
        out[:, :, part] = torch.special.entr(scores.softmax(dim=-1)).sum(dim=-1)
    return out


BACKENDS: tuple[Backend, ...] = (flash_cpu, flash_cuda, efficient_cuda, indicator_key, chunked)


@lru_cache(maxsize=64)
def usable_backends(
    device_type: str, dtype: torch.dtype, masked: bool, backends: tuple[Backend, ...] = BACKENDS
) -> tuple[Backend, ...]:
    """Those of `backends` that agree with the map on a small example, in their order.

    Raises:
        RuntimeError: none does.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    q, k = (torch.randn(2, 3, n, 20, generator=generator).to(device_type, dtype) for n in (24, 41))
    q *= torch.linspace(0, 4, 24).view(-1, 1).to(device_type, dtype)  # from a flat row to a peaked one
    mask = None
    if masked:
        hidden = torch.arange(41) % torch.arange(2, 26).view(-1, 1) == 0
        mask = torch.zeros(1, 1, 24, 41).masked_fill_(hidden, -torch.inf).to(device_type, dtype)
    expected = chunked(q.float().cpu(), k.float().cpu(), 0.3, None if mask is None else mask.cpu())
    tolerance = SELF_TEST_TOLERANCE.get(dtype, FULL_TOLERANCE)

    usable = []
    for backend in backends:
        try:
            error = (backend(q, k, 0.3, mask).float().cpu() - expected).abs().max().item()
        except (RuntimeError, AttributeError) as reason:  # AttributeError: this torch lacks the operator
            log.debug("%s does not run on %s in %s: %.120s", backend.__name__, device_type, dtype, reason)
            continue
        if error <= tolerance:
            usable.append(backend)
        else:
            log.warning("%s is off by %.3g nats on %s in %s", backend.__name__, error, device_type, dtype)
    if not usable:
        names = ", ".join(backend.__name__ for backend in backends)
        raise RuntimeError(f"No entropy backend of {names} works on {device_type} in {dtype}; add `chunked`.")
    return tuple(usable)


def _row_entropies(q: Tensor, k: Tensor, scale: float, mask: Tensor | None, backends: tuple[Backend, ...]) -> Tensor:
    """Entropies in nats, (B, H, N_q), unclamped, by the first backend that works."""
    if q.device.type == "cpu":
        q, k = q.to(_precise(q.dtype)), k.to(_precise(k.dtype))
    k = k - k.mean(dim=2, keepdim=True, dtype=_precise(k.dtype)).to(k.dtype)
    # The flash kernels take the last dim to be contiguous and do not check.
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    blind = None
    if mask is not None:
        mask, only_hides = _additive(mask.expand(*mask.shape[:3], k.shape[2]), q.dtype)
        blind = mask.isneginf().all(dim=-1)
        backends = backends if only_hides else (chunked,)

    *first, last = usable_backends(q.device.type, q.dtype, mask is not None, backends)
    for backend in first:
        try:
            entropies = backend(q, k, scale, mask)
            break
        except RuntimeError as reason:  # a shape this kernel does not take
            log.debug("%s refused %s, %s: %.120s", backend.__name__, tuple(q.shape), tuple(k.shape), reason)
    else:
        entropies = last(q, k, scale, mask)
    return entropies if blind is None else entropies.masked_fill(blind, 0)


def _additive(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """The mask as something to add, and whether it only hides (zeros and −inf)."""
    hidden = ~mask if mask.dtype == torch.bool else mask <= HIDDEN
    if mask.dtype == torch.bool or bool((hidden | (mask == 0)).all()):
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(hidden, -torch.inf), True
    return mask, False


def _four_dims(mask: Tensor) -> Tensor:
    return mask[(None,) * (4 - mask.ndim)]


def _scores(q: Tensor, mean_key: Tensor, scale: float) -> Tensor:
    """Expected score of each row, scale·q_i·E[k]_i, in float32 or better; by head, as copies are large."""
    dtype = _precise(q.dtype)
    heads = zip(q.unbind(1), mean_key.unbind(1), strict=True)
    return torch.stack([torch.linalg.vecdot(a.to(dtype), b.to(dtype)) for a, b in heads], dim=1) * scale


def _aligned(x: Tensor) -> Tensor:
    """The CUDA kernels take head dims that are multiples of 8; zero channels change no score."""
    return F.pad(x, (0, -x.shape[-1] % 8))


def _refuse(mask: Tensor | None) -> None:
    if mask is not None:
        raise NotImplementedError("this kernel takes no mask")


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _mean_square_norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(x, dim=-1, dtype=_precise(x.dtype)).square().mean().item()


def _sample(n: int, rows: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randperm(n, generator=generator)[:rows].sort().values


def _check(q: Tensor, k: Tensor, scale: float | None, mask: Tensor | None, rows: int | None) -> float:
    """Raise on what does not fit; the scale otherwise."""
    if q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3] or not k.numel():
        raise ValueError(
            f"Expected queries (B, H, N_q, D) and keys (B, H, N_k, D), not empty, "
            f"got {tuple(q.shape)} and {tuple(k.shape)}."
        )
    if q.dtype != k.dtype or not q.is_floating_point():
        raise ValueError(f"Expected queries and keys of one floating dtype, got {q.dtype} and {k.dtype}.")
    if mask is not None:
        full = (*q.shape[:3], k.shape[2])
        if mask.ndim > 4 or any(m not in (1, n) for m, n in zip(mask.shape[::-1], full[::-1], strict=False)):
            raise ValueError(f"Expected a mask that broadcasts to {full}, got {tuple(mask.shape)}.")
    if rows is not None and rows < 2:
        raise ValueError(f"Expected at least 2 rows to sample (256 is usual) or None for all, got {rows}.")
    if scale is None:
        return q.shape[3] ** -0.5
    if not math.isfinite(scale) or scale == 0:
        raise ValueError(f"Expected a finite scale that is not 0, got {scale}.")
    return float(scale)
