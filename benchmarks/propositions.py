"""EI²'s propositions 1 to 3, evaluated on the demo model: what they say of its features, and how tight bound (16) is.

    python benchmarks/propositions.py --comfyui DIR --out FOLDER [--clips 6] [--steps 60] [--rate 1e-3] [--publish]

A clip is noised to three levels and goes through the demo model; what enters its self-attention, ẑ, is kept. W_q and
what tuning added to it are those of :mod:`ei2_study`, in FOLDER, which keeps them.

Proposition 1: of tokens drawn from a Gaussian with ẑ's mean and covariance, the rows of attention have the mean µ_V and
the covariance ω·Σ_V. It treats the map as fixed, though it is made of the same tokens. Measured: how far mean and
covariance of drawn rows are from that, in the larger of both norms (Frobenius).

Proposition 2: bound (16). ‖Σ_V‖ is on both sides of it; what is left is |ω_tuned − ω| ≤ (2/d)·‖ΔW_q‖·‖ẑ_i‖·‖K‖, d a
head's width. Measured: the left side in the right one, the largest of all rows. Its proof counts 1/√d twice: the
softmax of x/√d is 1/√d-Lipschitz in x, which gives (2/√d) in the place of 2/d. Both are evaluated.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from claims import Claim, estimate, shown
from ei2_bench import Bench, options
from figures import claims_table, publish, table
from harness import Json, Records, pack
from power import worth
from torch import Tensor

NAME = "propositions"
FORM = "STAM"
LEVELS = (0.2, 0.5, 0.8)
"""Shares of sampling, from pure noise."""
TOKENS, DRAWS = 64, 400
"""Of a clip of tokens, and how many such clips are drawn."""
LITTLE = 0.05
"""Of the larger norm: a distance that counts as none."""


# The mathematics -----------------------------------------------------------------------------------------------------


def omega(z: Tensor, to_q: Tensor, to_k: Tensor, heads: int) -> Tensor:
    """ω of every head and row, (…, heads, rows), of ẑ (…, rows, width): the squared norm of a row of the map."""
    q, k = (split(z @ weight.mT, heads) for weight in (to_q, to_k))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).square().sum(-1)


def split(x: Tensor, heads: int) -> Tensor:
    """(…, rows, width) → (…, heads, rows, width of a head)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def bound(z: Tensor, tuned: Tensor, to_q: Tensor, to_k: Tensor, heads: int) -> Tensor:
    """The right side of (16) without ‖W_Lᵀ Σ_V W_L‖, (…, heads, rows)."""
    change = (tuned - to_q).unflatten(0, (heads, -1))
    keys = torch.linalg.matrix_norm(split(z @ to_k.mT, heads), 2)
    width = to_q.shape[0] // heads
    norms = torch.linalg.matrix_norm(change, 2)[:, None] * z.norm(dim=-1)[..., None, :]
    return 2 / width * norms * keys[..., None]


def share_of_bound(z: Tensor, tuned: Tensor, to_q: Tensor, to_k: Tensor, heads: int) -> float:
    """The largest |ω_tuned − ω| in the right side of (16)."""
    moved = (omega(z, tuned, to_k, heads) - omega(z, to_q, to_k, heads)).abs()
    return (moved / bound(z, tuned, to_q, to_k, heads)).max().item()


def gaussian(z: Tensor, weights: dict[str, Tensor], heads: int, seed: int) -> tuple[float, float]:
    """How far mean and covariance of a drawn row of attention are from Proposition 1's, in the larger norm."""
    z = z.reshape(-1, z.shape[-1])
    mean, centred = z.mean(0), z - z.mean(0)
    source = torch.Generator().manual_seed(seed)
    mixed = torch.randn(DRAWS, TOKENS, len(z), generator=source, dtype=z.dtype) @ centred / len(z) ** 0.5
    tokens = mean + mixed
    q, k, v = (split(tokens @ weights[name].mT, heads) for name in "qkv")
    attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    rows, ratio = attention @ v, attention.square().sum(-1).mean((0, 2))
    found, said = [], []
    for head in range(heads):
        value = (z @ weights["v"].mT).unflatten(-1, (heads, -1))[:, head]
        drawn = rows[:, head].flatten(0, 1)
        found.append((drawn.mean(0), torch.cov(drawn.mT)))
        said.append((value.mean(0), ratio[head] * torch.cov(value.mT, correction=0)))
    return distance(found, said, 0), distance(found, said, 1)


