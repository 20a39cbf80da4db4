"""Pictures of the demo's world show what their scenes say, and the reader reads all of it."""

import functools
import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from coherence.demo.world.captions import caption, describe
from coherence.demo.world.clip_reader import read_clip
from coherence.demo.world.form import form, largest_speck
from coherence.demo.world.motion import MOTIONS, ROUND, paint_clips, path, random_moving_scene
from coherence.demo.world.painting import paint
from coherence.demo.world.reader import correct, read
from coherence.demo.world.scenes import APART, COLOURS, PATTERNS, Scene, Surface, Thing, random_scene
from coherence.demo.world.things import SIZE, THINGS, coverage
from torch import Tensor

pytestmark = pytest.mark.slow

COUNT = 100
RIGHT = 0.99  # share of the pictures


@functools.cache
def drawn(seed: int = 3) -> tuple[Tensor, list[Scene]]:
    """Random scenes with many pairs and patterns, varied as in training."""
    rng = random.Random(seed)
    scenes = [random_scene(rng, pairs=0.25, backgrounds=0.4, fills=0.3) for _ in range(COUNT)]
    return paint(scenes, rng), scenes


def one(kind: str = "cat", size: str = "large") -> Scene:
    return Scene((Thing(kind, Surface("red"), size, "middle", "centre"),), Surface("white"))


def damaged(pictures: Tensor, how: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if how == "noise":
        return pictures + 0.03 * torch.randn(pictures.shape, generator=generator)
    if how == "blur":
        padded = F.pad(pictures.movedim(-1, 1), (1,) * 4, mode="replicate")
        return F.avg_pool2d(padded, 3, stride=1).movedim(1, -1)
    if how == "colours":
        return pictures + 0.1 * torch.rand(len(pictures), 1, 1, 3, generator=generator) - 0.05
    return pictures


@pytest.mark.parametrize("how", ["nothing", "noise", "blur", "colours"])
def test_the_reader_reads_all_that_was_drawn(how):
    pictures, scenes = drawn()
    right = [correct(read(picture), scene) for picture, scene in zip(damaged(pictures, how), scenes, strict=True)]
    for name in right[0]:
        assert sum(each[name] for each in right) >= RIGHT * COUNT, name


def test_the_reader_notices_every_difference():
    """A picture is not read as a scene that differs from its own in one attribute."""
    scene = one()
    (thing,) = scene.things
    others = {
        "thing": Scene((Thing("dog", thing.surface, "large", "middle", "centre"),), scene.background),
        "colour": Scene((Thing("cat", Surface("blue"), "large", "middle", "centre"),), scene.background),
        "background": Scene(scene.things, Surface("white", "dots", "red")),
        "size": Scene((Thing("cat", thing.surface, "small", "middle", "centre"),), scene.background),
        "position": Scene((Thing("cat", thing.surface, "large", "top", "centre"),), scene.background),
    }
    reading = read(paint([scene])[0])
    assert all(correct(reading, scene).values())
    for name, other in others.items():
        assert [key for key, value in correct(reading, other).items() if not value] == [name]


def test_a_picture_of_nothing_shows_no_thing():
    reading = read(torch.ones(SIZE, SIZE, 3))
    assert not reading.found
    assert not correct(reading, one())["thing"]


@pytest.mark.parametrize("kind", THINGS)
def test_a_drawn_outline_is_where_it_should_be(kind):
    found = read(paint([one(kind)], random.Random(7))[0]).found[0]
    fitted = form(found)
    assert found.thing.kind == kind
    assert fitted.mean < 0.08
    assert fitted.worst < 0.2
    assert fitted.overlap > 0.98


def test_an_outline_is_as_far_off_as_it_was_moved():
    """A circle with a dent of two pixels all along a third of it."""
    line = torch.arange(SIZE) + 0.5 - SIZE / 2
    angle, distance = torch.atan2(line[:, None], line), torch.hypot(line[:, None], line)
    cover = (28 - 2.0 * (angle.abs() < torch.pi / 3) - distance + 0.5).clamp(0, 1)[..., None]
    picture = torch.lerp(torch.tensor(COLOURS["white"]), torch.tensor(COLOURS["red"]), cover)
    fitted = form(read(picture).found[0], "circle")
    assert 0.3 < fitted.mean < 0.9
    assert fitted.worst > 0.8


def test_a_speck_is_counted_and_a_clean_picture_has_none():
    for picture in drawn()[0][:40]:
        reading = read(picture)
        assert largest_speck(picture, reading, [form(each) for each in reading.found]) == 0
    picture = paint([one(size="small")])[0]
    picture[10:15, 100:104] = torch.tensor(COLOURS["green"])
    reading = read(picture)
    assert largest_speck(picture, reading, [form(each) for each in reading.found]) == 20


def test_things_stay_inside_the_picture_and_differ():
    """Even where they are largest, turned and moved the most; and no two outlines nearly coincide."""
    count, middle = len(THINGS), torch.full((len(THINGS),), SIZE / 2)
    for radius, angle in itertools.product((31.0 * 1.05,), (-0.09, 0.09)):
        cover = coverage(torch.arange(count), middle, middle, middle * 0 + radius, middle * 0 + angle)
        rows, columns = cover.amax((0, 2)).nonzero(), cover.amax((0, 1)).nonzero()
        reach = max(SIZE / 2 - min(rows.min(), columns.min()), max(rows.max(), columns.max()) + 1 - SIZE / 2)
        assert reach <= 31 + 11 - 3  # of a thing at the side: its radius and margin, and the shift it may have
    flat = cover.flatten(1)
    common = flat @ flat.T / (flat.sum(1)[:, None] + flat.sum(1) - flat @ flat.T)
    assert (common - torch.eye(count) * common.diag()).max() < 0.9


def test_things_stand_out_from_what_is_behind_them():
    for picture, scene in zip(*drawn(), strict=True):
        reading = read(picture)
        for found in reading.found:
            inside = found.cover > 0.99
            apart = (found.filled - reading.behind)[inside].norm(dim=-1)
            assert apart.min() > APART - 0.05, scene


def test_captions_name_what_they_say_they_do():
    rng = random.Random(0)
    for _ in range(300):
        scene = random_scene(rng, pairs=0.3, backgrounds=0.4, fills=0.3)
        text, said = describe(scene, rng, partial=0.5)
        for name in ("colour", "colour2", "background", "other"):
            assert said.get(name, "") in text
        assert ("relation" in said) <= bool(scene.relation)
    assert "an apple" in " ".join(caption(one("apple"), rng) + " " + caption(one("apple"), rng, 1.0) for _ in range(20))


def test_every_pattern_colour_and_thing_occurs():
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(2000)]
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.kind for thing in things} == set(THINGS)
    assert {scene.background.pattern for scene in scenes} == set(PATTERNS)
    assert {thing.surface.colour for thing in things} == {scene.background.colour for scene in scenes} == set(COLOURS)
    assert {thing.position for thing in things} >= {"top left", "centre", "bottom right"}


