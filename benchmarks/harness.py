"""What studies and benchmarks share: the pack in a ComfyUI, a command line, the demo model, what is kept, and costs.

Each of the other files is a page: its docstring says what varies and what is measured, ``main`` measures it, and
``claims`` or ``costs`` say what its figures mean.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from time import monotonic, perf_counter, process_time
from typing import Any, NamedTuple, TypeVar

import torch
from figures import PACK, image_of
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Json = dict[str, Any]
T = TypeVar("T")
RECORDS, FIGURES = "records.jsonl", "figures.json"
"""In a study's folder, one or the other."""
TOOK = "took"
"""In a record: seconds of processors, whichever run measured it."""
SIDE = 128
"""Pixels of the demo model's pictures."""
MIB = 2**20

if "coherence" not in sys.modules:
    sys.path.append(str(PACK))
    importlib.import_module("_enter_pack").enter()


def pack(name: str) -> Any:
    """A module of the pack."""
    return importlib.import_module(f"coherence.{name}")


# Command line --------------------------------------------------------------------------------------------------------


def command_line(
    doc: str | None, *also: str, comfyui: bool = True, **numbers: tuple[float, str]
) -> argparse.ArgumentParser:
    """What every script takes; ``also``, of minutes and publish; and of its own ``numbers``, name → default and
    meaning."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if comfyui:
        parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    place = Path("coherence-report", Path(sys.argv[0]).stem)
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=place, help=f"for all that is made ({place})")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    if "minutes" in also:
        parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing more after so many")
    if "publish" in also:
        parser.add_argument("--publish", action="store_true", help="write the documentation's tables and pictures, too")
    for key, (default, meaning) in numbers.items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(default), default=default, help=meaning)
    return parser


def enter(arguments: argparse.Namespace, attention: str = "") -> argparse.Namespace:
    """Make ComfyUI importable, and its ``attention`` PyTorch's, as on GPUs, if asked: its own for CPUs cuts the work to
    the memory that is free. Returns its arguments."""
    torch.set_num_threads(arguments.threads)
    options = enter_comfyui(arguments.comfyui)
    options.use_pytorch_cross_attention = attention == "pytorch"
    return options


def enter_comfyui(folder: Path) -> argparse.Namespace:
    """Make ComfyUI importable, before what it shares names with; returns its arguments."""
    sys.path.insert(0, str(folder.resolve()))
    import comfy.options  # noqa: F401  (the script owns the command line)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    return args


# The demo model ------------------------------------------------------------------------------------------------------

SAYS = {
    "The prompt says everything": ("shape", "colour", "background", "size", "position"),
    "The prompt leaves size and place open": ("shape", "colour", "background"),
}
"""Kinds of prompts, and what of a picture they say."""
FULL, OPEN = SAYS


def open_prompt(scene: Any) -> str:
    """It leaves size and place open, so that plain sampling decides anew at every frame."""
    return f"a {scene.colour} {scene.shape} on a {scene.background} background"


class Demo:
    """The first demo model, of five shapes, of ``kind`` image or video, with its text encoder and VAE."""

    def __init__(self, kind: str = "image") -> None:
        loader, is_video = pack("demo.model"), kind == "video"
        self.model = loader.load_video_model() if is_video else loader.load_model()
        self.text = loader.load_clip(loader.VIDEO_TEXT_ENCODER_FILE if is_video else loader.TEXT_ENCODER_FILE)
        self.vae = loader.load_vae()

    def encode(self, prompt: str) -> list:
        return self.text.encode_from_tokens_scheduled(self.text.tokenize(prompt))

    def decode(self, latents: Tensor) -> Tensor:
        """(F, height, width, 3) in [0, 1]; one by one, which CPUs do faster."""
        return torch.cat([self.vae.decode(each) for each in latents.split(1)]).float().cpu().clamp(0, 1)

    def sigmas(self, steps: int, scheduler: str = "karras") -> Tensor:
        import comfy.samplers

        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), scheduler, steps)

    def sample(
        self,
        model: Any,
        noise: Tensor,
        positive: list,
        steps: int,
        cfg: float = 5.0,
        sampler: str = "dpmpp_2m",
        scheduler: str = "karras",
        seed: int = 0,
        latents: Tensor | None = None,
        denoise: float = 1.0,
    ) -> Tensor:
        """Latents, as ComfyUI's KSampler makes them, of ``latents`` if given."""
        import comfy.sample

        start, negative = torch.zeros_like(noise) if latents is None else latents, self.encode("")
        how = (steps, cfg, sampler, scheduler, positive, negative, start)
        return comfy.sample.sample(model, noise, *how, denoise=denoise, disable_pbar=True, seed=seed)

    def invert(self, model: Any, latents: Tensor, prompt: str, sigmas: Tensor, **how: Any) -> Tensor:
        """The noise that the pack's inversion finds, ``how`` being its settings."""
        inversion = pack("samplers.inversion")
        asked = (sigmas, inversion.Inversion(**how), 0, "study")
        return inversion.invert_latent(model, self.encode(prompt), None, 1.0, {"samples": latents}, *asked)[0]

    def edit(
        self, model: Any, prompts: Iterable[Any], start: tuple, trajectory: Any = None, **how: Any
    ) -> tuple[Tensor, Tensor]:
        """Latents of target and source. ``prompts``: encoded, of source, target and negative; ``start``: noise, sigmas
        and latent; ``trajectory``: the inversion's, to pin the source to; ``how``: the settings of the pack's edit."""
        from comfy.samplers import sampler_object

        editing, (noise, sigmas, latent) = pack("samplers.editing"), start
        run = (noise, sampler_object("euler"), sigmas, latent, "study")
        return editing.sample_edit(model, editing.Prompts(*prompts), editing.Edit(**how), *run, trajectory=trajectory)

    def redraw(self, model: Any, start: Tensor, sigmas: Tensor, positive: list, negative: Any = None, cfg: float = 1.0):
        """Latents by Euler's steps from ``start``, to which no noise is added."""
        return guided(model, torch.zeros_like(start), start, sigmas, positive, negative, cfg)


