"""A clip rendered in runs: noise that goes on from an earlier clip's is the noise of one run, bit for bit."""

from functools import partial

import pytest
import torch
from coherence.nodes.noise import DependencyNoise, NoiseFrames
from coherence.noise.dependency import SOLVERS
from coherence.noise.divergence import DIVERGENCES
from coherence.noise.measure import neighbour_kl
from coherence.noise.numbers import told_of
from comfy.nested_tensor import NestedTensor

SETTINGS = {
    "noise_seed": 3,
    "kl": 0.05,
    "kl_schedule": "2:0.01, 19:0.5",
    "divergence": "generalised",
    "solver": "bisection",
    "random_candidates": 3,
    "line_iterations": 15,
}


def dependency_noise(previous: dict | None = None, **settings):
    return DependencyNoise.execute(**SETTINGS | settings, previous=previous)[0]


def frames_of(noise, latent: dict) -> dict:
    return NoiseFrames.execute(noise, latent)[0]


def pictures(frames: int, **entries) -> dict:
    return {"samples": torch.zeros(frames, 4, 9, 7), **entries}


def video(frames: int, clips: int = 2, **entries) -> dict:
    return {"samples": torch.zeros(clips, 4, frames, 9, 7), **entries}


def one_frame_each(frames: int) -> dict:
    """Pictures as Qwen-Image's sampler has them."""
    return {"samples": torch.zeros(frames, 4, 1, 9, 7)}


def in_runs(latent, axis: int, lengths: list[int], **settings) -> torch.Tensor:
    """The noise of a clip made of one run after the other, each from the frames of the run before."""
    previous, parts = None, []
    for length in lengths:
        noise = dependency_noise(previous, **settings)
        parts.append(noise.generate_noise(latent(length)))
        previous = frames_of(noise, latent(length))
    return torch.cat(parts, dim=axis)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("latent", "axis"), [(pictures, 0), (video, 2), (one_frame_each, 0)])
@pytest.mark.parametrize("lengths", [[2, 5], [7, 2, 1, 1], [15, 5], [18, 4]])
def test_runs_with_carried_frames_are_one_runs_noise_bitwise(latent, axis, lengths, solver):
    """With a schedule that goes on, too."""
    whole = dependency_noise(solver=solver).generate_noise(latent(sum(lengths)))
    assert torch.equal(in_runs(latent, axis, lengths, solver=solver), whole)


@pytest.mark.parametrize(("latent", "axis"), [(pictures, 0), (partial(video, clips=1), 2), (one_frame_each, 0)])
def test_a_clip_goes_on_from_a_run_of_one_frame(latent, axis):
    whole = dependency_noise().generate_noise(latent(6))
    assert torch.equal(in_runs(latent, axis, [1, 1, 4]), whole)


def test_pictures_go_on_with_or_without_the_axis_that_the_sampler_adds():
    whole = dependency_noise().generate_noise(pictures(12))
    four, five = (frames_of(dependency_noise(), latent(8)) for latent in (pictures, one_frame_each))
    assert torch.equal(dependency_noise(four).generate_noise(one_frame_each(4))[:, :, 0], whole[8:])
    assert torch.equal(dependency_noise(five).generate_noise(pictures(4)), whole[8:])


def test_the_last_frame_of_a_picture_clip_is_enough():
    from nodes import LatentFromBatch

    whole = dependency_noise().generate_noise(pictures(12))
    (last,) = LatentFromBatch().frombatch(frames_of(dependency_noise(), pictures(8)), 7, 1)
    assert len(last["samples"]) == 1
    assert torch.equal(dependency_noise(last).generate_noise(pictures(4)), whole[8:])


def test_a_latent_that_tells_no_numbers_holds_the_clip_from_its_start():
    """As one does that was saved to a file."""
    whole = dependency_noise().generate_noise(pictures(12))
    saved = {"samples": frames_of(dependency_noise(), pictures(8))["samples"]}
    assert torch.equal(dependency_noise(saved).generate_noise(pictures(4)), whole[8:])


def test_batch_index_counts_the_frames_of_the_continuing_clip():
    whole = dependency_noise().generate_noise(pictures(12))
    again = dependency_noise(frames_of(dependency_noise(), pictures(8)))
    assert torch.equal(again.generate_noise(pictures(2, batch_index=[11, 9])), whole[[11, 9]])
    assert frames_of(again, pictures(2, batch_index=[11, 9]))["batch_index"] == [11, 9]


def test_a_part_of_the_whole_clips_latent_goes_on_where_the_whole_does():
    from nodes import LatentFromBatch

    whole = dependency_noise().generate_noise(pictures(12))
    (part,) = LatentFromBatch().frombatch(pictures(12), 8, 4)
    assert torch.equal(dependency_noise().generate_noise(part), whole[8:])
    again = dependency_noise(frames_of(dependency_noise(), pictures(8)))
    assert torch.equal(again.generate_noise(part), whole[8:])
    with pytest.raises(ValueError, match=r"names frame 6, but previous ends at frame 7.*take frames from 8 on"):
        again.generate_noise(LatentFromBatch().frombatch(pictures(12), 6, 4)[0])


def test_batch_index_of_videos_picks_the_clip_to_go_on_with():
    chosen = {"clips": 2, "batch_index": [3, 1]}
    whole = dependency_noise().generate_noise(video(6, **chosen))
    again = dependency_noise(frames_of(dependency_noise(), video(4, **chosen)))
    assert torch.equal(again.generate_noise(video(2, **chosen)), whole[:, :, 4:])
    assert torch.equal(again.generate_noise(video(2, clips=1, batch_index=[1])), whole[1:, :, 4:])


