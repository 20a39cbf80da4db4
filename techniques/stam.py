"""STAM, EI²'s shift-restricted temporal attention (written from the supplement, §A.5 and §B).

STAM(z) = z + L̄inear(Āttention(IC(z), IC(z))), over frames, for every position of a clip. LayerNorm gives way to
instance centring, IC(z) = z − mean over frames, and ‖W_L‖ = ‖W_v‖ = 1, so the residual can neither move the mean of
the features by more than its bias nor enlarge their covariance: ‖Cov(residual)‖ ≤ ‖Σ‖ (Proposition 3).

Inferred, not in the supplement: IC has no scale or shift of its own; the norm is the spectral one (the Frobenius
norm nearly switches STAM off); and a gate, tanh of a scalar that starts at 0, so that an untuned STAM is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .temporal import attend, over_frames, over_tokens

Norm = Literal["spectral", "frobenius"]
UNIT = ("to_v.weight", "to_out.weight")
"""The weights whose norm is 1."""
_BLOCK, _DEPTH = 4, 6  # where one vector lags by percents when another overtakes, these stay within 1e-3


def instance_centred(x: Tensor) -> Tensor:
    """``x``: (…, frames, channels) less its mean over frames, for every position and channel."""
    return x - x.mean(dim=-2, keepdim=True)


def unit(weight: Tensor, norm: Norm) -> Tensor:
    """``weight`` (out, in) over its norm, in float64, as its own type; zero stays zero."""
    exact = weight.double()
    size = torch.linalg.matrix_norm(exact, 2 if norm == "spectral" else "fro")
    return (exact / size.clamp(min=torch.finfo(torch.float64).tiny)).to(weight)


class STAM(nn.Module):
    """Expects its weights ``UNIT`` to have norm 1: whoever makes or trains them sees to it (:func:`unit`,
    :func:`keep_unit`). ``attention``: as :func:`.temporal.attend`."""

    def __init__(
        self, width: int, heads: int, attention: Callable = attend, operations: Any = nn, **where: Any
    ) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.to_q, self.to_k, self.to_v = (operations.Linear(width, width, bias=False, **where) for _ in "qkv")
        self.to_out = operations.Linear(width, width, **where)
        self.gate = nn.Parameter(torch.zeros((), **where))

    def reset_parameters(self, norm: Norm, generator: torch.Generator) -> None:
        """Orthogonal queries, keys, values and output, so that every channel is seen alike; gate and bias 0."""
        for linear in (self.to_q, self.to_k, self.to_v, self.to_out):
            nn.init.orthogonal_(linear.weight, generator=generator)
        with torch.no_grad():
            for linear in (self.to_v, self.to_out):
                linear.weight.copy_(unit(linear.weight, norm))
        nn.init.zeros_(self.to_out.bias)
        nn.init.zeros_(self.gate)

    def branch(self, z: Tensor, frames: int, transformer_options: Any = None) -> Tensor:
        """L̄inear(Āttention(IC(z), IC(z))) of ``z`` (clips · F, tokens, width), frames inside; without the gate."""
        x = instance_centred(over_frames(z, frames))
        seen = self.attention(
            self.to_q(x), self.to_k(x), self.to_v(x), self.heads, transformer_options=transformer_options
        )
        return over_tokens(self.to_out(seen), z.shape[1])

    def forward(self, z: Tensor, frames: Sequence[int], transformer_options: Any = None) -> Tensor:
        """What is added to ``z`` (clips · F, tokens, width); ``frames``: the numbers of the F frames, unused."""
        return torch.tanh(self.gate).to(z) * self.branch(z, len(frames), transformer_options)


class _Unit(nn.Module):
    """W/σ_max(W) or W/‖W‖_F. The spectral norm is sought from the largest singular vectors at the last call, so it and
    its gradient, u vᵀ, are at hand without a decomposition of every weight at every step of training."""

    largest: Tensor

    def __init__(self, weight: Tensor, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        vectors = torch.linalg.svd(weight.detach().double()).Vh[:_BLOCK].T
        self.register_buffer("largest", vectors.to(weight).contiguous())
        self._sought_in: int | None = None

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            if self.norm == "frobenius":
                return weight / weight.norm()
            if weight._version != self._sought_in:  # else a checkpointed layer would come out otherwise again
                with torch.no_grad():
                    basis = _krylov(weight, self.largest)
                    self.largest = basis @ torch.linalg.svd(weight @ basis, full_matrices=False).Vh[:_BLOCK].T
                self._sought_in = weight._version
            v = self.largest[:, 0]
            u = torch.nn.functional.normalize((weight @ v).detach(), dim=0)
            return weight / (u @ weight @ v)


def _krylov(weight: Tensor, start: Tensor) -> Tensor:
    """An orthonormal basis of ``start`` (in, n) and what WᵀW makes of it once, twice, …, or of the whole space."""
    width = weight.shape[1]
    if width <= _BLOCK * _DEPTH:
        return torch.eye(width, dtype=weight.dtype, device=weight.device)
    basis = start
    for _ in range(_DEPTH - 1):
        following = weight.T @ (weight @ basis[:, -_BLOCK:])
        basis = torch.linalg.qr(torch.cat([basis, following - basis @ (basis.T @ following)], dim=1)).Q
    return basis


def keep_unit(stam: STAM, norm: Norm) -> None:
    """From now on, whatever training does to them, the norms of ``UNIT`` stay 1."""
    for linear in (stam.to_v, stam.to_out):
        parametrize.register_parametrization(linear, "weight", _Unit(linear.weight, norm), unsafe=True)


def tensors_of(stam: STAM, norm: Norm) -> dict[str, Tensor]:
    """Its weights by name, detached, those of ``UNIT`` with norm 1 exactly."""
    linears = {"to_q": stam.to_q, "to_k": stam.to_k, "to_v": stam.to_v, "to_out": stam.to_out}
    tensors = {f"{name}.weight": linear.weight.detach() for name, linear in linears.items()}
    tensors |= {"to_out.bias": stam.to_out.bias.detach(), "gate": stam.gate.detach()}
    return {name: unit(tensor, norm) if name in UNIT else tensor.clone() for name, tensor in tensors.items()}
