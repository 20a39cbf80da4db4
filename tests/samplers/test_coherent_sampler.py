"""Noise that samplers draw within their steps: of the clip's model, as coherent at every call as at the first."""

import logging
from functools import partial
from math import sqrt

import pytest
import torch
from coherence.demo.model import load_model
from coherence.nodes.coherent_sampler import CoherentSampler
from coherence.nodes.momentum import TemporalMomentumAttention
from coherence.nodes.noise import NoiseFrames, VideoNoisePrior
from coherence.noise.brownian import BrownianPath
from coherence.noise.measure import correlation
from coherence.samplers.coherent import NoNoiseSamplerError, draws_of
from coherence.samplers.noises import GivenNoise
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import WrappersMP
from comfy.samplers import KSAMPLER, SAMPLER_NAMES, CFGGuider, Sampler, calculate_sigmas, sampler_object
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, Noise_RandomNoise, SamplerCustomAdvanced
from noise_clips import dependency_node
from tiny_models import FAMILIES
from watching import DEMO, difference

from nodes import LatentFromBatch

LEVELS = [14.0, 6.0, 2.0, 0.0]
DETERMINISTIC = {
    "euler", "euler_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "lms", "dpm_fast", "dpmpp_2m",
    "dpmpp_2m_cfg_pp", "res_multistep", "res_multistep_cfg_pp", "dpm_adaptive",
    "ipndm", "ipndm_v", "deis", "gradient_estimation", "gradient_estimation_cfg_pp", "ddim",
    "uni_pc", "uni_pc_bh2",
}  # fmt: skip


def noise_of(previous=None, seed=3):
    return dependency_node(0.01, seed=seed, previous=previous)


def coherent(name, noise):
    return CoherentSampler.execute(sampler_object(name), noise)[0]


def pictures(frames):
    return {"samples": torch.zeros(frames, 4, 16, 16)}


@pytest.fixture(scope="module")
def unet():
    return load_model()


def sampled(model, sampler, noise, latent, levels=LEVELS, family=DEMO):
    """The result, and the correlation of neighbours at every call of the model."""
    seen = []

    def look(executor, x, t, *args, **kwargs):
        frames = x if x.ndim == 4 else x[0].movedim(1, 0)
        seen.append(correlation(frames).diagonal(1).mean().item() if len(frames) > 1 else 1.0)
        return executor(x, t, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper(WrappersMP.APPLY_MODEL, look)
    guider = CFGGuider(clone)
    guider.set_conds(*family.conditioning())
    guider.set_cfg(1.0)
    out = SamplerCustomAdvanced.execute(noise, guider, sampler, torch.tensor(levels), latent).args[0]
    return out["samples"], seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "lcm", "er_sde", "seeds_3", "exp_heun_2_x0_sde"]
)
def test_neighbours_are_as_alike_at_every_call_as_at_the_first(unet, name):
    noise, latent, levels = noise_of(), pictures(3), [14.0, 8.0, 4.0, 2.0, 0.0]
    ours, after = sampled(unet, coherent(name, noise), noise, latent, levels)
    assert ours.isfinite().all()
    assert min(after) > after[0] - 0.01
    if name in ("euler_ancestral", "dpmpp_sde"):
        _, before = sampled(unet, sampler_object(name), noise, latent, levels[:3])
        assert before[1] < 0.7


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(unet):
    one, again, other = (sampled(unet, coherent("lcm", n), noise_of(), pictures(2))[0] for n in
                         (noise_of(), noise_of(), noise_of(seed=4)))  # fmt: skip
    assert torch.equal(one, again)
    assert difference(one, other) > 1e-2


@pytest.fixture(scope="module")
def whole(unet):
    return sampled(unet, coherent("dpmpp_sde", noise_of()), noise_of(), pictures(4))[0]


def test_parts_of_a_batch_draw_what_the_whole_does(unet, whole):
    sampler = coherent("dpmpp_sde", noise_of())
    (part,) = LatentFromBatch().frombatch(pictures(4), 1, 2)
    assert difference(sampled(unet, sampler, noise_of(), part)[0], whole[1:3]) < 1e-4


