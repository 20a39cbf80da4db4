"""Pix2Video's latent update against the authors' loop, in float64 with its gradient by a backward pass."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from coherence.attention.steps import NoStepError
from coherence.demo.model import load_model
from coherence.nodes.pix2video import Pix2VideoGuidance
from coherence.samplers.pairing import PairSampler
from coherence.samplers.pix2video import UpdateError, from_previous, gain_of, step_of
from comfy.samplers import KSAMPLER, SAMPLER_NAMES, CFGGuider, calculate_sigmas, sampler_object
from guidance_runs import guided
from guided_runs import guided_run
from tiny_models import FAMILIES, sample
from watching import DEMO, difference

SCALE = 30.0


def subject(name, tiny_models):
    return (load_model(), DEMO) if name == "demo" else (tiny_models.load(name), FAMILIES[name])


def run(model, family, sampler, noise=None, steps=4):
    sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    if noise is None:
        noise = torch.randn(family.latent_shape, generator=torch.Generator().manual_seed(0))
    return guided_run(model, family.conditioning(), 3.0, noise, sigmas, sampler)


def authors_loop(scale, until, is_flow, frames_axis):
    """DDIM in the network's own x, and after each step of the first half the gradient of the weighted mean square."""

    def loop(model, x, sigmas, extra_args=None, callback=None, disable=None):
        network_x = x.double() if is_flow else x.double() / (1 + float(sigmas[0]) ** 2) ** 0.5
        for sigma, following in pairwise(sigmas.double().tolist()):
            ours = network_x if is_flow else network_x * (1 + sigma**2) ** 0.5
            clean = model(ours.float(), torch.full((len(x),), sigma), **extra_args).double()
            noise = (ours - clean) / sigma if not is_flow else (ours - (1 - sigma) * clean) / sigma
            if is_flow:
                network_x = (1 - following) * clean + following * noise
            else:
                alpha = 1 / (1 + following**2)
                network_x = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
            if sigma < until:
                continue
            for frame in range(1, clean.shape[frames_axis]):
                with torch.inference_mode(False), torch.enable_grad():
                    before, here = (clean.select(frames_axis, frame - n).clone() for n in (1, 0))
                    here.requires_grad_()
                    loss = scale * torch.nn.functional.mse_loss(before, here)
                    loss.backward()
                network_x.select(frames_axis, frame).sub_(here.grad)
        return network_x.float()

    return KSAMPLER(loop)


@pytest.mark.parametrize("name", ["demo", "flux", "qwen_image", "wan21"])
def test_euler_with_it_is_the_authors_loop(name, tiny_models):
    model, family = subject(name, tiny_models)
    sampling = model.get_model_object("model_sampling")
    axis = 2 if name == "wan21" else 0
    loop = authors_loop(SCALE, float(sampling.percent_to_sigma(0.5)), name != "demo", axis)
    theirs = run(model, family, loop)
    ours = run(Pix2VideoGuidance.execute(model, SCALE)[0], family, sampler_object("euler"))
    plain = run(model, family, sampler_object("euler"))
    assert difference(ours, theirs) <= 1e-4
    assert difference(ours, plain) > 0.01


@cache
def effect(sampler: str) -> torch.Tensor:
    """What it changes of a clip of two frames."""
    model, noise = load_model(), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = Pix2VideoGuidance.execute(model, SCALE)[0]
    with_it, without = (run(each, DEMO, sampler_object(sampler), noise, steps=12) for each in (given, model))
    return with_it - without


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2m"])
def test_samplers_of_more_calls_a_step_take_the_same_update(sampler):
    euler, theirs = effect("euler"), effect(sampler)
    together = torch.nn.functional.cosine_similarity(euler.flatten(), theirs.flatten(), dim=0)
    assert together > 0.5
    assert 0.5 < theirs.norm() / euler.norm() < 2


@pytest.mark.parametrize("name", ["demo", "flux"])
@pytest.mark.parametrize("sampler", ["lcm", "euler_ancestral", "euler_cfg_pp", "dpmpp_2m_cfg_pp", "ddim", "er_sde"])
def test_a_step_of_any_sampler_takes_the_whole_update_and_no_more(sampler, name, tiny_models):
    model, family = subject(name, tiny_models)
    noise = torch.randn(family.latent_shape, generator=torch.Generator().manual_seed(0))
    step = calculate_sigmas(model.get_model_object("model_sampling"), "simple", 8)[3:5]

    def change(name):
        given = Pix2VideoGuidance.execute(model, SCALE)[0]
        both = (guided_run(each, family.conditioning(), 3.0, noise, step, name) for each in (given, model))
        return torch.sub(*both)

    assert difference(change(sampler), change("euler")) <= 1e-3


