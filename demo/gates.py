"""What the shipped weights drew when they were asked, answer by answer: gates.json, for files of these very digests.

``training/record.py`` asks everything once, when weights change, which takes some ten minutes of a core. The tests hold
the recorded answers to the gates, the digests to the files, and a few of the answers to what the models draw today.
Every question has its own noise, so that one asked alone is answered as among all the others.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ..attention.tap import tap
from ..files.whole import write_whole
from ..metrics.similarity import ssim
from ..techniques.momentum import TemporalMomentum
from . import model
from .evaluation import sample, sample_clip
from .motion import MOTIONS, MovingScene, moving_caption, random_moving_scene
from .motion_reader import read_motion
from .reader import ATTRIBUTES, correct, read
from .shapes import Scene, caption, random_scene

FILE = model.FOLDER / "gates.json"
PICTURE_FILES = (model.UNET_FILE, model.TEXT_ENCODER_FILE, model.VAE_FILE)
VIDEO_FILES = (*PICTURE_FILES, model.VIDEO_FILE, model.VIDEO_TEXT_ENCODER_FILE)
CLIP_STEPS = 10
STILL = ", standing still"


class Question(NamedTuple):
    """A caption, what it should show, and the seed of its noise."""

    caption: str
    meant: Scene | MovingScene
    seed: int


def digest(file: Path) -> str:
    """SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


# Questions ----------------------------------------------------------------------------------------------------------


def _pictures() -> list[Question]:
    """Captions as in training."""
    rng, asked = random.Random(1), []
    for n in range(100):
        scene = random_scene(rng)
        asked.append(Question(caption(scene, rng), scene, 1000 + n))
    return asked


def _partial() -> list[Question]:
    """Captions that say neither size nor place."""
    rng = random.Random(4)
    scenes = [random_scene(rng) for _ in range(24)]
    captions = [f"a {scene.colour} {scene.shape} on a {scene.background} background" for scene in scenes]
    return [Question(text, scene, 2000 + n) for n, (text, scene) in enumerate(zip(captions, scenes, strict=True))]


def _clips(seed: int = 5, count: int = 30) -> list[Question]:
    """Captions as in training, of all motions."""
    rng, asked = random.Random(seed), []
    for n in range(count):
        scene = random_moving_scene(rng)
        asked.append(Question(moving_caption(scene, rng), scene, 1000 * seed + n))
    return asked


def _still() -> list[Question]:
    """Captions of clips that stand still."""
    return [each for each in _clips(seed=1) if each.caption.endswith(STILL)]


# Answers ------------------------------------------------------------------------------------------------------------


def _rounded(x: Tensor | float) -> Any:
    values = torch.as_tensor(x, dtype=torch.float64)
    return [round(each, 3) for each in values.tolist()] if values.ndim else round(values.item(), 3)


Loaded = tuple[ModelPatcher, CLIP, VAE]


@functools.cache
def _picture_model() -> Loaded:
    return model.load_model(), model.load_clip(), model.load_vae()


@functools.cache
def _video_model() -> Loaded:
    return model.load_video_model(), model.load_clip(model.VIDEO_TEXT_ENCODER_FILE), model.load_vae()


@functools.cache
def _momentum_model() -> Loaded:
    unet, clip, vae = _picture_model()
    tapped, _ = tap(unet, TemporalMomentum(0.98, ""), layers="*", kinds=["spatial"], asked_by="gates")
    return tapped, clip, vae


def _answer_picture(question: Question) -> dict[str, Any]:
    assert isinstance(question.meant, Scene)
    reading = read(sample(*_picture_model(), [question.caption], question.seed))
    return {
        "right": [name for name, right in correct(reading, [question.meant]).items() if right],
        "read": list(astuple(reading.scenes[0])),
        "centre": _rounded(reading.centre[0]),
        "radius": _rounded(reading.radius[0]),
        "grain": _rounded(reading.grain[0]),
    }


