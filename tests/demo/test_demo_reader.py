"""The reader of pictures reads what was drawn, also through blur, noise and wrong colours, and knows grain."""

import functools
import random
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from coherence.demo.clips import MOTIONS, render_clip
from coherence.demo.reader import ATTRIBUTES, correct, fidelity, read, shape_mask
from coherence.demo.shapes import COLOURS, COLUMNS, ROWS, SHAPES, SIZE, Scene, draw, random_scene
from coherence.metrics.similarity import iou
from torch import Tensor

pytestmark = pytest.mark.slow

COUNT = 200
RIGHT = 0.99  # share of the pictures


@functools.cache
def drawn(seed: int, jitter: float) -> tuple[Tensor, list[Scene], Tensor]:
    """Random scenes scaled by 0.95 to 1.05 and moved by up to ``jitter`` pixels, and where their origins are."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(COUNT)]
    moves = [(rng.uniform(-jitter, jitter), rng.uniform(-jitter, jitter)) for _ in scenes]
    pictures = [draw(scene, *move, rng.uniform(0.95, 1.05)) for scene, move in zip(scenes, moves, strict=True)]
    centres = torch.tensor([(COLUMNS[scene.column], ROWS[scene.row]) for scene in scenes]) + torch.tensor(moves)
    return torch.stack(pictures), scenes, centres


def noise(pictures: Tensor, sigma: float) -> Tensor:
    return pictures + sigma * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))


def blurred(pictures: Tensor) -> Tensor:
    """Mean of 7×7 pixels."""
    padded = F.pad(pictures.movedim(-1, 1), (3,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 7, stride=1).movedim(1, -1)


def shifted(pictures: Tensor) -> Tensor:
    """Every picture's channels each off by up to 0.06."""
    return pictures + 0.12 * torch.rand(len(pictures), 1, 1, 3, generator=torch.Generator().manual_seed(2)) - 0.06


