"""Editing with every sampler: both clips take its steps and get the noise that it would give to one."""

from dataclasses import replace

import pytest
import torch
from coherence.demo.model import load_model
from coherence.nodes.coherent_sampler import CoherentSampler
from coherence.samplers import pairing
from comfy.k_diffusion.sampling import sample_euler
from comfy.samplers import KSAMPLER, SAMPLER_NAMES, sampler_object
from comfy_extras.nodes_void import VOID_DDIM
from editing_runs import demo_run, tiny_run
from noise_clips import dependency_node
from watching import difference

ONE_FRAME = (1, 4, 8, 8)


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture
def run(unet):
    return demo_run(unet)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_sampler_gives_both_clips_the_noise_that_it_gives_one(unet, name):
    run = demo_run(unet, sampler=name, shape=ONE_FRAME, steps=3)
    if name == "dpm_adaptive":
        with pytest.raises(ValueError, match="sampler: dpm_adaptive adapts its steps to the latents"):
            run.edit()
        return
    target, source = replace(run, target=run.source).edit()
    assert torch.equal(target, source)
    assert difference(source, run.plain(run.source)) < 1e-4


@pytest.mark.parametrize(("family", "name"), [("wan21", "lcm"), ("flux", "euler_ancestral")])
def test_flow_models_draw_the_same_noise_for_both_clips(tiny_models, family, name):
    run = tiny_run(tiny_models, family, sampler=name, steps=3)
    assert torch.equal(*replace(run, target=run.source).edit())
    target, source = run.edit()
    assert difference(source, run.plain(run.source)) < 1e-3
    assert difference(target, source) > 1e-2


def test_an_odd_number_of_values_is_drawn_as_for_one_clip(unet):
    """A draw of twice the values need not begin with the same ones."""
    run = demo_run(unet, sampler="euler_ancestral", shape=(1, 4, 9, 7), steps=3)
    assert difference(run.edit()[1], run.plain(run.source)) < 1e-4


def test_coherent_noise_within_the_steps_is_the_same_in_both_clips(unet):
    run = demo_run(unet, sampler=CoherentSampler.execute(sampler_object("lcm"), dependency_node())[0], steps=3)
    target, source = replace(run, target=run.source).edit()
    assert torch.equal(target, source)
    assert difference(source, run.plain(run.source)) < 1e-4
    assert difference(source, replace(run, sampler="lcm").plain(run.source)) > 1e-2


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "euler_ancestral"])
def test_a_run_asks_for_the_noise_of_one_clip_alone(unet, monkeypatch, name):
    """Of a Brownian path there is one, too."""
    run, drawn = demo_run(unet, sampler=name, steps=3), []
    usual = pairing._twice

    def noted(sampler):
        return usual(lambda *levels: drawn.append(sampler(*levels)) or drawn[-1])

    monkeypatch.setattr(pairing, "_twice", noted)
    run.edit()
    assert {tuple(noise.shape) for noise in drawn} == {run.shape, (1, *run.shape[1:2], 4, 4)}


@pytest.mark.parametrize("churn", [0.0, 1e-3])
def test_euler_is_refused_once_it_is_churned(unet, churn):
    run = demo_run(unet, sampler=KSAMPLER(sample_euler, {"s_churn": churn, "s_noise": 1.1}), shape=ONE_FRAME)
    if churn:
        with pytest.raises(ValueError, match=r"draws noise in a way that cannot be shared \(s_churn above 0"):
            run.edit()
    else:
        run.edit()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "uni_pc", "euler_cfg_pp"])
@pytest.mark.parametrize("source_cfg", [4.0, 1.0])
def test_a_sampler_takes_the_steps_that_it_takes_with_one_clip(unet, name, source_cfg):
    run = demo_run(unet, sampler=name, steps=4)
    target, source = run.edit(layers="", source_cfg=source_cfg)
    assert difference(target, run.plain(run.target)) < 1e-3
    assert difference(source, run.plain(run.source, source_cfg)) < 1e-3


def test_cogvideox_runs_with_the_sampler_that_its_own_workflows_use(tiny_models):
    run = tiny_run(tiny_models, "cogvideox", sampler=VOID_DDIM())
    target, source = run.edit(layers="")
    assert difference(target, run.plain(run.target)) < 1e-3
    assert difference(source, run.plain(run.source)) < 1e-3
    assert torch.equal(*replace(run, target=run.source).edit())


def test_a_sampler_that_denoises_rows_one_by_one_is_refused(run):
    def by_rows(model, x, sigmas, extra_args, callback, disable):
        return torch.cat([model(row, sigmas[:1], **extra_args) for row in x.split(1)])

    with pytest.raises(ValueError, match=r"sampler: it calls the model with 1 rows.*source and target are 6"):
        replace(run, sampler=KSAMPLER(by_rows)).edit()


@pytest.mark.parametrize("name", ["euler", "ddim", "lcm"])
def test_outside_a_noise_mask_both_clips_have_the_noise_of_one(run, name):
    """``ddim`` draws other noise there than it began with."""
    latent = {"samples": torch.ones(run.shape), "noise_mask": torch.ones(1, 8, 8).triu()}
    run = replace(run, latent=latent, sampler=name, steps=3)
    target, source = run.edit(layers="")
    assert difference(target, run.plain(run.target)) < 1e-3
    assert difference(source, run.plain(run.source)) < 1e-3
    assert torch.equal(*replace(run, target=run.source).edit())
