"""Time and peak memory of exact attention entropy, against one plain attention call.

    python benchmarks/entropy.py [--repeats 5] [--threads 1] [--sizes 1024 4096 9216] [--out FOLDER]

Fp32, 8 heads of 64 channels, on the CPU and on CUDA where there is one. Medians of the rounds. Peak memory is what one
call needs beyond its inputs; on the CPU it is read from the resident set of a fresh process.
"""

from __future__ import annotations

import math
import multiprocessing
from statistics import median

import torch
from claims import Cost
from figures import table
from harness import MIB, Json, command_line, pack, peak_memory, save, take_turns
from torch.nn import functional as F

HEADS, CHANNELS = 8, 64


def plain(q, k):
    F.scaled_dot_product_attention(q, k, k)


def ours(q, k):
    return pack("techniques.entropy").attention_entropy(q, k).mean


def sampled(q, k):
    return pack("techniques.entropy").attention_entropy(q, k, rows=256).mean


def chunked(q, k):
    entropy = pack("techniques.entropy")
    return entropy.attention_entropy(q, k, backends=(entropy.chunked,)).mean


def naive(q, k):
    weights = (q @ k.mT * CHANNELS**-0.5).softmax(dim=-1)
    return torch.special.entr(weights).sum(dim=-1).mean().item() / math.log(k.shape[2])


METHODS = {method.__name__: method for method in (plain, ours, sampled, chunked, naive)}


def inputs(n: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, n, CHANNELS, generator=generator).to(device) for _ in "qk"]


def peak_bytes(name: str, n: int, device: str, threads: int) -> int:
    """Most memory held during one call, beyond what was held before it."""
    torch.set_num_threads(threads)
    method = METHODS[name]
    method(*inputs(64, device))  # load the kernels, run the self-test
    q, k = inputs(n, device)
    before, peak = peak_memory(lambda: method(q, k))
    return peak - before


def measure(n: int, device: str, rounds: int, threads: int) -> list[Json]:
    q, k = inputs(n, device)
    times = take_turns({name: lambda method=method: method(q, k) for name, method in METHODS.items()}, rounds)
    values = {name: method(q, k) for name, method in METHODS.items()}
    results = []
    for name, taken in times.items():
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            peak = fresh.apply(peak_bytes, (name, n, device, threads))
        results.append(
            {
                "device": device,
                "tokens": n,
                "method": name,
                "seconds": median(taken),
                "relative_time": median(a / b for a, b in zip(taken, times["plain"], strict=True)),
                "peak_mib": peak / MIB,
                "difference_from_naive": None if name == "plain" else abs(values[name] - values["naive"]),
            }
        )
    return results


def costs(results: list[Json]) -> list[Cost]:
    """For the largest size."""
    rows = [row for row in results if row["device"] == "cpu"]
    tokens = max(row["tokens"] for row in rows)
    by = {row["method"]: row for row in rows if row["tokens"] == tokens}
    ours, naive, plain = by["ours"], by["naive"], by["plain"]
    return [
        Cost(
            f"Exact entropy of {tokens} tokens’ attention, of one plain attention call",
            f"{ours['relative_time']:.2f}",
            "1, one further call",
            f"by the map itself {naive['relative_time']:.2f}",
        ),
        Cost(
            f"Its peak memory, {tokens} tokens",
            f"{ours['peak_mib']:.0f} MiB",
            f"as plain attention, {plain['peak_mib']:.0f} MiB",
            f"by the map itself {naive['peak_mib']:.0f} MiB",
        ),
        Cost("Its distance from the entropy of the map", f"{ours['difference_from_naive']:.0e}", "0"),
    ]


def main() -> None:
    parser = command_line(__doc__, comfyui=False, repeats=(5, ""))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 9216])
    parser.set_defaults(threads=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    asked = ((n, device) for device in devices for n in arguments.sizes)
    results = [row for each in asked for row in measure(*each, arguments.repeats, arguments.threads)]
    save(arguments.out, results)
    print(table(results[0], (map(str, each.values()) for each in results)))


if __name__ == "__main__":
    main()
