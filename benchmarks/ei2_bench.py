"""What the two studies of one-shot tuning share: the clips, what is tuned on them, and the weights, which are kept."""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness import Demo, command_line, enter, now, pack, remember
from torch import Tensor

WORDS = "a {colour} {shape} on a {background} background"
CHANGES = ("colour", "shape", "background")
FORMS = {
    "Tune-A-Video": ("temporal", "after_feed_forward", "sparse_causal"),
    "plain temporal": ("temporal", "before_cross", "fine_coarse"),
    "STAM": ("stam", "before_cross", "fine_coarse"),
    "STAM, Frobenius": ("stam", "before_cross", "fine_coarse", 2, "frobenius"),
}
"""Name → arguments of a :class:`attention.forms.Form`. *Plain temporal* is EI²'s form with Tune-A-Video's module in the
place of STAM, so that nothing else differs."""
ABLATED = {
    "FFAM alone": FORMS["plain temporal"],
    "STAM alone": ("stam", "before_cross", "sparse_causal"),
    "STAM after cross-attention": ("stam", "after_cross", "fine_coarse"),
}
"""EI² without STAM or without FFAM, each with Tune-A-Video's in its place, and with the other order."""


@dataclass(frozen=True)
class Budget:
    """The same for everything that is tuned."""

    steps: int
    rate: float
    frames: int


@dataclass(frozen=True)
class Clip:
    """A rendered clip: ``scene`` without size and place, which change; ``frames`` (F, 128, 128, 3)."""

    number: int
    scene: Any
    motion: str
    frames: Tensor
    latent: dict[str, Tensor]
    prompt: str


@dataclass(frozen=True)
class Target:
    """What a clip is to show after the edit: ``ideal`` is drawn from the same motion, and has frames, mask, centre."""

    change: str
    scene: Any
    prompt: str
    ideal: Any


def options(doc: str | None, clips: int) -> argparse.ArgumentParser:
    """The command line of both studies."""
    return command_line(
        doc,
        "minutes",
        "publish",
        clips=(clips, ""),
        frames=(8, "of a clip"),
        steps=(60, "of tuning"),
        rate=(1e-3, "learning rate"),
    )


class Bench(Demo):
    """The demo model, and a folder for what was tuned."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder, self.budget = arguments.out, Budget(arguments.steps, arguments.rate, arguments.frames)
        remember(self.folder / "budget.json", asdict(self.budget))
        enter(arguments)
        super().__init__()

    def clip(self, number: int) -> Clip:
        """The motions take turns."""
        shapes, clips = pack("demo.shapes"), pack("demo.clips")
        scene, motion = shapes.random_scene(random.Random(number)), clips.MOTIONS[number % len(clips.MOTIONS)]
        drawn = clips.render_clip(scene.shape, scene.colour, scene.background, motion, self.budget.frames, number)
        latent = {"samples": self.vae.encode(drawn.frames)}
        return Clip(number, scene, motion, drawn.frames, latent, prompt_of(scene))

    def targets(self, clip: Clip) -> list[Target]:
        """Another colour, another shape, another background: each alone."""
        shapes, rng = pack("demo.shapes"), random.Random(clip.number)
        colours = sorted(set(shapes.COLOURS) - {clip.scene.colour, clip.scene.background})
        others = {"colour": colours, "background": colours, "shape": sorted(set(shapes.SHAPES) - {clip.scene.shape})}
        scenes = {change: replace(clip.scene, **{change: rng.choice(others[change])}) for change in CHANGES}
        draw = pack("demo.clips").render_clip
        return [
            Target(
                change,
                scene,
                prompt_of(scene),
                draw(scene.shape, scene.colour, scene.background, clip.motion, self.budget.frames, clip.number),
            )
            for change, scene in scenes.items()
        ]

    def form(self, name: str) -> Any:
        return pack("attention.forms").Form(*(FORMS | ABLATED)[name])

    def inflated(self, name: str, weights: Any | None) -> Any:
        """The model in the form ``name``, tuned or not."""
        how = {"layers": "*", "strength": 1.0, "asked_by": "study"}
        return pack("attention.forms").inflated(self.model, self.form(name), weights, **how)

    def tuned(self, name: str, clip: Clip) -> Any:
        """The weights of the form ``name`` tuned on ``clip``; from the folder, where they are there."""
        file = pack("files.weights_file")
        path = self.folder / "weights" / f"{clip.number:02} {name}{file.SUFFIX}"
        if path.exists():
            return file.load(path)
        one_shot, budget = pack("training.one_shot"), self.budget
        settings = one_shot.Settings(budget.steps, budget.rate, seed=clip.number)
        began = now()
        tuned = one_shot.tune(self.inflated(name, None), self.encode(clip.prompt), clip.latent, settings)
        first, last = tuned.history.ends()
        print(f"{name} on clip {clip.number}: loss {first:.4f} → {last:.4f}", end="", file=sys.stderr)
        print(f" in {now() - began:.0f} s of processor time", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.save(tuned.weights, path)
        return tuned.weights


def prompt_of(scene: Any) -> str:
    return pack("demo.shapes").fill(WORDS, scene, random.Random(0))
