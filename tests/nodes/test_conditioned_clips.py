"""Control images, pictures to edit and LoRAs: each frame is conditioned by its own, with ZS² as without."""

import comfy.samplers
import pytest
import torch
from coherence.attention.tap import tap
from coherence.nodes.noise import VideoNoisePrior
from coherence.techniques.momentum import TemporalMomentum
from comfy_extras.nodes_custom_sampler import CFGGuider, DualCFGGuider, SamplerCustomAdvanced
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from tiny_models import FAMILIES
from watching import difference

from nodes import ControlNetApplyAdvanced

SD15 = FAMILIES["sd15"]
FRAMES, CHANGED = 3, 1


def momentum(model, frames_per_batch=0):
    technique = TemporalMomentum(0.8, "", frames_per_batch)
    return tap(model, technique, layers="*", kinds=["spatial"], asked_by="test")[0]


def sampled(guider):
    latent = {"samples": torch.zeros(FRAMES, 4, 8, 8)}
    noise = VideoNoisePrior.execute(3, "iid", 0.0)[0]
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([4.0, 0.0])
    with torch.inference_mode():
        return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)[0]["samples"]


class Controlled:
    """A clip under a ControlNet: ``draw(patch, pictures)``."""

    def __init__(self, tiny_models):
        self.model, self.net = tiny_models.load("sd15"), tiny_models.load_controlnet()

    def draw(self, patch, pictures):
        apply = ControlNetApplyAdvanced().apply_controlnet
        conditioning = apply(*SD15.conditioning(), self.net, pictures, 1.0, 0.0, 1.0)
        return sampled(CFGGuider.execute(patch(self.model), *conditioning, 4.0)[0])


class Edited:
    """A clip that Instruct-Pix2Pix edits, guided by the instruction and by the pictures, as its workflow does."""

    def __init__(self, tiny_models):
        self.model, _, self.vae = tiny_models.load_ip2p()

    def draw(self, patch, pictures):
        positive, negative = SD15.conditioning()
        both = InstructPixToPixConditioning.execute(positive, negative, pixels=pictures, vae=self.vae)
        return sampled(DualCFGGuider.execute(patch(self.model), both[0], both[1], negative, 4.0, 1.5, "regular")[0])


@pytest.fixture(scope="module", params=[Controlled, Edited])
def clip(request, tiny_models):
    return request.param(tiny_models)


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(FRAMES, 64, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "reached"),
    [(lambda model: model, [CHANGED]), (momentum, range(CHANGED, FRAMES))],
    ids=["plain", "with momentum"],
)
def test_a_picture_reaches_its_own_frame_and_by_momentum_those_after_it(clip, pictures, patch, reached):
    other = pictures.clone()
    other[CHANGED] = 1 - other[CHANGED]
    change = (clip.draw(patch, other) - clip.draw(patch, pictures)).abs().mean(dim=(1, 2, 3))
    for frame in range(FRAMES):
        assert change[frame] > 1e-3 if frame in reached else change[frame] < 1e-5


@pytest.mark.parametrize("clip", [Edited], indirect=True)
def test_an_edited_clip_in_chunks_is_the_clip_at_once(clip, pictures):
    whole = clip.draw(momentum, pictures)
    chunked = clip.draw(lambda model: momentum(model, 2), pictures)
    assert difference(chunked, whole) < 1e-5
    assert difference(clip.draw(lambda model: model, pictures), whole) > 1e-2


def test_momentum_keeps_the_first_frame_that_the_lora_gives(tiny_models):
    base = tiny_models.load("sd15")
    tuned = tiny_models.load_lora(base)

    def draw(model):
        return sampled(CFGGuider.execute(model, *SD15.conditioning(), 4.0)[0])

    plain, styled, ours = draw(base), draw(tuned), draw(momentum(tuned))
    assert difference(ours[:1], styled[:1]) < 1e-4
    assert difference(styled[:1], plain[:1]) > 1e-2
    assert difference(ours[1:], styled[1:]) > 1e-2
