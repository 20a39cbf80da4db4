"""Editing: what must hold whatever the model predicts (eps, v, flow, CogVideoX's v)."""

import gc
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from coherence.demo.model import load_model
from coherence.samplers.editing import Edit, EditGuider, Prompts
from coherence.samplers.pairing import PairSampler
from coherence.samplers.replacing import REPLACES
from coherence.techniques.replacement import Replacement
from comfy.samplers import KSAMPLER
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from editing_runs import StoredMaps, demo_run, stepwise, tiny_run
from watching import difference, watched

EPS, V, FLOW, COGVIDEOX = "eps", "v", "wan21", "cogvideox"
PICTURES = ["flux", "sd3", "qwen_image", "z_image", "krea2"]
every_family = pytest.mark.parametrize("name", [EPS, "svd", FLOW, COGVIDEOX, "ltxv", "hunyuan_video", *PICTURES])
every_prediction = pytest.mark.parametrize("name", [EPS, V, FLOW, COGVIDEOX])


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture
def run_of(tiny_models, unet):
    def run_of(name, **settings):
        if name == EPS:
            return demo_run(unet, **settings)
        if name == V:
            return demo_run(ModelSamplingDiscrete().patch(unet, "v_prediction", False)[0], **settings)
        return tiny_run(tiny_models, name, **settings)

    return run_of


@every_family
def test_equal_prompts_give_equal_clips_bitwise(run_of, name):
    run = run_of(name)
    target, source = replace(run, target=run.source).edit()
    assert torch.equal(target, source)
    assert source.isfinite().all()


@pytest.mark.parametrize("what", [each for each in REPLACES if each != "blend"])  # which needs an alignment
def test_equal_prompts_give_equal_clips_whatever_is_replaced(run_of, what):
    run = run_of(EPS)
    assert torch.equal(*replace(run, target=run.source).edit(replace=what))


@every_family
def test_the_replacement_changes_the_target_and_never_the_source(run_of, name):
    run = run_of(name)
    target, source = run.edit()
    free_target, free_source = run.edit(layers="")
    assert torch.equal(source, free_source)
    assert difference(target, free_target) > 0.01
    assert difference(free_target, free_source) > 0.01


class Unscaled(KSAMPLER):
    """Euler steps that give CogVideoX the input it was trained on, as its denoiser's definition has it."""

    def __init__(self):
        super().__init__(self.walk)

    @staticmethod
    def walk(model, x, sigmas, extra_args, callback, disable):
        for sigma, following in pairwise(sigmas):
            denoised = model(x / (sigma**2 + 1).sqrt(), sigma.expand(len(x)), **extra_args)
            x = x + (x - denoised) * ((following - sigma) / sigma)
        return x


@every_prediction
@pytest.mark.parametrize("source_cfg", [4.0, 1.0])
def test_without_layers_both_clips_are_plain_generation(run_of, name, source_cfg):
    run = run_of(name)
    target, source = run.edit(layers="", source_cfg=source_cfg)
    plain = replace(run, sampler=Unscaled()) if name == COGVIDEOX else run
    assert difference(target, plain.plain(run.target)) < 1e-3
    assert difference(source, plain.plain(run.source, source_cfg)) < 1e-3


@every_prediction
@pytest.mark.parametrize("source_cfg", [4.0, 1.0])
def test_the_edit_is_algorithm_1_with_its_maps_in_memory(run_of, name, source_cfg):
    run = run_of(name)
    target, source = run.edit(source_cfg=source_cfg)
    expected_target, expected_source = stepwise(run, StoredMaps(), "*", 4.0, source_cfg)
    effect = difference(run.edit(layers="", source_cfg=source_cfg)[0], expected_target)
    assert difference(source, expected_source) < 1e-3
    assert difference(target, expected_target) < max(1e-3, effect / 100)


def test_only_the_registered_layers_take_from_the_source(run_of):
    run = run_of(EPS)
    few, many = (run.edit(layers=layers)[0] for layers in ("middle", "middle, output"))
    assert difference(few, many) > 0.01
    assert torch.equal(run.edit(layers="spatial")[0], run.edit()[0])


def test_outside_start_and_end_percent_nothing_is_replaced(run_of):
    run = run_of(EPS, steps=4)
    free, first, last, throughout = (
        run.edit(layers=layers, start_percent=start, end_percent=end)[0]
        for layers, start, end in (("", 0, 1), ("*", 0, 0.4), ("*", 0.6, 1), ("*", 0, 1))
    )
    for one, other in ((free, first), (free, last), (first, last), (first, throughout), (last, throughout)):
        assert difference(one, other) > 0.01


@pytest.mark.parametrize(
    ("source_cfg", "cfg", "branches"), [(4.0, 4.0, 4), (1.0, 4.0, 3), (4.0, 1.0, 3), (1.0, 1.0, 2)]
)
def test_a_step_is_one_model_call_with_no_branch_too_many(unet, source_cfg, cfg, branches):
    model, watch = watched(unet, layers="middle", kinds=["spatial"])
    demo_run(model).edit(cfg=cfg, source_cfg=source_cfg)
    assert [len(call.branches) for call in watch.calls] == [branches] * 2
    assert all(call.frames == 3 for call in watch.calls)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_at_source_cfg_1_the_source_is_sampled_without_guidance(run_of, cfg):
    run = run_of(EPS)
    assert difference(run.edit(cfg=cfg, source_cfg=1.0)[1], run.plain(run.source, 1.0)) < 1e-4


def tensors_alive() -> int:
    gc.collect()
    mine = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]  # not fake ones
    return sum(x.numel() * x.element_size() for x in mine)


@pytest.mark.slow
def test_nothing_is_kept_from_one_step_to_the_next(run_of):
    run = run_of(EPS, steps=5)
    guider = EditGuider(run.model, Prompts(run.source, run.target, run.negative), Edit("*"), run.shape, "test")
    alive = []
    with torch.inference_mode():
        guider.sample(
            Noise_RandomNoise(3).generate_noise(run.latents),
            run.latents["samples"],
            PairSampler(run._sampler()),
            run.sigmas,
            callback=lambda *_: alive.append(tensors_alive()),
            disable_pbar=True,
        )
    assert len(alive) == 5
    assert len(set(alive[1:])) == 1
    assert not any(isinstance(value, torch.Tensor) for value in vars(Replacement("map", {})).values())


def test_previews_show_the_target(run_of):
    run = run_of(EPS)
    guider = EditGuider(run.model, Prompts(run.source, run.target, run.negative), Edit("*"), run.shape, "test")
    seen = []
    with torch.inference_mode():
        both = guider.sample(
            Noise_RandomNoise(3).generate_noise(run.latents),
            run.latents["samples"],
            PairSampler(run._sampler()),
            run.sigmas,
            callback=lambda step, denoised, x, total: seen.append(denoised),
            disable_pbar=True,
        )
    assert [x.shape for x in seen] == [run.shape] * 2
    last = guider.model_patcher.model.process_latent_out(seen[-1])
    torch.testing.assert_close(last, both.chunk(2)[1], atol=1e-4, rtol=0)