def _answer_clip(question: Question) -> dict[str, Any]:
    assert isinstance(question.meant, MovingScene)
    moves = read_motion(sample_clip(*_video_model(), question.caption, question.seed, steps=CLIP_STEPS))
    right = correct(moves.reading, question.meant.scene)
    return {
        "moves": moves.motion,
        "velocity": _rounded(moves.velocity),
        "growth": _rounded(moves.growth),
        "turn": _rounded(moves.turn),
        **{name: _rounded(right[name].double().mean()) for name in ("colour", "shape")},
    }


def _answer_still(question: Question) -> dict[str, Any]:
    """How alike neighbouring frames are: the video model's, and the picture model's with momentum attention."""
    ours = sample_clip(*_video_model(), question.caption, question.seed, steps=CLIP_STEPS)
    return {"video": _neighbours(ours), "momentum": alike_with_momentum(question)}


def alike_with_momentum(question: Question) -> float:
    """How alike neighbouring frames are that the picture model draws with momentum attention."""
    text = question.caption.removesuffix(STILL)
    return _neighbours(sample_clip(*_momentum_model(), text, question.seed, steps=CLIP_STEPS))


def _neighbours(clip: Tensor) -> float:
    """Mean structural similarity of neighbouring frames."""
    return _rounded(torch.stack([ssim(a[None], b[None]) for a, b in pairwise(clip)]).mean())


class Part(NamedTuple):
    """Questions of one kind, how one is answered, and the weights that answer."""

    questions: Callable[[], list[Question]]
    answer: Callable[[Question], dict[str, Any]]
    files: tuple[Path, ...]


PARTS = {
    "pictures": Part(_pictures, _answer_picture, PICTURE_FILES),
    "partial": Part(_partial, _answer_picture, PICTURE_FILES),
    "clips": Part(_clips, _answer_clip, VIDEO_FILES),
    "still": Part(_still, _answer_still, VIDEO_FILES),
}


def asked(part: str) -> dict[str, Any]:
    """What the record says of a part: ``files``, name → digest, and ``answers``, caption and answer of each."""
    return json.loads(FILE.read_text("utf-8"))[part]


def record(report: Callable[[str], None]) -> None:
    """Ask what the record has no answer to from these very weights; each answer is written as it comes."""
    known = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
    for name, part in PARTS.items():
        files = {file.name: digest(file) for file in part.files}
        if known.get(name, {}).get("files") != files:
            known[name] = {"files": files, "answers": []}
        answers, questions = known[name]["answers"], part.questions()
        for question in questions[len(answers) :]:
            answers.append({"caption": question.caption, **part.answer(question)})
            _write(known)
            report(f"{name} {len(answers)}/{len(questions)}: {answers[-1]}")


def _write(known: dict[str, Any]) -> None:
    """One answer to a line."""
    parts = []
    for name, part in known.items():
        lines = ",\n".join(f"  {json.dumps(each)}" for each in part["answers"])
        parts.append(f'"{name}": {{"files": {json.dumps(part["files"], indent=1)}, "answers": [\n{lines}\n]}}')
    write_whole([("{" + ",\n".join(parts) + "}\n").encode()], FILE)


def summary() -> str:
    """The shares of right answers, in Markdown."""
    lines = []
    for name in ("pictures", "partial"):
        answers = asked(name)["answers"]
        shares = ", ".join(
            f"{each} {sum(each in answer['right'] for answer in answers) / len(answers):.1%}" for each in ATTRIBUTES
        )
        lines.append(f"{name}, of {len(answers)}: {shares}")
    moves = [
        (question.meant.motion, answer["moves"])
        for question, answer in zip(_clips(), asked("clips")["answers"], strict=True)
        if isinstance(question.meant, MovingScene)
    ]
    for motion in MOTIONS:
        seen = [became for meant, became in moves if meant == motion]
        lines.append(f"{motion}: {seen.count(motion)} of {len(seen)}")
    lines.append(f"all motions: {sum(meant == became for meant, became in moves)} of {len(moves)}")
    return "\n".join(lines)
