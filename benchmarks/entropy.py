"""Time and peak memory of exact attention entropy, against one plain attention call.

    python benchmarks/entropy.py [--json FILE] [--repeats 5] [--threads 1] [--sizes 1024 4096 9216]

Fp32, 8 heads of 64 channels, on the CPU and on CUDA where there is one. The methods take turns within each
repetition and the medians count, so that other work on the machine falls on all of them alike. Peak memory is
what one call needs beyond its inputs; on the CPU it is read from the resident set of a fresh process.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import statistics
import sys
import threading
import time
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

HEADS, CHANNELS = 8, 64
MIB = 2**20


def load_entropy():
    """attention/entropy.py by itself: it knows nothing of ComfyUI, so the benchmark needs none."""
    path = Path(__file__).resolve().parent.parent / "attention" / "entropy.py"
    spec = importlib.util.spec_from_file_location("attention_entropy", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


entropy = load_entropy()


def plain(q, k):
    F.scaled_dot_product_attention(q, k, k)


def ours(q, k):
    return entropy.attention_entropy(q, k).mean


def sampled(q, k):
    return entropy.attention_entropy(q, k, rows=256).mean


def chunked(q, k):
    return entropy.attention_entropy(q, k, backends=(entropy.chunked,)).mean


def naive(q, k):
    weights = (q @ k.mT * CHANNELS**-0.5).softmax(dim=-1)
    return torch.special.entr(weights).sum(dim=-1).mean().item() / math.log(k.shape[2])


METHODS = {method.__name__: method for method in (plain, ours, sampled, chunked, naive)}


def inputs(n: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, n, CHANNELS, generator=generator).to(device) for _ in "qk"]


def seconds(method, q, k) -> float:
    if q.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    method(q, k)
    if q.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(name: str, n: int, device: str, threads: int) -> int:
    """Most memory held during one call, beyond what was held before it."""
    torch.set_num_threads(threads)
    method = METHODS[name]
    method(*inputs(64, device))  # load the kernels, run the self-test
    q, k = inputs(n, device)
    if q.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        method(q, k)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch():
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    method(q, k)
    done.set()
    watcher.join()
    return peak - before


def benchmark(n: int, device: str, repeats: int, threads: int) -> list[dict]:
    q, k = inputs(n, device)
    for method in METHODS.values():
        method(*inputs(64, device))
    times = {name: [] for name in METHODS}
    for _ in range(repeats):
        for name, method in METHODS.items():
            times[name].append(seconds(method, q, k))
    values = {name: method(q, k) for name, method in METHODS.items()}
    results = []
    for name in METHODS:
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            peak = fresh.apply(peak_bytes, (name, n, device, threads))
        results.append(
            {
                "device": device,
                "tokens": n,
                "method": name,
                "seconds": statistics.median(times[name]),
                "relative_time": statistics.median(
                    t / reference for t, reference in zip(times[name], times["plain"], strict=True)
                ),
                "peak_mib": peak / MIB,
                "entropy": values[name],
                "difference_from_naive": None if name == "plain" else abs(values[name] - values["naive"]),
            }
        )
    return results


def table(results: list[dict]) -> str:
    lines = [
        "| device | tokens | method | time (s) | × plain | peak memory (MiB) | off the naive value by |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        cells = [r["device"], str(r["tokens"]), r["method"]]
        cells += [f"{r['seconds']:.3f}", f"{r['relative_time']:.2f}", f"{r['peak_mib']:.0f}"]
        cells += ["" if r["difference_from_naive"] is None else f"{r['difference_from_naive']:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 9216])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    results = [r for d in devices for n in args.sizes for r in benchmark(n, d, args.repeats, args.threads)]
    print(table(results))
    if args.json:
        machine = {"torch": torch.__version__, "threads": args.threads, "repeats": args.repeats}
        args.json.write_text(json.dumps({**machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