def test_frames_that_equal_others_are_told_as_their_own():
    """A clip that stands still: all its frames are the same bits."""
    still = dependency_noise(kl=0.0, kl_schedule="")
    kept = frames_of(still, pictures(4, batch_index=[8, 9, 10, 11]))
    begun, later = still.generate_noise(pictures(4)), still.generate_noise(pictures(4, batch_index=[4, 5, 6, 7]))
    assert torch.equal(begun, kept["samples"])
    assert told_of(begun) is None
    assert told_of(later).numbers(4) == (4, 5, 6, 7)
    assert told_of(later.double()).numbers(4) == (4, 5, 6, 7)
    assert told_of(kept["samples"]).numbers(4) == (8, 9, 10, 11)
    begun = still.generate_noise(pictures(4))
    assert told_of(begun.double()) is None


def test_half_precision_latents_carry_every_bit():
    half = {"samples": torch.zeros(4, 4, 9, 7, dtype=torch.float16)}
    whole = dependency_noise().generate_noise(pictures(6))
    previous = frames_of(dependency_noise(), half)
    assert previous["samples"].dtype == torch.float32
    assert torch.equal(dependency_noise(previous).generate_noise(pictures(2)), whole[4:])


def test_the_pictures_of_a_video_with_sound_go_on():
    def with_sound(frames: int) -> dict:
        return {"samples": NestedTensor((torch.zeros(1, 8, frames, 8, 8), torch.zeros(1, 8, 5, 4)))}

    whole, _ = dependency_noise().generate_noise(with_sound(6)).unbind()
    again = dependency_noise(frames_of(dependency_noise(), with_sound(4)))
    pictures_of_second, _ = again.generate_noise(with_sound(2)).unbind()
    assert torch.equal(pictures_of_second, whole[:, :, 4:])


def test_another_seed_goes_on_from_the_same_frame_to_another_clip():
    previous = frames_of(dependency_noise(), pictures(4))
    one, other = (dependency_noise(previous, noise_seed=seed).generate_noise(pictures(3)) for seed in (3, 4))
    assert not torch.equal(one[0], other[0])
    joined = torch.stack([previous["samples"][-1], other[0]])
    constant = dependency_noise(previous, noise_seed=4, kl_schedule="").generate_noise(pictures(3))
    assert neighbour_kl(torch.stack([joined[0], constant[0]])).item() == pytest.approx(0.05, abs=1e-4)


def test_noise_of_other_nodes_can_be_continued():
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    with torch.random.fork_rng(devices=[]):
        previous = frames_of(Noise_RandomNoise(5), pictures(3))
    assert previous["batch_index"] == [0, 1, 2]
    still = dependency_noise(previous, kl=0, kl_schedule="").generate_noise(pictures(2))
    assert all(torch.equal(frame, previous["samples"][-1]) for frame in still)


@pytest.mark.parametrize(
    ("earlier", "later", "complaint"),
    [
        (pictures(2), {"samples": torch.zeros(2, 4, 8, 8)}, r"\(4, 8, 8\).*\(4, 9, 7\).*same model and size"),
        (video(2, clips=1), video(2, clips=2), r"Clip 1 of the batch.*holds clips \[0\]"),
        ({"samples": torch.zeros(1, 8, 5)}, pictures(2), "Expected the latent of a clip"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_cure(earlier, later, complaint):
    with pytest.raises(ValueError, match=complaint):
        dependency_noise(frames_of(dependency_noise(), earlier)).generate_noise(later)


def sampled_like(*shape: int) -> torch.Tensor:
    """Smooth, in the range of SD1.5's latents."""
    coarse = torch.randn(shape[0], shape[1], 3, 3, generator=torch.Generator().manual_seed(1))
    return 3.2 * torch.nn.functional.interpolate(coarse, shape[2:], mode="bicubic")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


NO_NOISE = {
    "a sampler's output": (sampled_like(8, 4, 64, 64), "mean .*, standard deviation 3.17 and .* adjacent cells"),
    "a smooth clip with the moments of noise": (
        torch.nn.functional.normalize(sampled_like(3, 16, 32, 32).flatten(1), dim=1).reshape(3, 16, 32, 32) * 128,
        "correlation 0.9. of adjacent cells",
    ),
    "noise at a sampler's scale": (14.6 * normal(4, 4, 32, 32), "standard deviation 14.[4-8]"),
    "noise with an offset": (0.3 + normal(1, 4, 64, 64), "mean 0.(29|3)"),
    "an empty latent": (torch.zeros(2, 4, 16, 16), "standard deviation 0.00"),
    "the second clip of a batch": (
        torch.cat([normal(1, 16, 4, 16, 16), 0.5 * normal(1, 16, 4, 16, 16)]),
        "deviation 0.5",
    ),
}


@pytest.mark.parametrize(("samples", "complaint"), NO_NOISE.values(), ids=NO_NOISE)
def test_what_is_no_noise_is_not_gone_on_from(samples, complaint):
    with pytest.raises(ValueError, match=f"previous is not noise: .*{complaint}.*sampler's output.*Noise Frames"):
        dependency_noise({"samples": samples})


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("size", [8, 16, 32])
def test_all_of_our_noise_can_be_gone_on_from(size, divergence):
    """On small frames the search widens its distribution: up to a standard deviation of 1.3 at 8 × 8."""
    for seed in range(5):
        settings = {"noise_seed": seed, "kl_schedule": "", "random_candidates": 64, "divergence": divergence}
        clip = {"samples": torch.zeros(16, 4, size, size)}
        dependency_noise(frames_of(dependency_noise(**settings, orthogonal=seed % 2 == 0), clip))
