"""What the techniques cost on a GPU: full-sized models with random weights, in a few minutes, as a table and as JSON.

    python benchmarks/gpu.py --comfyui DIR [--minutes 8] [--models sd15 wan sdxl flux] [--small] [--out FOLDER]

Models as large as SD1.5, SDXL, Flux.1 and Wan 2.1 1.3B, in bf16 and fp16. Each technique runs in turns with plain
sampling; times are synchronised, and memory is the most that PyTorch's allocator held. Then the same under every
attention that is installed, with ``torch.compile``, and with a model of which half fits onto the GPU. A row that fails
says why, and the others go on. The script keeps to its time: what is not begun by then is named, and what still runs is
given up. ``--small``: the same with small models, on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from statistics import median
from time import monotonic
from typing import Any

import numpy as np
import torch
from claims import estimate, shown
from figures import table
from gpu_sizes import SIZES
from harness import FIGURES, MIB, Json, command_line, enter, peak_memory, save, take_turns
from users_model import reason_of
from ways import PLAIN, Run, Subject, ways

STEPS, ROUNDS = 2, 3
SHORTEST = 5.0
"""Seconds with which nothing is worth beginning."""
TEXT = 77
MEASURED = (
    "entropy of every layer at every step",
    "guidance A−I (IE-Adapt)",
    "guidance U−I (IE-Adapt)",
    "guidance U−I, layers ranked at every step",
    "momentum attention (ZS²)",
    "momentum attention, half of the frames at a time",
    "edit: target and source (IE-Adapt)",
    "token merging (VidToMe)",
)
PICTURES_ONLY = ("momentum", "token merging")
FEW = (MEASURED[0], MEASURED[2], MEASURED[4])
"""Under other attentions, compiled, and with little memory."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def build(name: str, dtype: torch.dtype, is_small: bool) -> Subject:
    """A model on its device; random weights of unit variance."""
    import comfy.model_management as management
    import comfy.samplers
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    kind, config, small, latents, small_latents, widths, small_widths = SIZES[name]
    config, widths = (config | small, widths | small_widths) if is_small else (config, widths)
    made = getattr(comfy.supported_models, kind)(dict(config))
    made.unet_config.pop("disable_unet_model_creation", None)
    made.set_inference_dtype(dtype, None)
    device = management.get_torch_device()
    model = made.get_model({}, "", device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for key, weight in model.diffusion_model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, (len(weight) / weight.numel()) ** 0.5, generator=generator)
            else:
                weight.fill_(0.0 if key.endswith("bias") else 1.0)
    patcher = ModelPatcher(model, load_device=device, offload_device=management.unet_offload_device())
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
    texts = [_text(widths, seed) for seed in range(3)]
    cfg = 1.0 if name == "flux" else 5.0  # whose guidance is distilled
    return Subject(patcher, *texts, sigmas, cfg, small_latents if is_small else latents, name != "wan")


