"""The demo video model draws what captions say, moving as they say."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from coherence.attention.tap import tap
from coherence.demo import model, motion, motion_reader, shapes, video_evaluation
from coherence.demo.training.first.data import ClipBank, encode
from coherence.metrics.similarity import ssim
from coherence.nodes.demo import CoherenceDemoModel
from coherence.techniques.momentum import TemporalMomentum
from PIL import Image

MEGABYTE = 2**20
GATES = {"colour": 0.97, "shape": 0.85}


def drawn(moving: motion.MovingScene) -> torch.Tensor:
    return shapes.paint(motion.moving_coverage(moving), moving.scene.colour, moving.scene.background)


@pytest.fixture(scope="module")
def video() -> Any:
    """MODEL, CLIP and VAE, as the node gives them."""
    return CoherenceDemoModel.execute("video").result


@pytest.fixture(scope="module")
def results(video: Any, artefacts: Path) -> video_evaluation.ClipsEvaluation:
    """Twenty clips of 16 frames, of all motions, in 10 steps at cfg 5; the model's card has figures of more."""
    results = video_evaluation.evaluate_clips(*video, count=20, seed=5, steps=10)
    assert {scene.motion for scene in results.scenes} == set(motion.MOTIONS)
    (artefacts / "demo_video.md").write_text(video_evaluation.table(results) + "\n", "utf-8")
    sheet = torch.cat([torch.cat([*clip[::3]], dim=1) for clip in results.clips[:40]])
    Image.fromarray((sheet * 255).round().byte().numpy()).save(artefacts / "demo_video.png")
    return results


def test_the_reader_reads_the_motion_of_drawn_clips():
    rng = random.Random(2)
    clips = [motion.random_moving_scene(rng) for _ in range(40)]
    assert {clip.motion for clip in clips} == set(motion.MOTIONS)
    read = [motion_reader.read_motion(drawn(clip)).motion for clip in clips]
    assert read == [clip.motion for clip in clips]


def test_a_direction_is_not_read_off_a_clip_that_runs_backwards():
    rng = random.Random(3)
    moving = [clip for clip in (motion.random_moving_scene(rng) for _ in range(40)) if clip.motion != "standing still"]
    assert all(motion_reader.read_motion(drawn(clip).flip(0)).motion != clip.motion for clip in moving)


def test_the_bank_of_clips_holds_the_latents_of_drawn_ones(monkeypatch):
    for name in ("RADII", "ROWS", "COLUMNS"):  # one of each is enough, and soon computed
        monkeypatch.setattr(f"{ClipBank.__module__}.{name}", dict([*getattr(shapes, name).items()][:1]))
    monkeypatch.setattr(f"{ClipBank.__module__}.SHAPES", ("cross",))
    bank, rng = ClipBank(1, seed=4), random.Random(4)
    jitters = {name: (rng.uniform(-3, 3), rng.uniform(-3, 3)) for name in motion.MOTIONS}
    for name, jitter in jitters.items():
        x, y = motion.MOVES.get(name, (0, 0))
        row, column = ("middle" if y else "top"), ("centre" if x else "left")
        moving = motion.MovingScene(shapes.Scene("cross", "red", "white", "small", row, column), name)
        whole = encode(shapes.paint(motion.moving_coverage(moving, jitter), "red", "white"))
        assert (bank.latents(moving, [0, 7, 15], rng) - whole[[0, 7, 15]]).abs().max() < 5e-3


@pytest.mark.slow
def test_clips_move_as_their_captions_say(results):
    """Of more clips: 98% of the directions, 86% of all motions. At 70% or 50%, these fail 94 times in 100."""
    directed = torch.tensor([scene.motion in motion.MOVES for scene in results.scenes])
    assert results.moves_right[directed].float().mean() >= 0.85, video_evaluation.table(results)
    assert results.moves_right.float().mean() >= 0.7, video_evaluation.table(results)


@pytest.mark.slow
@pytest.mark.parametrize("attribute", GATES)
def test_clips_show_what_their_captions_say(results, attribute):
    assert results.right(attribute) >= GATES[attribute]


@pytest.mark.slow
def test_clips_are_steadier_than_the_picture_models_with_momentum_attention(video):
    picture, _ = tap(model.load_model(), TemporalMomentum(0.98, ""), layers="*", kinds=["spatial"], asked_by="test")
    clip, vae = model.load_clip(), model.load_vae()
    rng = random.Random(1)
    scenes = [motion.random_moving_scene(rng) for _ in range(50)]
    captions = [motion.moving_caption(scene, rng) for scene in scenes]
    still = [n for n, scene in enumerate(scenes) if scene.motion == "standing still"]
    ours, theirs = [], []
    for n in still:
        ours.append(neighbours(video_evaluation.sample_clip(*video, captions[n], 50 + n, steps=10)))
        caption = captions[n].removesuffix(", standing still")
        theirs.append(neighbours(video_evaluation.sample_clip(picture, clip, vae, caption, 100 + n, steps=10)))
    assert len(still) >= 3
    assert sum(ours) / len(ours) > sum(theirs) / len(theirs) + 0.005


def neighbours(clip: torch.Tensor) -> float:
    """Mean structural similarity of neighbouring frames."""
    return torch.stack([ssim(a[None], b[None]) for a, b in pairwise(clip)]).mean().item()


def test_the_video_models_files_are_small():
    assert model.VIDEO_FILE.stat().st_size <= 4 * MEGABYTE
    assert model.VIDEO_TEXT_ENCODER_FILE.stat().st_size <= MEGABYTE


def test_the_tap_knows_its_temporal_layers(video):
    from coherence.attention.sites import sites_of

    temporal = [site.name for site in sites_of(video[0]) if site.kind == "temporal"]
    assert len(temporal) == 7
    assert temporal[0] == "input.1.temporal"