@pytest.mark.parametrize("name", ["demo", "flux"])
def test_the_gain_of_every_samplers_step_is_known(name, tiny_models):
    """1 of those that draw nothing, however often they call the model; at least 1 of all."""
    model, family = subject(name, tiny_models)
    sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "simple", 5)
    guider = CFGGuider(model)
    guider.inner_model, noise = model.model, torch.zeros(family.latent_shape)

    def gains(sampler):
        return [gain_of(sampler, guider, step, noise) for step in sigmas.unfold(0, 2, 1)]

    for each in SAMPLER_NAMES:
        found = gains(sampler_object(each))
        assert all(0.999 <= gain < 20 for gain in found), (each, found)
    for each in ("heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "dpmpp_2m", "res_multistep"):
        assert gains(sampler_object(each)) == pytest.approx([1.0] * 5, abs=1e-3)
    assert gains(PairSampler(sampler_object("lcm"))) == gains(sampler_object("lcm")) != pytest.approx([1.0] * 5)


def test_a_level_that_is_there_twice_changes_nothing():
    model = Pix2VideoGuidance.execute(load_model(), SCALE)[0]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = [14.0, 6.0, 2.0, 0.0]
    once, twice = (
        guided_run(model, DEMO.conditioning(), 3.0, noise, torch.tensor(each), "euler")
        for each in (levels, [14.0, *levels])
    )
    assert difference(once, twice) <= 1e-4


def test_a_frame_reaches_those_after_it_alone():
    model = Pix2VideoGuidance.execute(load_model(), SCALE)[0]
    noise = torch.randn(4, *DEMO.latent_shape[1:], generator=torch.Generator().manual_seed(0))
    changed = noise.clone()
    changed[2] = torch.randn(noise[2].shape, generator=torch.Generator().manual_seed(1))
    one, other = (run(model, DEMO, sampler_object("euler"), each) for each in (noise, changed))
    assert [difference(a, b) > 1e-4 for a, b in zip(one, other, strict=True)] == [False, False, True, True]
    plain = run(load_model(), DEMO, sampler_object("euler"), noise)
    assert difference(one[0], plain[0]) <= 1e-4


def test_at_scale_0_and_after_it_the_model_is_as_it_was_to_the_bit():
    model = load_model()
    plain = sample(model, DEMO)
    assert torch.equal(sample(Pix2VideoGuidance.execute(model, 0.0)[0], DEMO), plain)
    assert not torch.equal(sample(Pix2VideoGuidance.execute(model, SCALE)[0], DEMO), plain)
    assert torch.equal(sample(model, DEMO), plain)


def test_it_draws_frames_together():
    model = load_model()

    def changes(model):
        return from_previous(run(model, DEMO, sampler_object("euler"), steps=6), 0).square().mean()

    assert changes(Pix2VideoGuidance.execute(model, SCALE)[0]) < 0.8 * changes(model)


def test_it_stands_beside_ie_guidance_on_either_side():
    model = load_model()
    one = sample(guided(Pix2VideoGuidance.execute(model, SCALE)[0]), DEMO)
    other = sample(Pix2VideoGuidance.execute(guided(model), SCALE)[0], DEMO)
    assert torch.equal(one, other)


def test_where_it_makes_no_sense_it_is_refused():
    model = Pix2VideoGuidance.execute(load_model(), SCALE)[0]
    one = torch.zeros(1, *DEMO.latent_shape[1:])
    with pytest.raises(UpdateError, match="the clip has one frame"):
        sample(model, DEMO, empty=one)
    with pytest.raises(UpdateError, match="the noise levels rise"):
        sample(model, DEMO, sigmas=torch.tensor([0.1, 3.0, 14.0]))
    with pytest.raises(UpdateError, match="Set scale to 128 or less"):
        sample(Pix2VideoGuidance.execute(load_model(), 129.0)[0], DEMO)
    with pytest.raises(NoStepError, match="Pix2VideoGuidance: no step of this run"):
        sample(model, DEMO, sigmas=torch.tensor([0.5, 0.2, 0.0]))


def test_a_call_belongs_to_the_step_it_lies_in():
    assert [step_of(level, [8, 4, 2, 0]) for level in (9, 8, 5, 4.00001, 1)] == [0, 0, 0, 1, 2]
