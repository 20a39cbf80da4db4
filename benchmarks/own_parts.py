"""The parts of a report of a user's own model: of each, the rows that are wanted, and what measures them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from figures import image_of
from harness import Json, pack, peak_memory, strip, take_turns
from torch import Tensor
from users_model import UsersModel, load_clip_vision
from ways import KL, MU, PLAIN, SCALE, Run, Subject, ways

PARTS = ("model", "register", "costs", "zs2", "guidance", "edit")
DEFAULTS = {"quick": (12, 2, 3), "full": (25, 8, 5)}
"""Of a budget: steps, seeds, rounds."""
COST_STEPS = 3
SCALES = (SCALE / 2, SCALE, 2 * SCALE)
CHART = "chart.png"
PLAIN_CFG, SOURCE, TARGET, EDIT, ZS2 = (
    "plain CFG",
    "source",
    "target prompt alone",
    "edit, maps of the lowest 50%",
    "both (ZS²)",
)
MEASURES = {
    "ssim": ("SSIM of neighbours", ".3f"),
    "warped_error": ("warped error", ".4f"),
    "flicker": ("flicker", ".4f"),
    "motion": ("motion (pixels)", ".2f"),
    "sharpness": ("sharpness", ".3f"),
    "kept": ("SSIM to the source", ".3f"),
    "frame_consistency": ("CLIP, neighbours", ".4f"),
    "text_similarity": ("CLIP, prompt", ".4f"),
    "directional_similarity": ("CLIP, direction", ".4f"),
}
"""Of clips: figure → title, and how it is written."""
Wanted = Iterable[tuple[str, Callable[[], Json]]]


def scaled(scale: float) -> str:
    return f"U−I, scale {scale:g}"


class Study:
    """One part of the report."""

    def __init__(self, asked: argparse.Namespace) -> None:
        steps, seeds, rounds = DEFAULTS[asked.budget]
        self.steps, self.seeds = asked.steps or steps, range(asked.seeds or seeds)
        self.asked, self.rounds, self.out = asked, asked.rounds or rounds, asked.out
        self.users = UsersModel(asked)
        self.vision = load_clip_vision(asked.clip_vision) if asked.clip_vision else None

    def subject(self, steps: int = 0) -> Subject:
        return self.users.subject(steps or self.steps)

    # What is measured of clips ---------------------------------------------------------------------------------------

    def drawn(self, seed: int, way: str, draw: Callable[[], Tensor]) -> Tensor:
        """Frames, as their file keeps them; ``draw`` makes latents."""
        path = self.out / f"{seed:02}" / f"{way}.png"
        return strip(path, lambda: self.users.decoded(draw()), self.users.frames)

    def figures(self, frames: Tensor, prompt: str, source: Tensor | None = None, source_prompt: str = "") -> Json:
        """Of a clip, and of what it keeps of its ``source``."""
        consistency, found = pack("metrics.consistency"), {}
        if len(frames) > 1:
            found |= consistency.means(consistency.temporal_consistency(frames))
        found["sharpness"] = pack("metrics.look").look(frames).sharpness.nanmean().item()
        if source is not None:
            found["kept"] = pack("metrics.similarity").ssim(frames, source).mean().item()
        if self.vision is not None:
            found |= self._content(frames, prompt, source, source_prompt)
        return {name: found[name] for name in MEASURES if name in found}

    def _content(self, frames: Tensor, prompt: str, source: Tensor | None, source_prompt: str) -> Json:
        content_of, encoders = pack("nodes.content").content_of, pack("nodes.encoders")
        texts = {"clip": prompt} | ({} if source is None else {"reference": source_prompt})
        clips = {"clip": frames, "reference": source}
        try:
            seen = content_of(self.vision, self.users.clip, clips, texts, lambda: None)
        except encoders.InputError as error:  # SD1.5's checkpoints hold no text projection
            print(f"prompts are not compared with pictures: {error}", flush=True)
            seen = content_of(self.vision, None, clips, {}, lambda: None)
        flat = seen["clip"] | {key: each for key, each in seen.get("against_reference", {}).items() if "direct" in key}
        return {name: each.nanmean().item() for name, each in flat.items() if len(each)}

    # Parts: what is wanted of each, a record a row -------------------------------------------------------------------

    def model(self) -> Wanted:
        yield "model", self._model

    def _model(self) -> Json:
        users, sites = self.users, pack("attention.sites").sites_of(self.users.model)
        self.subject()  # a text encoder that is missing shows here
        kinds = Counter(site.kind for site in sites)
        config, network = users.model.model.model_config, users.network
        return {
            "rows": {
                "file": Path(self.asked.checkpoint).name,
                "family": users.family.name,
                "class": f"{type(config).__name__}, {type(network).__name__}",
                "parameters": f"{users.parameters / 1e6:.1f} million, {str(users.model.model_dtype()).split('.')[-1]}",
                "attention layers": ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
                "a clip": f"{users.frames} frames of {users.size[1]}×{users.size[0]}, latents {users.shape}",
                "frames": "in the batch" if users.draws_pictures else "in the latent",
                "device": _device(),
                "prompt": f"“{users.prompts[0]}”",
            }
        }

    def register(self) -> Wanted:
        yield "register", self._register

    def _register(self) -> Json:
        registry, chart = self.subject().register("highest", 1, "all")
        image_of(chart[0]).save(self.out / CHART)
        kinds = pack("attention.registry").SELECTABLE
        layers = [each for each in registry.layers if each.figures and each.kind in kinds]
        return {
            "layers": [
                [each.name, each.kind, each.heads, each.figures.keys, each.figures.entropy, _smoothing(each.figures)]
                for each in layers
            ]
        }

    def costs(self) -> Wanted:
        subject = self.subject(COST_STEPS)
        found = ways(subject)
        plain = found.pop(PLAIN)()
        for name, made in found.items():
            yield name, partial(self._cost, plain, made)

    def _cost(self, plain: Run, made: Callable[[], Run]) -> Json:
        run = made()
        times = take_turns({"plain": plain, "way": run}, self.rounds)
        memory = {name: peak_memory(each) for name, each in (("plain", plain), ("way", run))}
        return {"seconds": times, "memory": memory, "on_gpu": torch.cuda.is_initialized()}

    def zs2(self) -> Wanted:
        subject = self.subject()
        attention = partial(pack("nodes.momentum").TemporalMomentumAttention.execute, subject.model, MU)
        made: dict[str, Callable[[int], Tensor]] = {
            PLAIN: lambda seed: subject.sample(subject.model, subject.noise(seed)),
            "dependency noise alone": lambda seed: subject.sample(subject.model, subject.noise(seed, KL)),
            "momentum attention alone": lambda seed: subject.sample(attention().args[0], subject.noise(seed)),
            ZS2: lambda seed: subject.sample(attention().args[0], subject.noise(seed, KL)),
        }
        yield from self._clips(made)

    def guidance(self) -> Wanted:
        subject = self.subject()
        made: dict[str, Callable[[int], Tensor]] = {
            PLAIN_CFG: lambda seed: subject.sample(subject.model, subject.noise(seed, KL))
        }
        for scale in SCALES:
            made[scaled(scale)] = lambda seed, scale=scale: subject.sample(
                subject.guided_by("U-I", scale), subject.noise(seed, KL)
            )
        yield from self._clips(made)

    def _clips(self, made: dict[str, Callable[[int], Tensor]]) -> Wanted:
        prompt = self.users.prompts[0]
        for seed in self.seeds:
            for way, draw in made.items():
                yield f"{seed:02} {way}", partial(self._clip, seed, way, partial(draw, seed), prompt)

    def _clip(self, seed: int, way: str, draw: Callable[[], Tensor], prompt: str) -> Json:
        return {"seed": seed, "way": way} | self.figures(self.drawn(seed, way, draw), prompt)

    def edit(self) -> Wanted:
        """The source, its redrawing by the target prompt with nothing taken from it, and the edit."""
        subject, video = self.subject(), self.users.video()
        source, target = self.users.prompts
        for seed in self.seeds if video is None else self.seeds[:1]:
            start = {"noise": subject.noise(seed, KL)} if video is None else self._start(subject, video)
            clips: list[tuple[Tensor, Tensor]] = []

            def both(start: Json = start, clips: list = clips) -> tuple[Tensor, Tensor]:
                clips[:] = clips or [subject.edit(subject.lowest, **start)]
                return clips[0]

            def row(way: str, draw: Callable[[], Tensor], seed: int = seed, both: Callable = both) -> Json:
                before = self.drawn(seed, SOURCE, lambda: both()[1])
                if way == SOURCE:
                    return {"seed": seed, "way": way} | self.figures(before, source)
                return {"seed": seed, "way": way} | self.figures(self.drawn(seed, way, draw), target, before, source)

            def redrawn(start: Json = start) -> Tensor:
                return subject.sample(subject.model, start["noise"], subject.target, start.get("latent_image"))

            for way, draw in (
                (SOURCE, lambda both=both: both()[1]),
                (TARGET, redrawn),
                (EDIT, lambda both=both: both()[0]),
            ):
                yield f"{seed:02} {way}", partial(row, way, draw)

    def _start(self, subject: Subject, video: dict[str, Tensor]) -> Json:
        """Of an edit of a real clip: its inversion."""
        from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

        latent, trajectory = subject.inverted(video, subject.positive)
        noise = Noise_EmptyNoise()
        if self.users.is_flow:
            noise = pack("nodes.inversion").NoiseFromLatent.execute(latent, subject.model).args[0]
        return {"trajectory": trajectory, "source_cfg": 1.0, "latent_image": latent, "noise": noise}


def _smoothing(figures: Any) -> float:
    return figures.energy.proportion


def _device() -> str:
    import comfy.model_management as management

    device = management.get_torch_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return f"{name}, {management.get_total_memory(device) / 2**30:.1f} GiB"