def test_a_clip_that_goes_on_draws_what_the_whole_does(unet, whole):
    """Though its noise begins at the last frame of the one before, which no step's noise goes on from."""
    more = noise_of(NoiseFrames.execute(noise_of(), pictures(2))[0])
    assert difference(sampled(unet, coherent("dpmpp_sde", more), more, pictures(2))[0], whole[2:]) < 1e-4


def test_chunks_draw_what_the_whole_does(unet):
    def run(frames_per_batch):
        model = TemporalMomentumAttention.execute(unet, 0.9, frames_per_batch=frames_per_batch).args[0]
        return sampled(model, coherent("lcm", noise_of()), noise_of(), pictures(3), LEVELS[-3:])[0]

    assert difference(run(2), run(0)) < 1e-4


def test_a_run_in_two_parts_draws_what_the_whole_does(unet):
    sampler, noise = coherent("lcm", noise_of()), noise_of()
    once, _ = sampled(unet, sampler, noise, pictures(2))
    half, _ = sampled(unet, sampler, noise, pictures(2), LEVELS[:3])
    rest, _ = sampled(unet, sampler, Noise_EmptyNoise(), {"samples": half}, LEVELS[2:])
    assert difference(rest, once) < 1e-4


def test_the_frames_of_a_video_draw_coherently(tiny_models):
    model, family = tiny_models.load("wan21"), FAMILIES["wan21"]
    noise, levels = noise_of(), [1.0, 0.8, 0.5, 0.0]
    for sampler, least in ((coherent("euler_ancestral", noise), 0.97), (sampler_object("euler_ancestral"), None)):
        _, seen = sampled(model, sampler, noise, family.latent(), levels, family)
        assert (min(seen) > least) if least else (min(seen) < 0.9)


def test_draws_are_standard_normal_and_of_overlapping_intervals_what_they_share():
    generator, drawn = torch.Generator().manual_seed(0), []

    def fresh(start):
        drawn.append(start)
        return torch.randn(200_000, generator=generator)

    path = BrownianPath(fresh)
    first = path.between(4.0, 3.0)  # a solver's substep, then its step
    step, following = path.between(4.0, 2.0), path.between(2.0, 1.0)
    inside = path.between(3.0, 2.5)
    again = path.between(4.0, 3.0)
    for noise in (first, step, following, inside, again):
        assert abs(noise.std() - 1) < 0.01

    def alike(a, b):
        return torch.corrcoef(torch.stack([a, b]))[0, 1].item()

    assert alike(first, step) == pytest.approx(sqrt(1 / 2), abs=0.01)
    assert alike(inside, step) == pytest.approx(sqrt(0.5 / 2), abs=0.01)
    for other in (first, step, following):
        assert abs(alike(again, other)) < 0.01
    assert abs(alike(step, following)) < 0.01
    assert not torch.equal(path.between(1.0, 1.0), path.between(1.0, 1.0))


def churning():
    return KSAMPLER(sampler_object("euler").sampler_function, {"s_churn": 5.0})


