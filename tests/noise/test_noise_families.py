"""The noise of clips as models with video latents get it: measured inside the run, at the network's own input."""

import json
import math
from itertools import product

import comfy.samplers
import pytest
import torch
from coherence.nodes.noise import VideoNoisePrior
from coherence.nodes.noise_chart import NoiseCorrelation
from coherence.noise.measure import correlation
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_custom_sampler import BasicGuider, Noise_RandomNoise, SamplerCustomAdvanced
from noise_clips import dependency_node
from tiny_models import FAMILIES, RELATIVES
from tiny_models.pictures import COSMOS, build

VIDEO = ["cogvideox", "wan21", "wan22", "ltxv", "hunyuan_video"]
ROWS = ["Flux.2", "Chroma", "Lumina 2", "OmniGen2", "HiDream", "Kandinsky 5 Image", "HunyuanImage"]
ADDED_VIDEO = ["Wan 2.2 Animate", "Wan 2.1 SCAIL", "HunyuanVideo 1.5", "Kandinsky 5", "Mochi", "Cosmos-Predict2 Video"]
FRAMES = 4


def prior(name, alpha):
    return VideoNoisePrior.execute(3, name, alpha)[0]


ASKED = {
    "dependency": (dependency_node(0.1), lambda distance: (1 - 0.1 / math.sqrt(math.e)) ** distance),
    "mixed": (prior("mixed", 0.6), lambda distance: 0.6 ** (distance > 0)),
    "progressive": (prior("progressive", 0.6), lambda distance: 0.6 ** (distance / 2)),
}
"""A NOISE, and the correlation that was asked for between frames at a distance."""


def asked_of(expected, frames):
    frame = torch.arange(frames)
    return expected((frame[:, None] - frame).abs()).double()


def network_input(model, positive, noise, latent):
    """What the network gets at the first step: a tensor, or one for each modality."""
    seen = []

    def note(_network, inputs):
        x = inputs[0]
        seen.append([part.clone() for part in x] if isinstance(x, list) else x.clone())

    hook = model.get_model_object("diffusion_model").register_forward_pre_hook(note)
    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.sigma_max), 0.0])
    guider, sampler = BasicGuider.execute(model, positive)[0], comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, {"samples": latent})
    hook.remove()
    return seen[0]


@pytest.fixture(scope="module", params=["qwen_image", "krea2", "anima", "cosmos"])
def picture_model(request, tiny_models):
    """A model of pictures whose latents have an axis of frames, and its text."""
    if request.param == "cosmos":
        return build("CosmosT2IPredict2", COSMOS, ""), FAMILIES["anima"].conditioning()[0]
    return tiny_models.load(request.param), FAMILIES[request.param].conditioning()[0]


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("shape", [(8, 16, 16, 16), (8, 16, 1, 16, 16)])
def test_a_picture_model_with_video_latents_gets_the_noise_that_the_chart_shows(picture_model, shape, asked):
    """The sampler gives the frames of (8, 16, 16, 16) an axis of one frame each: still 8 frames of a clip."""
    model, positive = picture_model
    (noise, expected), latent = ASKED[asked], torch.zeros(shape)
    x = network_input(model, positive, noise, latent)
    assert tuple(x.shape) == (8, 16, 1, 16, 16)
    shown = json.loads(NoiseCorrelation.execute(noise, {"samples": latent})[1])
    got = correlation(x.flatten(1).float())
    torch.testing.assert_close(got, torch.tensor(shown["correlation"], dtype=torch.float64), atol=0.002, rtol=0)
    torch.testing.assert_close(got, asked_of(expected, 8), atol=0.08, rtol=0)


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_pictures_are_the_noise_itself(tiny_models, name):
    family, (noise, _) = RELATIVES[name], ASKED["dependency"]
    latent = torch.zeros(8, *family.latent_shape[1:])
    x = network_input(tiny_models.load(name), family.conditioning()[0], noise, latent)
    assert x.shape == latent.shape
    made = noise.generate_noise({"samples": latent})
    assert (x / x.std() - made / made.std()).abs().max() < 0.02


def frames_correlation(x):
    return correlation(x[0].movedim(1, 0).float())


@pytest.mark.parametrize(
    ("name", "asked"),
    [*product(VIDEO, ASKED), *product(ADDED_VIDEO, ["dependency"])],
)
def test_frames_reach_a_video_model_correlated_as_asked(tiny_models, name, asked):
    family, (noise, expected) = (FAMILIES | RELATIVES)[name], ASKED[asked]
    shape = [*family.latent_shape[:2], FRAMES, *family.latent_shape[3:]]
    latent = torch.zeros(shape)
    x = network_input(tiny_models.load(name), family.conditioning()[0], noise, latent)[:, : shape[1]]
    assert list(x.shape) == shape
    made = noise.generate_noise({"samples": latent})
    assert (x / x.std() - made / made.std()).abs().max() < 0.02, "the noise itself, but for scale and precision"
    few = 0.05 * max(1.0, (4096 / x[0, :, 0].numel()) ** 0.5)
    torch.testing.assert_close(frames_correlation(x), asked_of(expected, FRAMES), atol=few, rtol=0)


def test_of_video_with_sound_the_pictures_get_it_and_the_sound_plain_noise(tiny_models):
    model, (noise, expected) = tiny_models.load_ltxav(), ASKED["dependency"]
    assert type(model.model).__name__ == "LTXAV"
    latent = NestedTensor((torch.zeros(1, 128, FRAMES, 8, 8), torch.zeros(1, 8, 12, 16)))
    text = torch.randn(1, 20, 512, generator=torch.Generator().manual_seed(1))
    pictures, sound = network_input(model, [[text, {"frame_rate": 25}]], noise, latent)
    torch.testing.assert_close(frames_correlation(pictures), asked_of(expected, FRAMES), atol=0.05, rtol=0)
    first_alone = NestedTensor((torch.zeros(1, 128, 1, 8, 8), torch.zeros(1, 8, 12, 16)))
    with torch.random.fork_rng(devices=[]):
        plain = Noise_RandomNoise(3).generate_noise({"samples": first_alone}).unbind()
    assert (sound - plain[1]).abs().max() < 0.02
    assert (pictures[:, :, :1] - plain[0]).abs().max() < 0.02


def test_of_minimax_h3_the_pictures_get_it_and_the_sound_plain_noise(tiny_models):
    family, (noise, expected) = RELATIVES["MiniMax H3"], ASKED["dependency"]
    latent = NestedTensor((torch.zeros(1, 24, FRAMES, 16, 16), torch.zeros(1, 32, 2, 20)))
    pictures, sound = network_input(tiny_models.load("MiniMax H3"), family.conditioning()[0], noise, latent)
    made = noise.generate_noise({"samples": latent}).unbind()
    assert (pictures - made[0]).abs().max() < 0.02
    assert (sound - made[1]).abs().max() < 0.02
    torch.testing.assert_close(frames_correlation(pictures), asked_of(expected, FRAMES), atol=0.05, rtol=0)
