"""Where frames lie in a latent, and that each frame's noise is its own whatever stands around it."""

import pytest
import torch
from coherence.noise.streams import clip_frames, clip_noise, generator, plain_noise
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_clips import MODELS, clip, models

SMALL = (4, 16, 16)


def core_noise(seed: int, shape: tuple[int, ...], indices: list[int] | None = None) -> torch.Tensor:
    """ComfyUI's RandomNoise; it seeds the global state, which is put back."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    latent = {"samples": torch.zeros(shape)} | ({"batch_index": indices} if indices else {})
    with torch.random.fork_rng(devices=[]):
        return Noise_RandomNoise(seed).generate_noise(latent)


@models
@given(seed=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=10)
def test_one_frame_is_the_noise_of_random_noise(model, seed: int) -> None:
    for shape in [(1, 4, 16, 16), (1, 4, 9, 7), (1, 16, 1, 8, 8)]:
        assert torch.equal(clip(model, seed, shape), core_noise(seed, shape))


def test_one_frame_with_batch_index_is_the_noise_of_random_noise() -> None:
    assert torch.equal(clip(MODELS["dependency"], 5, (1, *SMALL), [0]), core_noise(5, (1, *SMALL), [0]))


@models
@pytest.mark.parametrize("indices", [None, [4, 0, 2]])
def test_frames_of_one_frame_each_are_the_clip_that_four_dimensions_hold(model, indices) -> None:
    """As the sampler has them of pictures whose latents have three dimensions, however a batch of them is split."""
    four = clip(model, 4, (3, *SMALL), indices)
    assert torch.equal(clip(model, 4, (3, 4, 1, 16, 16), indices), four[:, :, None])
    assert torch.equal(clip_frames(four[:, :, None]), four)
    assert torch.equal(clip(model, 4, (1, 4, 1, 16, 16), [2]), clip(model, 4, (3, *SMALL))[2:, :, None])


def test_where_it_is_said_one_frame_each_are_clips() -> None:
    shape = (3, 4, 1, 5, 7)
    made = clip_noise(shape, MODELS["dependency"], 5, generator(5), axis=2)
    assert torch.equal(made, core_noise(5, shape))


def test_plain_noise_is_that_of_random_noise() -> None:
    assert torch.equal(plain_noise((5, *SMALL), generator(9)), core_noise(9, (5, *SMALL)))
    assert torch.equal(plain_noise((3, *SMALL), generator(9), [6, 2, 6]), core_noise(9, (3, *SMALL), [6, 2, 6]))


@models
@pytest.mark.parametrize("frames", [1, 3, 17])
def test_frame_does_not_depend_on_how_many_follow(model, frames: int) -> None:
    """Sizes that are no multiple of 16, too: torch draws the last few numbers of those differently."""
    for size in [(9, 7), (16, 16)]:
        assert torch.equal(clip(model, 1, (20, 4, *size))[:frames], clip(model, 1, (frames, 4, *size)))
        clips = min(frames, 2)
        long, short = clip(model, 1, (clips, 4, 20, *size)), clip(model, 1, (clips, 4, frames, *size))
        assert torch.equal(long[:, :, :frames], short)


@models
def test_batch_index_picks_frames_of_the_whole_clip(model) -> None:
    whole = clip(model, 2, (20, *SMALL))
    for indices in ([5, 6, 7], [19], [3, 0], [3, 3]):
        assert torch.equal(clip(model, 2, (len(indices), *SMALL), indices), whole[indices])


@models
def test_batch_index_picks_clips_of_a_batch(model) -> None:
    whole = clip(model, 2, (4, 4, 5, 8, 8))
    assert torch.equal(clip(model, 2, (2, 4, 5, 8, 8), [3, 1]), whole[[3, 1]])


@models
def test_five_dimensions_hold_the_clip_that_four_do(model) -> None:
    four, five = clip(model, 4, (6, *SMALL)), clip(model, 4, (1, 4, 6, 16, 16))
    assert torch.equal(clip_frames(five), four)
    assert clip_frames(four) is four


@models
def test_clips_of_a_batch_are_independent(model) -> None:
    batch = clip(model, 4, (2, 4, 3, 64, 64))
    for frame in range(3):
        assert abs(torch.corrcoef(batch[:, :, frame].flatten(1))[0, 1]) < 0.04


def test_streams_of_different_paths_differ() -> None:
    paths = [(), (0, 0), (0, 1), (1, 0), (1, 1), (10, 1), (1, 11)]
    draws = {torch.randn(4, generator=generator(1, *path)).numpy().tobytes() for path in paths}
    assert len(draws) == len(paths)


@pytest.mark.parametrize("shape", [(1, 64, 215), (1, 2, 3, 4, 5, 6)])
def test_latent_that_is_no_clip_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected the latent of a clip") as error:
        clip_noise(shape, MODELS["iid"], 0, generator(0))
    assert str(shape) in str(error.value)