def distance(found: list, said: list, which: int) -> float:
    """Over heads, in the larger of both norms."""
    pairs = [(one[which], other[which]) for one, other in zip(found, said, strict=True)]
    return sum(((a - b).norm() / torch.maximum(a.norm(), b.norm())).item() for a, b in pairs) / len(pairs)


# The study -----------------------------------------------------------------------------------------------------------


def seen(bench: Bench, clip: Any, share: float, layers: Any) -> dict[str, Tensor]:
    """ẑ of every layer, (frames, positions, width), in float64."""
    kept: dict[str, Tensor] = {}

    def keep(place: str, _module: Any, args: tuple, kwargs: dict) -> None:
        kept[place] = (args[0] if args else kwargs["x"]).double()

    hooks = [
        layer.block.attn1.register_forward_pre_hook(partial(keep, layer.place), with_kwargs=True) for layer in layers
    ]
    sigma = bench.model.get_model_object("model_sampling").percent_to_sigma(share)
    noise = torch.randn(clip.latent["samples"].shape, generator=torch.Generator().manual_seed(10_000))
    try:
        bench.redraw(
            bench.model, clip.latent["samples"] + sigma * noise, torch.tensor([sigma, 0.0]), bench.encode(clip.prompt)
        )
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def measure(bench: Bench, number: int) -> Json:
    """Level → layer → figures."""
    clip = bench.clip(number)
    weights = bench.tuned(FORM, clip)
    layers = [*pack("attention.inflation").transformer_layers(bench.model, "*")]
    record: Json = {}
    for share in LEVELS:
        record[str(share)] = {}
        inputs = seen(bench, clip, share, layers)
        for layer in layers:
            own, z = layer.block.attn1, inputs[layer.place]
            to = {name: getattr(own, f"to_{name}").weight.double() for name in "qkv"}
            tuned = to["q"] + weights.tensors[f"{layer.place}.attn1.weight"].double()
            mean, covariance = gaussian(z, to, layer.heads, number)
            largest = share_of_bound(z, tuned, to["q"], to["k"], layer.heads)
            record[str(share)][layer.place] = {"mean": mean, "covariance": covariance, "bound": largest}
            record[str(share)][layer.place]["proved"] = largest / (layer.width / layer.heads) ** 0.5
    return record


def values(records: list[Json], name: str) -> Tensor:
    """(clips, levels × layers)."""
    return torch.tensor([[layer[name] for share in LEVELS for layer in each[str(share)].values()] for each in records])


def claims(records: list[Json]) -> list[Claim]:
    largest, proved = (values(records, name).amax(1) for name in ("bound", "proved"))
    where, text = "proposition 2, (16)", "The covariance moves by no more than bound (16)"
    figure = "|ω_tuned − ω| in the bound, the largest of all layers, heads and rows"
    how = {"beside": 1.0, "worth": worth("ratio")}
    found = [Claim.of(where, text, figure, largest, ".4f", -1, **how)]
    said = "with 2/√d, as its proof should have it"
    found.append(Claim.of("", f"{text}, {said}", f"{figure}, {said}", proved, ".4f", -1, beside=1.0, is_papers=False))
    for name, what in (("mean", "mean µ_V"), ("covariance", "covariance ω·Σ_V")):
        text = f"Rows of attention over Gaussian tokens have the {what}"
        figure = f"distance of drawn rows’ {name} from it, in the larger norm"
        found.append(Claim.of("proposition 1", text, figure, values(records, name), ".3f", 0, tolerance=LITTLE))
    return found


def main() -> None:
    arguments = options(__doc__, clips=6).parse_args()
    bench, folder = Bench(arguments), arguments.out / NAME
    kept = Records(folder, {"levels": LEVELS, "form": FORM, "tokens": TOKENS, "draws": DRAWS})
    with torch.inference_mode():
        wanted = ((f"{number:02}", partial(measure, bench, number)) for number in range(arguments.clips))
        records = list(kept.take(wanted, arguments.minutes))
    layers = list(records[0][str(LEVELS[0])])
    rows = [
        [
            layer,
            *(
                shown(estimate(values(records, name)[:, at :: len(layers)]), ".4f")
                for name in ("bound", "mean", "covariance")
            ),
        ]
        for at, layer in enumerate(layers)
    ]
    header = ["layer", "share of bound (16)", "mean’s distance", "covariance’s distance"]
    print(publish(NAME, folder, arguments.publish, f"{claims_table(claims(records))}\n\n{table(header, rows)}"))


if __name__ == "__main__":
    main()