class World(Demo):
    """The picture model of the demo's world, with its text encoder and VAE."""

    def __init__(self, weights: Mapping[str, Tensor] | None = None) -> None:
        world = pack("demo.world.model")
        self.model, self.text, self.vae = world.load_model(weights), world.load_clip(), world.load_vae()


def world_digests(image: Path | None = None) -> dict[str, str]:
    """Of the files that :class:`World` is made of; ``image``: the UNet's, if not the repository's."""
    folder = pack("demo.world.model").WEIGHTS
    files = {"weights": image or folder / "world_image.safetensors"}
    files |= {part: folder / f"world_{part}.safetensors" for part in ("text", "decoder")}
    return {name: pack("demo.gates").digest(file) for name, file in files.items()}


def guided(
    model: Any,
    noise: Tensor,
    latents: Tensor,
    sigmas: Tensor,
    positive: list,
    negative: Any = None,
    cfg: float = 1.0,
    sampler: Any = None,
) -> Tensor:
    """Latents by ComfyUI's CFGGuider and, unless another ``sampler`` is given, Euler's steps."""
    from comfy.samplers import CFGGuider, sampler_object

    guider = CFGGuider(model)
    guider.inner_set_conds({"positive": positive} | ({"negative": negative} if negative else {}))
    guider.set_cfg(cfg)
    sampler = sampler or sampler_object("euler")
    return guider.sample(noise, latents, sampler, sigmas, disable_pbar=True, seed=0)


