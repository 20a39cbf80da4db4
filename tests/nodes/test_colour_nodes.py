"""The nodes MatchClipColour and MatchLatentColour: what they pass on, and what they refuse by the input's name."""

import pytest
import torch
from coherence.frames.colour import Match, matched_latents, matched_pictures
from coherence.nodes.checks import InputError
from coherence.nodes.colour import MatchClipColour, MatchLatentColour
from comfy.nested_tensor import NestedTensor


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


CLIP, REFERENCE = draw(3, 20, 24, 3), 0.5 * draw(2, 16, 10, 3, seed=1)


def test_a_clip_is_matched_as_asked_and_by_mean_and_spread_over_neighbours_unless_asked():
    (plain,) = MatchClipColour.execute(CLIP, REFERENCE).args
    torch.testing.assert_close(plain, matched_pictures(CLIP, REFERENCE, Match("mean_std", 0.9, 1.0)))
    mask = (draw(20, 24) > 0.5).float()
    (asked,) = MatchClipColour.execute(CLIP, REFERENCE, "histogram", 0.2, 0.7, mask).args
    torch.testing.assert_close(asked, matched_pictures(CLIP, REFERENCE, Match("histogram", 0.2, 0.7), mask))


def test_one_frame_is_a_clip():
    (one,) = MatchClipColour.execute(CLIP[:1], REFERENCE).args
    torch.testing.assert_close(one, MatchClipColour.execute(CLIP[:1], REFERENCE, momentum=0.0).args[0])


@pytest.mark.parametrize("name", ["images", "reference"])
def test_pictures_with_nan_are_refused_by_name(name):
    broken = CLIP.clone()
    broken[1, 2, 3] = torch.nan
    with pytest.raises(InputError, match=f"^{name} holds nan"):
        MatchClipColour.execute(**({"images": CLIP, "reference": CLIP} | {name: broken}))


@pytest.mark.parametrize("name", ["latent", "reference"])
def test_latents_with_infinity_are_refused_by_name(name):
    latent, broken = {"samples": draw(2, 4, 8, 8)}, {"samples": draw(2, 4, 8, 8) / 0}
    with pytest.raises(InputError, match=f"^{name} holds inf"):
        MatchLatentColour.execute(**({"latent": latent, "reference": latent} | {name: broken}))


def test_what_came_with_a_latent_goes_on_with_it():
    latent = {"samples": draw(3, 4, 8, 8), "noise_mask": draw(3, 1, 64, 64), "batch_index": [4, 5, 6], "own": "kept"}
    reference = {"samples": 2 * draw(1, 4, 6, 6, seed=1), "noise_mask": draw(1, 1, 48, 48)}
    before = latent["samples"].clone()
    (result,) = MatchLatentColour.execute(latent, reference).args
    assert {name: result[name] for name in result if name != "samples"} == {
        name: latent[name] for name in latent if name != "samples"
    }
    torch.testing.assert_close(result["samples"], matched_latents(before, reference["samples"], Match()))
    assert torch.equal(latent["samples"], before)


def test_of_a_video_with_sound_the_pictures_are_matched():
    video, sound, other = draw(1, 16, 3, 4, 4), draw(1, 8, 5, 16), draw(1, 16, 2, 4, 4, seed=1)
    latent, reference = ({"samples": NestedTensor([each, sound])} for each in (video, other))
    (result,) = MatchLatentColour.execute(latent, reference).args
    matched, same = result["samples"].unbind()
    assert same is sound
    assert torch.equal(matched, matched_latents(video, other, Match()))
    (alone,) = MatchLatentColour.execute({"samples": video}, reference).args
    assert torch.equal(alone["samples"], matched)
