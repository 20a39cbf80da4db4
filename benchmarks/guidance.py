"""What a guided step costs: IE-Adapt's guidances beside plain CFG and ComfyUI's perturbed attention guidance (PAG).

    python benchmarks/guidance.py --comfyui DIR [--rounds 5] [--out FOLDER] [--publish]

On the demo model (4.3 M parameters) and on a tiny Wan (5 M), random weights, with an early, a middle and a late layer
perturbed. PAG evaluates its perturbed branch in a call of its own: ComfyUI's node at the middle block of UNets, the one
that it knows, and its method elsewhere. Ours have all branches in one call; "not shared" computes what copies have in
common for each of them, a switch that only this benchmark has.

The ways take turns within a round and the medians of the rounds count. Times on the CPU are those of the process, of
one thread: what else runs on the machine is not in them. Memory that was used is kept, as a GPU's allocator keeps it;
glibc returns large tensors to the system, and gets them anew page by page, which makes larger batches slower for each
row: ``--return-memory`` measures with that. Theory: f is the share of floating point operations before
the perturbed layer; [A−I] is 1.5 − f/2 times the cost of CFG, [U−I] 2 − f.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from claims import Cost
from figures import COLOURS, MUTED, PACK, legend, panels, publish, style, table
from harness import Demo, Json, command_line, enter, now, pack, save
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

NAME = "guidance_cost"
SCALE, CFG, STEPS = 2.0, 5.0, 3
PLAIN, PAG = "plain CFG", "PAG, a call of its own"
OURS = {
    "[A−I]": ("A-I", True),
    "[A−I] not shared": ("A-I", False),
    "[U−I]": ("U-I", True),
    "[U−I] not shared": ("U-I", False),
}
WAYS = (PLAIN, PAG, *OURS)


@dataclass(frozen=True)
class Subject:
    """A model, what it is asked for, and the layers to perturb, from early to late."""

    name: str
    model: Any
    positive: list
    negative: list
    shape: tuple[int, ...]
    layers: dict[str, Callable]
    """Name → a clone of the model with PAG there."""


def theory(way: str, before: float) -> float:
    """The cost in that of CFG, ``before`` being the share of the work ahead of the perturbed layer."""
    if way == PLAIN:
        return 1.0
    guidance, is_shared = OURS.get(way, ("A-I", False))
    further = {"A-I": 1, "U-I": 2}[guidance]
    return 1 + further / 2 * (1 - before if is_shared else 1)


# Models --------------------------------------------------------------------------------------------------------------


def with_pag(model: Any, perturb: Callable[[dict], dict]) -> Any:
    """PAG as ComfyUI's node has it, with the layer chosen by what ``perturb`` does to a step's model options."""
    import comfy.samplers

    def guide(args: dict) -> Tensor:
        options = perturb(args["model_options"].copy())
        (perturbed,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], options
        )
        return args["denoised"] + (args["cond_denoised"] - perturbed) * SCALE

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(guide)
    return clone


def unet_pag(model: Any, part: str, number: int) -> Any:
    from comfy.model_patcher import set_model_options_patch_replace

    def values(q: Tensor, k: Tensor, v: Tensor, options: dict, mask: Tensor | None = None) -> Tensor:
        return v

    return with_pag(model, lambda options: set_model_options_patch_replace(options, values, "attn1", part, number))


def core_pag(model: Any) -> Any:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    return PerturbedAttentionGuidance.execute(model, SCALE).args[0]


def wan_pag(model: Any, number: int) -> Any:
    """Wan has no ``attn1`` to replace: its self-attention is told by as many queries as keys."""

    def attend(func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        is_perturbed = kwargs["transformer_options"]["block_index"] == number and q.shape == k.shape
        return v if is_perturbed else func(q, k, v, heads, *args, **kwargs)

    return with_pag(
        model,
        lambda options: {
            **options,
            "transformer_options": {**options["transformer_options"], "optimized_attention_override": attend},
        },
    )


def demo(frames: int, side: int) -> Subject:
    model = Demo()
    positive, negative = map(model.encode, ("a large red star on a blue background", ""))
    layers = {
        "input.1.attn1": lambda model: unet_pag(model, "input", 1),
        "middle.0.attn1": core_pag,
        "output.3.attn1": lambda model: unet_pag(model, "output", 3),
    }
    return Subject("demo model", model.model, positive, negative, (frames, 4, side, side), layers)


def wan(folder: Path, frames: int, side: int) -> Subject:
    sys.path.append(str(PACK / "tests" / "support"))
    from tiny_models import FAMILIES, TinyModels

    layers = {f"blocks.{n}.self_attn": lambda model, n=n: wan_pag(model, n) for n in (0, 2, 3)}
    model = TinyModels(folder).load("wan21")
    return Subject("tiny Wan", model, *FAMILIES["wan21"].conditioning(), (1, 16, frames, side, side), layers)


def ours(model: Any, guidance: str, layer: str) -> Any:
    (registry,) = pack("nodes.entropy_register").SelectAttentionLayers.execute(model, layer).args
    return pack("samplers.ie_guidance").guide(model, registry, guidance, SCALE, asked_by="benchmark")


# Measuring -----------------------------------------------------------------------------------------------------------


@contextmanager
def nothing_shared() -> Iterator[None]:
    """Every copy of a branch is computed as a whole."""
    run = pack("attention.run")
    layers_before = run.layers_before
    run.layers_before = lambda layers, parting: []
    try:
        yield
    finally:
        run.layers_before = layers_before


def keep_memory() -> None:
    """Let glibc keep what is freed; nothing happens elsewhere."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def sample(model: Any, subject: Subject, steps: int) -> tuple[float, Tensor]:
    """Seconds per step after the first, which also prepares; and the latents."""
    import comfy.sample

    marks: list[float] = []
    latent = torch.zeros(subject.shape)
    noise = torch.randn(subject.shape, generator=torch.Generator().manual_seed(0))
    how: dict[str, Any] = {"callback": lambda *_: marks.append(now()), "disable_pbar": True, "seed": 0}
    asked = (steps, CFG, "euler", "normal", subject.positive, subject.negative, latent)
    result = comfy.sample.sample(model, noise, *asked, **how)
    return (marks[-1] - marks[0]) / max(1, steps - 1), result


def attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of torch's attention on the CPU, for which torch has no formula; arguments are shapes (B, heads, N, c)."""
    rows, heads, queries, channels = query
    return 2 * rows * heads * queries * key[-2] * (channels + value[-1])


def share_before(subject: Subject, layer: str) -> float:
    """The share of a step's floating point operations before ``layer``."""
    module = next(s.module for s in pack("attention.sites").sites_of(subject.model) if s.name == layer)
    formulas = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    before: list[int] = []
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        hook = module.register_forward_pre_hook(lambda *_: before.append(counter.get_total_flops()))
        try:
            sample(subject.model, subject, steps=1)
        finally:
            hook.remove()
    return before[0] / counter.get_total_flops()


def measure(subject: Subject, layer: str, rounds: int) -> Json:
    """Seconds per step of every way with ``layer`` perturbed."""
    models = {PLAIN: subject.model, PAG: subject.layers[layer](subject.model)}
    models |= {way: ours(subject.model, guidance, layer) for way, (guidance, _) in OURS.items()}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    latents: dict[str, Tensor] = {}
    for number in range(rounds + 1):
        for way, model in models.items():
            with nothing_shared() if way.endswith("not shared") else nullcontext():
                seconds, latents[way] = sample(model, subject, STEPS)
            times[way] += [seconds] if number else []  # the first round warms up
    before = share_before(subject, layer)
    ways = {}
    for way in WAYS:
        ratio = median(t / plain for t, plain in zip(times[way], times[PLAIN], strict=True))
        ways[way] = {"seconds": median(times[way]), "ratio": ratio, "theory": theory(way, before)}
    off = (latents["[A−I]"] - latents[PAG]).norm() / (latents[PAG] - latents[PLAIN]).norm()
    return {"model": subject.name, "layer": layer, "before": before, "off_pag": off.item(), "ways": ways}


# Telling -------------------------------------------------------------------------------------------------------------


def tables(results: list[Json]) -> str:
    """One line a layer: the cost in that of CFG, and in brackets in theory."""
    rows = [
        [
            r["model"],
            f"`{r['layer']}`",
            *(f"{r['ways'][w]['ratio']:.2f} ({r['ways'][w]['theory']:.2f})" for w in WAYS[1:]),
        ]
        for r in results
    ]
    return table(["model", "perturbed layer", *WAYS[1:]], rows)


def chart(results: list[Json]) -> Any:
    """With theory as a line across each bar."""
    ways, colours = WAYS[1:], (MUTED, COLOURS[0], f"{COLOURS[0]}55", COLOURS[1], f"{COLOURS[1]}55")
    figure, ((axes,),) = panels("What a guided step costs", "In the cost of plain CFG.", 1, 1, (1200, 400))
    style(axes)
    for number, (way, colour) in enumerate(zip(ways, colours, strict=True)):
        places = [place + (number - 2) * 0.16 for place in range(len(results))]
        axes.bar(places, [r["ways"][way]["ratio"] for r in results], 0.15, color=colour, label=way)
        levels = [r["ways"][way]["theory"] for r in results]
        label = "theory" if way == ways[-1] else None
        axes.hlines(levels, [p - 0.075 for p in places], [p + 0.075 for p in places], color="black", label=label)
    axes.set_xticks(range(len(results)), [f"{r['model']}\n{r['layer']}" for r in results])
    axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=":")
    legend(figure, axes)
    return figure


def costs(results: list[Json]) -> list[Cost]:
    return [
        Cost(
            f"{way.replace('−', ' − ')} at {row['layer']} of the {row['model']}, of plain CFG",
            f"{row['ways'][way]['ratio']:.2f}",
            f"{row['ways'][way]['theory']:.2f}",
            f"ComfyUI’s PAG {row['ways'][PAG]['ratio']:.2f}" if way == "[A−I]" else "",
        )
        for row in results
        for way in ("[A−I]", "[U−I]")
    ]


def main() -> None:
    parser = command_line(
        __doc__,
        "publish",
        rounds=(5, ""),
        frames=(8, "latent frames of the demo model; Wan has 5"),
        side=(32, "height and width of the latents"),
    )
    parser.set_defaults(threads=1)
    parser.add_argument("--return-memory", action="store_true", help="let glibc return memory to the system")
    arguments = parser.parse_args()
    if not arguments.return_memory:
        keep_memory()
    enter(arguments)
    results = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for subject in (demo(arguments.frames, arguments.side), wan(Path(folder), 5, arguments.side)):
            print(f"{subject.name}: latents {subject.shape}", flush=True)
            for layer in subject.layers:
                results.append(measure(subject, layer, arguments.rounds))
                print(f"{layer}: [A−I] is off PAG by {results[-1]['off_pag']:.1e} of PAG's effect", flush=True)
    save(arguments.out, results)
    how = arguments.out, arguments.publish
    print(publish(NAME, *how, tables(results), chart(results)))


if __name__ == "__main__":
    main()