def quantised(pictures: Tensor, step: float = 0.4) -> Tensor:
    """Cosine transforms of 8×8 blocks, coarsely rounded: JPEG's blocks and ringing."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)
    basis = torch.cos(torch.pi * k * (2 * n + 1) / 16) * torch.where(k == 0, 8**-0.5, 0.5)
    blocks = pictures.unflatten(2, (-1, 8)).unflatten(1, (-1, 8))
    waves = torch.einsum("brxcyd,ux,vy->brucvd", blocks, basis, basis)
    waves = (waves / step).round() * step
    return torch.einsum("brucvd,ux,vy->brxcyd", waves, basis, basis).flatten(3, 4).flatten(1, 2)


@pytest.fixture(scope="module", params=[3, 12], ids=["as_in_training", "far_off"])
def pictures(request: pytest.FixtureRequest) -> tuple[Tensor, list[Scene], Tensor]:
    return drawn(seed=request.param, jitter=request.param)


DAMAGES = {
    "none": lambda pictures: pictures,
    "noise": lambda pictures: noise(pictures, 0.03),
    "blur": blurred,
    "wrong colours": shifted,
    "blocks and ringing": quantised,
    "all of them": lambda pictures: quantised(noise(shifted(blurred(pictures)), 0.03)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_attribute_is_read(pictures: tuple[Tensor, list[Scene], Tensor], damage: str) -> None:
    clean, scenes, centres = pictures
    reading = read(DAMAGES[damage](clean).clamp(0, 1))
    shares = {name: right.float().mean().item() for name, right in correct(reading, scenes).items()}
    assert set(shares) == set(ATTRIBUTES)
    assert min(shares.values()) >= RIGHT, shares
    assert reading.confidence.min() > 0.6
    off = (reading.centre - centres).norm(dim=1)
    assert off.median() < 0.5
    assert off.max() < 6  # large triangles that the frame cuts


def test_wrong_attributes_are_told_apart() -> None:
    scene = Scene("circle", "red", "blue", "small", "top", "left")
    others = {
        "shape": replace(scene, shape="square"),
        "colour": replace(scene, colour="orange"),
        "background": replace(scene, background="purple"),
        "size": replace(scene, size="large"),
        "position": replace(scene, column="centre"),
    }
    for name, other in others.items():
        right = correct(read(draw(scene)[None]), other)
        assert [wrong for wrong in ATTRIBUTES if not right[wrong]] == [name]


@pytest.mark.parametrize("sigma", [0.0, 0.03])
def test_an_empty_picture_is_read_without_confidence(sigma: float) -> None:
    flat = torch.rand(16, 1, 1, 3, generator=torch.Generator().manual_seed(0)).expand(-1, SIZE, SIZE, -1)
    ramp = torch.linspace(0, 0.1, SIZE)[:, None, None].expand(1, SIZE, SIZE, 3)
    for empty in (flat, ramp, torch.full_like(ramp, 0.5)):
        assert read(noise(empty, sigma).clamp(0, 1)).confidence.max() == 0


def test_what_is_no_single_shape_is_read_with_less_confidence() -> None:
    scene = Scene("square", "white", "black", "large", "top", "left")
    two = torch.maximum(draw(scene), draw(replace(scene, row="bottom", column="right")))
    halves = torch.zeros(SIZE, SIZE, 3)
    halves[:, : SIZE // 2] = 1
    snow = torch.rand(SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
    one, *others = read(torch.stack([draw(scene), two, halves, snow])).confidence.tolist()
    assert one > 0.9
    assert max(others) < 0.65


def test_grain_is_zero_for_clean_pictures_and_grows_with_the_noise() -> None:
    clean, _, _ = drawn(seed=0, jitter=3)
    clean = clean[:100].clamp(0.2, 0.8)  # no noise is cut off at black and white
    assert read(clean).grain.median() < 1e-3
    assert read(clean).grain.mean() < 0.1
    for sigma in (0.003, 0.01, 0.03):
        grain = read(noise(clean, sigma)).grain
        assert grain.mean().item() == pytest.approx(255 * sigma, rel=0.05)


def test_grain_does_not_see_soft_edges() -> None:
    clean, _, _ = drawn(seed=0, jitter=0)
    assert read(blurred(clean[:100])).grain.mean() < 0.5


def test_fidelity_of_a_clip_is_the_share_of_attributes_right_in_each_frame() -> None:
    scene = Scene("star", "yellow", "blue", "small", "middle", "left")
    shifts = torch.linspace(0, 60, 16)
    clip = torch.stack([draw(scene, dx=dx) for dx in shifts.tolist()])
    track = read(clip).centre
    assert (track - torch.stack([34 + shifts, torch.full((16,), 64.0)], dim=1)).abs().max() < 1
    still_left = fidelity(clip, scene)
    assert still_left[:4].tolist() == [1.0] * 4
    assert still_left[4:].tolist() == pytest.approx([0.8] * 12)
    columns = ["left"] * 4 + ["centre"] * 8 + ["right"] * 4
    assert fidelity(clip, [replace(scene, column=column) for column in columns]).tolist() == [1.0] * 16


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_mask_of_a_shape_is_the_one_it_was_drawn_with(damage: str) -> None:
    for seed, motion in enumerate(MOTIONS):
        for shape in SHAPES:
            clip = render_clip(shape, "blue", "orange", motion, frames=4, seed=seed)
            overlap = iou(shape_mask(DAMAGES[damage](clip.frames).clamp(0, 1)), clip.mask > 0.5)
            assert overlap.min() > (0.999 if damage == "none" else 0.8), (shape, motion)


def test_the_mask_takes_any_size_and_several_shapes_of_one_colour() -> None:
    left, right = (render_clip("star", "red", "white", frames=1, seed=seed, size=256).mask > 0.5 for seed in (0, 4))
    two = left | right.roll(60, dims=1)
    red, white = torch.tensor(COLOURS["red"]), torch.tensor(COLOURS["white"])
    assert iou(shape_mask(torch.where(two[..., None], red, white)), two).item() == 1


def test_a_picture_without_a_shape_has_an_empty_mask() -> None:
    assert not shape_mask(noise(torch.full((2, SIZE, SIZE, 3), 0.5), 0.03)).any()


def test_two_hundred_pictures_take_less_than_three_seconds() -> None:
    pictures, _, _ = drawn(seed=0, jitter=3)
    read(pictures[:1])  # renders the templates
    began = time.process_time()
    read(pictures[:200])
    assert time.process_time() - began < 3


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 64, 64, 3\), expected \(B, 128, 128, 3\)"):
        read(torch.zeros(1, 64, 64, 3))