def _text(widths: Json, seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    rest = {key: torch.randn(1, width, generator=generator) for key, width in widths.items() if key != "context"}
    return [[torch.randn(1, TEXT, widths["context"], generator=generator), rest]]


def with_attention(subject: Subject, name: str) -> Subject:
    """By an attention of ComfyUI's own."""
    from comfy.ldm.modules.attention import get_attention_function

    attend = get_attention_function(name)
    model = subject.model.clone()

    def override(_func: Callable, *args: Any, **kwargs: Any) -> Any:
        return attend(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return _with_model(subject, model)


def compiled(subject: Subject) -> Subject:
    model = subject.model.clone()
    model.add_object_patch("diffusion_model", torch.compile(subject.model.get_model_object("diffusion_model")))
    return _with_model(subject, model)


def _with_model(subject: Subject, model: Any) -> Subject:
    text = subject.positive, subject.target, subject.negative
    return Subject(model, *text, subject.sigmas, subject.cfg, subject.shape, subject.draws_pictures)


def attentions() -> list[str]:
    """Those that are installed, beside PyTorch's, by which all else is measured."""
    from comfy.ldm.modules.attention import REGISTERED_ATTENTION_FUNCTIONS

    left_out = ("pytorch", "basic", "split", "sub_quad", "sub_quadratic")  # made for little memory
    return [name for name in REGISTERED_ATTENTION_FUNCTIONS if name not in left_out]


class Half:
    """While entered, half of a model's weights fit onto the GPU."""

    def __init__(self, subject: Subject) -> None:
        self.model = subject.model

    def __enter__(self) -> None:
        import comfy.model_management as management

        if not torch.cuda.is_available():
            raise ValueError("needs a GPU")
        management.unload_all_models()
        free, self.before = management.get_free_memory(), management.EXTRA_RESERVED_VRAM
        management.EXTRA_RESERVED_VRAM = max(self.before, int(free - self.model.model_size() / 2))
        management.vram_state = management.VRAMState.LOW_VRAM

    def __exit__(self, *_: object) -> None:
        import comfy.model_management as management

        management.EXTRA_RESERVED_VRAM, management.vram_state = self.before, management.VRAMState.NORMAL_VRAM
        management.unload_all_models()


# Measuring -----------------------------------------------------------------------------------------------------------


class Budget:
    """The rows, and the time in which they are measured."""

    def __init__(self, minutes: float) -> None:
        self.end = monotonic() + 60 * minutes
        self.rows: list[Json] = []

    def row(self, measure: Callable[[], Json], **told: str) -> None:
        """What ``measure`` finds, or why it finds nothing."""
        found: Json = {"reason": "no time was left for it"}
        if self.end - monotonic() > SHORTEST:
            try:
                found = measure()
            except Exception as error:
                found = {"reason": reason_of(error)}
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.rows.append(told | found)
        print(" ".join(told.values()), found.get("reason") or f"{ratio(self.rows[-1])}", flush=True, file=sys.stderr)


def cost(subject: Subject, way: str) -> Json:
    """Of ``way``, in turns with plain sampling; of that by itself, its seconds."""
    found = ways(subject)
    plain = found[PLAIN]()
    run: Run = plain if way == PLAIN else found[way]()
    times = take_turns({"plain": plain} if way == PLAIN else {"plain": plain, "way": run}, ROUNDS)
    before, peak = peak_memory(run)
    base = peak if way == PLAIN else peak_memory(plain).peak
    on_gpu = torch.cuda.is_available()
    return {"seconds": times, "peak": peak, "plain_peak": base, "before": 0 if on_gpu else before}


def measure(budget: Budget, names: list[str], dtypes: list[str], is_small: bool) -> None:
    """The most telling rows first."""
    for dtype in dtypes:
        for name in names:
            subject: list[Subject] = []

            def built(name: str = name, dtype: str = dtype, subject: list[Subject] = subject) -> Subject:
                subject[:] = subject or [build(name, DTYPES[dtype], is_small)]
                return subject[0]

            told = {"model": name, "dtype": dtype}
            for way in _of(MEASURED if dtype == dtypes[0] else FEW, name):
                budget.row(lambda way=way, built=built: cost(built(), way), **told, how="SDPA", way=way)
            if dtype == dtypes[0]:
                for how, changed, way in _further(name):
                    budget.row(partial(_changed, built, changed, way), **told, how=how, way=way)
            subject.clear()


def _of(chosen: tuple[str, ...], name: str) -> Iterator[str]:
    yield PLAIN
    yield from (each for each in chosen if name != "wan" or not each.startswith(PICTURES_ONLY))


def _further(name: str) -> Iterator[tuple[str, Any, str]]:
    """Other attentions, a compiled model, half a model: how, what makes it so, way."""
    for attention in attentions():
        for way in _of(FEW, name):
            yield attention, partial(with_attention, name=attention), way
    for way in _of(FEW, name):
        yield "lowvram", Half, way
    if name in ("sd15", "wan"):  # the others take too long to compile
        for way in _of(FEW[1:], name):
            yield "torch.compile", compiled, way


def _changed(built: Callable[[], Subject], change: Callable[[Subject], Any], way: str) -> Json:
    subject = built()
    if change is Half:
        with Half(subject):
            return cost(subject, way)
    return cost(change(subject), way)


# Telling -------------------------------------------------------------------------------------------------------------


def ratio(row: Json) -> str:
    if "way" not in row["seconds"]:
        return f"{median(row['seconds']['plain']):.3f} s"
    way, plain = (torch.tensor(row["seconds"][each], dtype=torch.float64) for each in ("way", "plain"))
    return shown(estimate(way / plain, np.median), ".2f")


def tables(rows: list[Json]) -> str:
    """The rows that were measured, then those that were not."""
    header = ["model", "dtype", "attention", "what", "time, of plain sampling", "peak (MiB)", "plain sampling’s"]
    key = ("model", "dtype", "how", "way")
    done = [
        [*(row[each] for each in key), ratio(row), *(f"{(row[p] - row['before']) / MIB:.0f}" for p in PEAKS)]
        for row in rows
        if "seconds" in row
    ]
    failed = [[*(row[each] for each in key), row["reason"]] for row in rows if "reason" in row]
    made = table(header, done)
    return f"{made}\n\n{table([*header[:4], 'not measured'], failed)}" if failed else made


PEAKS = ("peak", "plain_peak")


def told(asked: argparse.Namespace, rows: list[Json]) -> Json:
    on_gpu = torch.cuda.is_available()
    chip = torch.cuda.get_device_name() if on_gpu else "CPU"
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return {"date": date, "chip": chip, "torch": torch.__version__, "small": asked.small, "rows": rows}


def finish(asked: argparse.Namespace, budget: Budget) -> None:
    found = told(asked, list(budget.rows))
    save(asked.out, found)
    memory = "held on the GPU" if torch.cuda.is_available() else "by which the process grew"
    print(f"{found['chip']}, {found['date']}, PyTorch {found['torch']}. Peak memory is what was {memory} at most.\n")
    print(tables(found["rows"]), f"\nJSON: {asked.out / FIGURES}", sep="\n")
    print(json.dumps(found), flush=True)


def main() -> None:
    parser = command_line(__doc__, minutes=(8.0, "that it takes at most"))
    parser.add_argument("--models", nargs="+", choices=[*SIZES], default=[*SIZES])
    parser.add_argument("--dtypes", nargs="+", choices=[*DTYPES], help="default: bf16 fp16; fp32 with --small")
    parser.add_argument("--small", action="store_true", help="small models, for a CPU")
    asked = parser.parse_args()
    if not asked.small and not torch.cuda.is_available():
        sys.exit("gpu.py: PyTorch finds no GPU here. Try --small, which runs the same with small models on the CPU.")
    budget = Budget(asked.minutes)
    enter(asked, "pytorch")

    def give_up() -> None:
        finish(asked, budget)
        os._exit(0)

    watch = threading.Timer(max(60 * asked.minutes, 1.0), give_up)
    watch.daemon = True
    watch.start()
    try:
        with torch.inference_mode():
            measure(budget, asked.models, asked.dtypes or (["fp32"] if asked.small else ["bf16", "fp16"]), asked.small)
    finally:
        watch.cancel()
    finish(asked, budget)


if __name__ == "__main__":
    main()