def empty(frames: int, side: int = SIDE) -> dict[str, Tensor]:
    return {"samples": torch.zeros(frames, 4, side // 8, side // 8)}


def dependency_noise(seed: int, kl: float, candidates: int = 0, previous: dict | None = None) -> Any:
    """As the node makes it unless told otherwise, or by the paper's search among ``candidates``; ``previous``: the
    noise of the frames before."""
    settings = ("", "generalised", "bisection", candidates or 1, 15, previous)
    return pack("nodes.noise").DependencyNoise.execute(seed, kl, *settings, orthogonal=not candidates).args[0]


def obeys(frames: Tensor, scene: Any, says: Iterable[str]) -> Tensor:
    """The share of what is said of a scene that each frame shows, (F,)."""
    reader = pack("demo.reader")
    right = reader.correct(reader.read(frames), scene)
    return torch.stack([right[name] for name in says]).float().mean(0)


# What is kept --------------------------------------------------------------------------------------------------------


def remember(path: Path, settings: Mapping[str, Any]) -> None:
    """Write down the settings of what a folder holds; exits where it holds something with others."""
    text = json.dumps(settings, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text("utf-8") != text:
        raise SystemExit(f"{path.parent} holds a study with other settings. Name another folder.")
    path.write_text(text, "utf-8")


def save(folder: Path, figures: Any) -> None:
    """Of a script that measures all at once."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FIGURES).write_text(json.dumps(figures, indent=1, ensure_ascii=False), "utf-8")


class Records:
    """What was measured, a line each: an interrupted study goes on where it was."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        remember(folder / "settings.json", settings)
        self.path = folder / RECORDS
        lines = self.path.read_text("utf-8").splitlines(keepends=True) if self.path.exists() else []
        lines = [line for line in lines if line.endswith("\n")]  # the last one may have been cut off
        self.path.write_text("".join(lines), "utf-8")
        self._kept: dict[str, Json] = {record["key"]: record for record in map(json.loads, lines)}

    def take(self, wanted: Iterable[tuple[str, Callable[[], Json]]], minutes: float) -> Iterator[Json]:
        """The record of each key. What is not there is measured, for so many minutes, and once in any case."""
        end, has_any = monotonic() + 60 * minutes, False
        for key, measure in wanted:
            if key not in self._kept:
                if has_any and monotonic() > end:
                    continue
                began = process_time()
                record = {"key": key} | measure()
                record[TOOK] = round(process_time() - began, 2)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                self._kept[key] = json.loads(json.dumps(record))
                print(key, file=sys.stderr, flush=True)
            has_any = True
            yield self._kept[key]


def within(minutes: float, items: Iterable[T]) -> Iterator[T]:
    """The items that are begun within ``minutes``, and the first in any case."""
    end = monotonic() + 60 * minutes
    for place, item in enumerate(items):
        if place and monotonic() > end:
            return
        yield item


def strip(path: Path, draw: Callable[[], Tensor] | None = None, frames: int = 0) -> Tensor:
    """Frames (F, H, W, 3) as a file keeps them, side by side, so many of them or square ones; ``draw`` makes them
    unless they are there."""
    import numpy as np
    from PIL import Image

    if draw and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        image_of(draw().movedim(0, 1).flatten(1, 2)).save(unfinished, format="PNG")
        unfinished.replace(path)
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    shape = (frames, -1) if frames else (-1, pixels.shape[0])
    return pixels.unflatten(1, shape).movedim(1, 0).float() / 255


# Costs ---------------------------------------------------------------------------------------------------------------


def now() -> float:
    """Seconds: of this process on a CPU, where what else runs on the machine does not count; else of the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return perf_counter()
    return process_time()


def take_turns(runs: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = now) -> Json:
    """Seconds of each in every round, after one to warm up. They take turns, beginning with another one each time, so
    that what else the machine does falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        first = turn % len(runs)
        for name in [*runs][first:] + [*runs][:first]:
            start = clock()
            runs[name]()
            if turn:
                times[name].append(clock() - start)
    return times


def sampling(model: Any, frames: int, side: int) -> Callable[[], None]:
    """Two steps with CFG of ``frames`` frames of ``side`` pixels, as a function to be called again and again."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = ([[torch.randn(1, 32, 128, generator=generator), {}]] for _ in range(2))
    noise, sigmas = torch.randn(frames, 4, side // 8, side // 8, generator=generator), torch.tensor([10.0, 1.0, 0.0])

    def run() -> None:
        guided(model, noise, torch.zeros_like(noise), sigmas, positive, negative, 4.0)

    return run


class LiveTensors(TorchDispatchMode):
    """``peak``: the most bytes that tensors made in this context held at once; views count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = StorageWeakRef(x.untyped_storage())
                self._live[storage.cdata] = storage, x.untyped_storage().nbytes()
        self._live = {key: live for key, live in self._live.items() if not live[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def peak_of(run: Callable[[], Any]) -> float:
    """MiB that ``run`` holds at most, beside what was there before."""
    with LiveTensors() as live:
        run()
    return live.peak / MIB


class Memory(NamedTuple):
    """Bytes, of the GPU's allocator or of the whole process."""

    before: int
    peak: int


def peak_memory(run: Callable[[], Any]) -> Memory:
    """What is held before ``run``, and at most while it runs."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return Memory(before, torch.cuda.max_memory_allocated())
    import psutil

    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what glibc keeps of earlier runs would hide what this one takes
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return Memory(before, peak)
