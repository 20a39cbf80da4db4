"""Clips of any length, loops, and clips through key frames, as the nodes make them."""

from __future__ import annotations

from math import e, prod, sqrt

import pytest
import torch
from coherence.nodes.noise import KeyframeNoise, NoiseFrames, VideoNoisePrior
from coherence.noise.bridge import ring_correlations
from coherence.noise.measure import neighbour_kl
from coherence.noise.streams import generator, plain_noise
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from noise_clips import dependency_node as dependency
from noise_clips import ring_covariance, surprise
from torch import Tensor

from nodes import LatentFromBatch

SIZE = (9, 7)


def progressive(alpha: float = 0.5):
    return VideoNoisePrior.execute(3, "progressive", alpha)[0]


def pictures(frames: int, size: tuple[int, int] = SIZE, **entries) -> dict:
    return {"samples": torch.zeros(frames, 4, *size), **entries}


def video(frames: int, clips: int = 1) -> dict:
    return {"samples": torch.zeros(clips, 4, frames, *SIZE)}


def keys(*seeds: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.cat([plain_noise((1, 4, *size), generator(100 + seed)) for seed in seeds])


def through(noise, frames: str, samples: Tensor | None = None):
    samples = keys(*range(frames.count(",") + 1)) if samples is None else samples
    return KeyframeNoise.execute(noise, {"samples": samples}, frames)[0]


def correlations(kl: list[float]) -> list[float]:
    """Of neighbours: λ as it is defined, so ρ = 1 − λ/√e."""
    return [1 - value / sqrt(e) for value in kl]


# Any length --------------------------------------------------------------------------------------------------------


def test_the_papers_search_does_not_stay_standard_normal() -> None:
    searched = dependency(orthogonal=False, random_candidates=10).generate_noise(pictures(65, (8, 8), batch_index=None))
    last = searched[-1].flatten()
    assert last.abs().max() / last.std() > 4.5


@pytest.mark.parametrize("size", [(8, 8), (32, 32)])
@pytest.mark.parametrize("kl", [0.001, 0.01, 0.1, 0.5])
def test_the_pointwise_closed_form_is_exact(kl: float, size: tuple[int, int]) -> None:
    noise = dependency(kl, solver="closed_form", divergence="pointwise").generate_noise(pictures(12, size))
    assert (neighbour_kl(noise.double(), "pointwise") - kl).abs().max() <= 1e-6


@pytest.mark.parametrize("solver", ["bisection", "line_search", "closed_form"])
def test_correlations_over_many_frames_are_those_of_the_schedule(solver: str) -> None:
    kl = [0.1, 0.02, 0.3, 0.06, 0.0, 0.15]
    made = dependency(kl_schedule=str(kl), solver=solver).generate_noise(pictures(6, (128, 128)))
    found, rho = torch.corrcoef(made.flatten(1)), correlations(kl)
    expected = torch.tensor([[prod(rho[min(i, j) + 1 : max(i, j) + 1]) for j in range(6)] for i in range(6)])
    assert (found - expected).abs().max() <= 3 / (4 * 128**2) ** 0.5 + (0.02 if solver == "line_search" else 0)


# Loops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [pictures(12, (96, 96)), {"samples": torch.zeros(1, 4, 12, 96, 96)}])
@pytest.mark.parametrize("kl", [0.02, 0.1, 0.5])
def test_the_last_frame_of_a_loop_is_a_neighbour_of_the_first(kl: float, latent: dict) -> None:
    made = dependency(kl, loop=True).generate_noise(latent)
    frames = (made if made.ndim == 4 else made[0].movedim(1, 0)).flatten(1)
    theory = ring_covariance(ring_correlations(12 * correlations([kl])))
    assert theory[0, -1].item() == pytest.approx(correlations([kl])[0], abs=1e-9)
    assert surprise(frames, theory) <= 3


def test_a_loop_follows_a_schedule_whose_first_value_closes_it() -> None:
    kl = [0.05, 0.1, 0.2, 0.1, 0.05, 0.1]
    found = torch.corrcoef(
        dependency(kl_schedule=str(kl), loop=True).generate_noise(pictures(6, (128, 128))).flatten(1)
    )
    neighbours = torch.stack([found[i - 1, i] for i in range(6)])
    assert (neighbours - torch.tensor(correlations(kl))).abs().max() <= 0.005


def test_a_loop_begins_with_random_noises_frame_and_one_or_two_frames_close_by_themselves() -> None:
    plain = dependency().generate_noise(pictures(1))
    for frames in (1, 2, 5):
        assert torch.equal(dependency(loop=True).generate_noise(pictures(frames))[:1], plain)
    assert all(torch.equal(frame, plain[0]) for frame in dependency(0.0, loop=True).generate_noise(pictures(5)))


def test_a_loop_is_the_same_in_every_layout() -> None:
    noise, nested = dependency(loop=True), NestedTensor((video(6)["samples"], torch.zeros(1, 8, 5, 4)))
    four = noise.generate_noise(pictures(6))
    assert torch.equal(noise.generate_noise(video(6))[0].movedim(1, 0), four)
    assert torch.equal(noise.generate_noise({"samples": torch.zeros(6, 4, 1, *SIZE)})[:, :, 0], four)
    assert torch.equal(noise.generate_noise({"samples": nested}).unbind()[0][0].movedim(1, 0), four)
    assert torch.equal(noise.generate_noise(NoiseFrames.execute(noise, pictures(6))[0]), four)


def test_what_a_loop_cannot_do_is_refused() -> None:
    noise = dependency(loop=True)
    for start in (4, 0):
        for latent in (pictures(8), NoiseFrames.execute(noise, pictures(8))[0]):
            with pytest.raises(
                ValueError, match=rf"only frames {start}, {start + 1} .*Give the sampler the whole clip"
            ):
                noise.generate_noise(LatentFromBatch().frombatch(latent, start, 2)[0])
    with pytest.raises(ValueError, match=r"loop is on, but previous is connected.*Turn loop off"):
        dependency(loop=True, previous=NoiseFrames.execute(dependency(), pictures(4))[0])
    with pytest.raises(ValueError, match="Spread the change over more frames"):
        dependency(kl_schedule="0:0.01, 3:0.01, 4:1.2, 5:0.01", loop=True).generate_noise(pictures(8))


# Key frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [dependency(), dependency(loop=True), progressive()])
def test_key_frames_are_kept_bitwise(noise) -> None:
    given = keys(0, 1, 2)
    four = through(noise, "5, 0, -1", given).generate_noise(pictures(9))
    assert torch.equal(four[[5, 0, 8]], given)
    for samples in (given[:, :, None], given.movedim(0, 1)[None]):
        assert torch.equal(through(noise, "5, 0, -1", samples).generate_noise(pictures(9)), four)
    clips = through(noise, "5, 0, -1", given).generate_noise(video(9, clips=2))
    assert torch.equal(clips[0].movedim(1, 0), four)
    assert torch.equal(clips[1][:, [5, 0, 8]].movedim(1, 0), given)
    assert not torch.equal(clips[0][:, 3], clips[1][:, 3])


def test_from_its_own_first_frame_the_noise_is_what_it_was() -> None:
    for noise in (dependency(), dependency(kl_schedule="0:0.3, 5:0.01", solver="closed_form"), progressive()):
        plain = noise.generate_noise(pictures(8))
        assert torch.equal(through(noise, "0", plain[:1]).generate_noise(pictures(8)), plain)


def test_a_far_key_frame_leaves_the_chain_free() -> None:
    noise = dependency(0.5, solver="closed_form", orthogonal=False)
    free = noise.generate_noise(pictures(60))
    tied = through(noise, "0, 59", torch.cat([free[:1], keys(1)])).generate_noise(pictures(60))
    assert torch.allclose(free[:30], tied[:30], atol=1e-4)
    assert not torch.allclose(free[58], tied[58], atol=0.1)


@pytest.mark.parametrize("known", [[0], [3], [0, 6], [2, 5]])
def test_frames_between_key_frames_have_the_conditional_covariance(known: list[int]) -> None:
    kl = [0.1, 0.1, 0.6, 0.05, 0.3, 0.2, 0.4]
    rho, size = correlations(kl), (100, 100)
    noise = dependency(kl_schedule=str(kl), solver="closed_form", orthogonal=False)
    given = keys(*known, size=size)
    made = through(noise, ", ".join(map(str, known)), given).generate_noise(pictures(7, size))
    joint = torch.tensor(
        [[prod(rho[min(i, j) + 1 : max(i, j) + 1]) for j in range(7)] for i in range(7)], dtype=torch.float64
    )
    other = [i for i in range(7) if i not in known]
    weights = joint[other][:, known] @ torch.linalg.inv(joint[known][:, known])
    expected = joint[other][:, other] - weights @ joint[known][:, other]
    rest = made[other].double().flatten(1) - weights @ given.double().flatten(1)
    assert surprise(rest, expected) <= 3


def test_a_part_of_the_clip_passes_through_the_same_key_frames() -> None:
    noise = through(dependency(), "2, 11")
    whole = noise.generate_noise(pictures(16))
    for start, count in ((0, 6), (4, 3), (10, 6)):
        (part,) = LatentFromBatch().frombatch(pictures(16), start, count)
        assert torch.equal(noise.generate_noise(part), whole[start : start + count])
    for start in (4, 0):
        with pytest.raises(
            ValueError, match=rf"counts from the end of the clip, but .*only frames {start}, {start + 1}"
        ):
            through(dependency(), "-1").generate_noise(LatentFromBatch().frombatch(pictures(8), start, 2)[0])


@pytest.mark.parametrize("latent", [pictures, video])
def test_a_continued_clip_passes_through_key_frames_by_their_number_in_the_whole(latent) -> None:
    previous = NoiseFrames.execute(dependency(0.05), latent(8))[0]
    again = dependency(0.05, previous=previous)
    given = keys(0, 1)
    made = through(again, "12, -1", given).generate_noise(latent(8))
    made = made if made.ndim == 4 else made[0].movedim(1, 0)
    assert torch.equal(made[[4, 7]], given)
    last = previous["samples"][-1] if made.ndim == previous["samples"].ndim else previous["samples"][0, :, -1]
    assert torch.corrcoef(torch.stack([last.flatten(), made[0].flatten()]))[0, 1] > 0.8
    with pytest.raises(ValueError, match=r"names 7, but this clip holds frames 8 to 15.*clip in previous"):
        through(again, "7").generate_noise(latent(8))


def test_a_schedule_counts_from_the_clips_start_around_key_frames() -> None:
    """Frames 3 to 5 stand still, whichever frame is given."""
    for frames in ("0", "7", "1, 6"):
        made = through(dependency(kl_schedule="3:0.2, 4:0, 5:0, 6:0.2"), frames).generate_noise(pictures(8))
        assert torch.allclose(made[4], made[3], atol=1e-6)
        assert torch.allclose(made[5], made[3], atol=1e-6)
        assert not torch.allclose(made[6], made[5], atol=0.1)


REFUSED = {
    "another noise": (lambda: through(Noise_RandomNoise(1), "0"), "noise is Noise_RandomNoise.*Connect Dependency"),
    "mixed noise": (lambda: through(VideoNoisePrior.execute(1, "mixed", 0.5)[0], "0"), "ClipNoise.*progressive"),
    "key frames twice": (lambda: through(through(dependency(), "0"), "1"), "has key frames already"),
    "too few": (lambda: through(dependency(), "0", keys(0, 1)), r"names 1 frames \(0\), but keyframes holds 2"),
    "none": (lambda: through(dependency(), " ", keys(0)), r"names 0 frames \(none\)"),
    "doubled": (lambda: through(dependency(), "3, 3"), "names frame 3 twice"),
    "no number": (lambda: through(dependency(), "0, last"), "'last' is not a frame number"),
    "a sampler's output": (
        lambda: through(dependency(), "4", 0.2 * keys(0)),
        "keyframes is not noise: the one for frame 4 .*deviation 0.2.*probably a sampler's output.*Noise from Latent",
    ),
    "several clips": (lambda: through(dependency(), "0", torch.randn(2, 4, 3, 9, 7)), "holds 2 clips of 3 frames"),
    "beyond the end": (
        lambda: through(dependency(), "8").generate_noise(pictures(8)),
        "names 8, but this clip holds frames 0 to 7",
    ),
    "before the start": (
        lambda: through(dependency(), "-9").generate_noise(pictures(8)),
        "names -9, but this clip holds frames 0 to 7",
    ),
    "doubled from the end": (
        lambda: through(dependency(), "7, -1").generate_noise(pictures(8)),
        "frame 7 twice in 7, -1",
    ),
    "another size": (
        lambda: through(dependency(), "0").generate_noise(pictures(8, (8, 8))),
        r"shape \(4, 9, 7\).*\(4, 8, 8\).*same model and size",
    ),
    "a still clip between two pictures": (
        lambda: through(dependency(0.0), "0, 4").generate_noise(pictures(8)),
        "cannot all be equal.*Raise kl",
    ),
}


@pytest.mark.parametrize(("make", "complaint"), REFUSED.values(), ids=REFUSED)
def test_key_frames_that_cannot_be_are_refused_with_a_cure(make, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()
