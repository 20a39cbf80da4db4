"""The demo video model draws what captions say, moving as they say."""

import random
from typing import Any

import pytest
import torch
from coherence.demo import model, motion, motion_reader, shapes
from coherence.demo.training.first.data import ClipBank, encode
from coherence.nodes.demo import CoherenceDemoModel

MEGABYTE = 2**20


def drawn(moving: motion.MovingScene) -> torch.Tensor:
    return shapes.paint(motion.moving_coverage(moving), moving.scene.colour, moving.scene.background)


@pytest.fixture(scope="module")
def video() -> Any:
    """MODEL, CLIP and VAE, as the node gives them."""
    return CoherenceDemoModel.execute("shapes_video").result


def test_the_reader_reads_the_motion_of_drawn_clips():
    rng = random.Random(2)
    clips = [motion.random_moving_scene(rng) for _ in range(24)]
    assert {clip.motion for clip in clips} == set(motion.MOTIONS)
    read = [motion_reader.read_motion(drawn(clip)).motion for clip in clips]
    assert read == [clip.motion for clip in clips]


def test_a_direction_is_not_read_off_a_clip_that_runs_backwards():
    rng = random.Random(3)
    moving = [clip for clip in (motion.random_moving_scene(rng) for _ in range(20)) if clip.motion != "standing still"]
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


def test_the_video_models_files_are_small():
    assert model.VIDEO_FILE.stat().st_size <= 4 * MEGABYTE
    assert model.VIDEO_TEXT_ENCODER_FILE.stat().st_size <= MEGABYTE


def test_the_tap_knows_its_temporal_layers(video):
    from coherence.attention.sites import sites_of

    temporal = [site.name for site in sites_of(video[0]) if site.kind == "temporal"]
    assert len(temporal) == 7
    assert temporal[0] == "input.1.temporal"