def drawing_by_itself(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return x + torch.randn_like(x)


def drawing_behind(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
    """Also by the noise_sampler."""
    return drawing_by_itself(model, x, sigmas) + noise_sampler(sigmas[0], sigmas[1])


def handing_on(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
    return drawing_by_itself(model, x, sigmas, extra_args, **options)


def seeded(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(7))


def quiet(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return model(x, sigmas[0] * x.new_ones([len(x)]), **extra_args)


def never_asking(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
    return quiet(model, x, sigmas, extra_args)


class OtherSampler(Sampler):
    pass


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (churning, "its s_churn is 5: set it to 0"),
        (lambda: SamplerLCMUpscale.execute(2.0, 2, "bislerp")[0], r"sample_lcm_upscale\) draws noise in a way"),
        *((partial(KSAMPLER, by_itself), rf"{by_itself.__name__}\) draws noise in a way that CoherentSampler cannot")
          for by_itself in (drawing_by_itself, drawing_behind, handing_on, seeded)),
        (OtherSampler, r"sampler \(OtherSampler\) draws"),
    ],
)  # fmt: skip
def test_a_sampler_that_draws_otherwise_is_refused_before_the_model_is_called(unet, sampler, words):
    called = []
    watched = unet.clone()
    watched.add_wrapper(WrappersMP.APPLY_MODEL, lambda executor, *args, **kwargs: called.append(args))
    with pytest.raises(NoNoiseSamplerError, match=words):
        sampled(watched, CoherentSampler.execute(sampler(), noise_of())[0], noise_of(), pictures(2))
    assert not called


def ways(model, samplers, levels=LEVELS):
    """How each of ``samplers`` draws before ``model``."""
    guider = CFGGuider(model)
    guider.inner_model = model.model
    noise = noise_of().generate_noise(pictures(2))
    return [draws_of(sampler, guider, torch.tensor(levels), noise) for sampler in samplers]


def test_every_sampler_of_the_host_is_known(unet, tiny_models):
    samplers = [sampler_object(name) for name in SAMPLER_NAMES]
    expected = {name: "nothing" if name in DETERMINISTIC else "by noise_sampler" for name in SAMPLER_NAMES}
    for model, levels in ((unet, LEVELS), (tiny_models.load("wan21"), [1.0, 0.8, 0.4, 0.0])):
        assert dict(zip(SAMPLER_NAMES, ways(model, samplers, levels), strict=True)) == expected


@pytest.mark.parametrize("function", ["euler", quiet, never_asking])
def test_of_a_sampler_that_draws_nothing_the_log_says_so(unet, caplog, function):
    plain = sampler_object(function) if isinstance(function, str) else KSAMPLER(function)
    sampler = CoherentSampler.execute(plain, noise_of())[0]
    with caplog.at_level(logging.WARNING):
        ours, _ = sampled(unet, sampler, noise_of(), pictures(2))
    assert torch.equal(ours, sampled(unet, plain, noise_of(), pictures(2))[0])
    assert "draws no noise within its steps" in caplog.text


def test_eta_0_draws_nothing(unet):
    function = sampler_object("dpmpp_2m_sde").sampler_function
    options = ({}, {"eta": 0.0}, {"s_noise": 0.0})
    assert ways(unet, [KSAMPLER(function, each) for each in options]) == ["by noise_sampler", "nothing", "nothing"]


class ValueByValue(CFGGuider):
    """Denoises every value by itself: what it is given is nothing but a sum of noises. Watches their likeness."""

    def __call__(self, x, timestep, model_options=None, seed=None):
        self.seen.append(correlation(x).diagonal(1).mean().item())
        return x / (1 + timestep.reshape(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "lcm"])
def test_without_a_picture_neighbours_stay_as_alike_at_all_calls_of_20_steps(unet, name):
    guider, noise = ValueByValue(unet), noise_of()
    guider.set_conds(*DEMO.conditioning())
    guider.seen = []
    sigmas = calculate_sigmas(unet.get_model_object("model_sampling"), "normal", 20)
    SamplerCustomAdvanced.execute(noise, guider, coherent(name, noise), sigmas, pictures(8))
    assert len(guider.seen) >= 20
    assert min(guider.seen) >= 0.99


@pytest.mark.parametrize("noise", [Noise_EmptyNoise(), GivenNoise(torch.zeros(2, 4, 8, 8))])
def test_noise_that_is_the_same_at_every_seed_is_refused(noise):
    with pytest.raises(NoNoiseSamplerError, match="does not follow its seed, so every step would draw the same"):
        CoherentSampler.execute(sampler_object("lcm"), noise)


def test_other_noise_nodes_serve_too(unet):
    for noise in (Noise_RandomNoise(1), VideoNoisePrior.execute(1, "progressive", 0.9)[0]):
        samples, _ = sampled(unet, coherent("lcm", noise), noise, pictures(2), LEVELS[-3:])
        assert samples.isfinite().all()


def test_video_with_sound_is_refused(tiny_models):
    model = tiny_models.load_ltxav()
    latent = {"samples": NestedTensor((torch.zeros(1, 128, 2, 4, 4), torch.zeros(1, 8, 5, 16)))}
    guider = CFGGuider(model)
    text = [[torch.zeros(1, 4, 512), {}]]
    guider.set_conds(text, text)
    guider.set_cfg(1.0)
    with pytest.raises(NoNoiseSamplerError, match="For video with sound"):
        SamplerCustomAdvanced.execute(
            noise_of(), guider, coherent("lcm", noise_of()), torch.tensor([1.0, 0.5, 0.0]), latent
        )