def test_the_same_seed_paints_the_same():
    first, second = (paint([random_scene(rng)], rng) for rng in (random.Random(4), random.Random(4)))
    assert torch.equal(first, second)


@pytest.mark.parametrize("motion", MOTIONS)
def test_clips_move_as_they_say(motion):
    rng = random.Random(1)
    moving = next(each for each in iter(lambda: random_moving_scene(rng), None) if each.motion == motion)
    way = path(moving, 17)
    travelled = (way.x[-1] - way.x[0]).item(), (way.y[-1] - way.y[0]).item()
    directions = {"moving left": (-48, 0), "moving right": (48, 0), "moving up": (0, -48), "moving down": (0, 48)}
    assert travelled == pytest.approx(directions.get(motion, (0, 0)), abs=1e-3)
    assert (way.radius[-1] > way.radius[0] + 1) == (motion == "growing")
    assert (way.radius[-1] < way.radius[0] - 1) == (motion == "shrinking")
    assert (way.angle[-1] > way.angle[0] + 1) == (motion == "spinning")
    (thing,) = moving.scene.things
    assert read_clip(paint_clips([moving], 9)[0]).kind == thing.kind
    assert not (motion == "spinning" and thing.kind in ROUND)


def test_the_reader_of_clips_reads_all_motions():
    rng = random.Random(2)
    clips = [random_moving_scene(rng) for _ in range(26)]
    assert {each.motion for each in clips} == set(MOTIONS)
    wrong = []
    for moving in clips:
        reading = read_clip(paint_clips([moving], 9, rng)[0])
        (thing,) = moving.scene.things
        meant = (thing.kind, moving.motion)
        if (reading.kind, reading.motion) != meant or sum(each.mean for each in reading.forms) > 0.1 * 9:
            wrong.append((meant, reading))
    assert not wrong
