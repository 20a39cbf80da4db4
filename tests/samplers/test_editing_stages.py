"""An edit in two samplers, as for two experts: what the second gets is enough to go on as if there were one."""

import logging
from dataclasses import replace

import pytest
import torch
from coherence.demo.model import load_model
from coherence.nodes.coherent_sampler import CoherentSampler
from comfy.nested_tensor import NestedTensor
from comfy.samplers import sampler_object
from comfy_extras.nodes_void import VOID_DDIM
from editing_runs import demo_run, longer, tiny_run
from noise_clips import dependency_node
from watching import difference

ALIKE = 1e-5
"""Of two stages and one."""


@pytest.fixture(scope="module")
def unet():
    return load_model()


def in_two(run, at=4, **edit):
    """Target and source, as SplitSigmas, DisableNoise and the first stage's outputs make them."""
    sigmas = run.sigmas
    target, source = run.stage(sigmas[: at + 1], **edit)
    return run.stage(sigmas[at:], source=source, target=target, **edit)


def is_one(run, **edit):
    once = run.edit(**edit)
    for parts, whole in zip(in_two(run, run.steps // 2, **edit), once, strict=True):
        assert difference(parts, whole) < ALIKE
    return once


@pytest.mark.parametrize("name", ["eps", "wan21", "flux", "cogvideox"])
def test_two_steps_and_two_are_four(unet, tiny_models, name):
    run = demo_run(unet, steps=4) if name == "eps" else tiny_run(tiny_models, name, steps=4)
    target, source = is_one(run)
    assert difference(target, source) > 0.01


def test_in_step_too(tiny_models):
    run = tiny_run(tiny_models, "flux", steps=4)
    is_one(replace(run, target=longer(run.target, 3)))


def test_outside_the_mask_the_target_stays_the_source_bitwise(unet):
    mask = torch.linspace(-1, 1, 64).clamp(min=0).expand(64, 64)  # soft, too
    run = demo_run(unet, steps=4)
    is_one(run, mask=mask)
    target, source = in_two(run, 2, mask=mask)
    assert torch.equal(target[..., :4], source[..., :4])
    target, source = run.stage(run.sigmas[2:], source=source, target=source + 1, mask=mask)
    assert torch.equal(target[..., :4], source[..., :4])


def test_coherent_noise_within_the_steps_goes_on(unet):
    is_one(demo_run(unet, steps=4, sampler=CoherentSampler.execute(sampler_object("lcm"), dependency_node())[0]))


@pytest.mark.parametrize("percents", [(0.0, 0.3), (0.75, 1.0)])
def test_a_stage_out_of_range_goes_on_without_replacing(unet, caplog, percents):
    run, (start, end) = demo_run(unet, steps=4), percents
    with caplog.at_level(logging.INFO):
        is_one(run, start_percent=start, end_percent=end)
    assert caplog.text.count("no step of this stage lies between start_percent") == 1
    with pytest.raises(ValueError, match="expected 0 ≤ start_percent"):
        run.stage(run.sigmas[:3], start_percent=0.9, end_percent=0.1)


def test_what_does_not_go_on_is_refused(unet):
    run = demo_run(unet)
    there, sigmas = torch.ones(run.shape), run.sigmas[1:]
    with pytest.raises(ValueError, match=r"target_latent has shape \(2, 4, 8, 8\) and latent_image \(3, 4, 8, 8\)"):
        run.stage(sigmas, source=there, target=there[:2])
    with pytest.raises(ValueError, match=r"latent_image is empty.*Connect source of the first"):
        run.stage(sigmas, source=0 * there, target=there)
    with pytest.raises(ValueError, match=r"target_latent is empty.*Connect edited of the first"):
        run.stage(sigmas, source=there, target=0 * there)
    with pytest.raises(ValueError, match="target_latent holds a clip and sound"):
        run.stage(sigmas, source=there, target=NestedTensor([there, torch.zeros(1, 8, 8)]))
    with pytest.raises(ValueError, match="VOID_DDIM may start from the noise alone"):
        replace(run, sampler=VOID_DDIM()).stage(sigmas, source=there, target=there)
    masked = replace(run, latent={"samples": there, "noise_mask": torch.ones(1, 8, 8)})
    with pytest.raises(ValueError, match=r"latent_image has a noise mask.*cannot be used with target_latent"):
        masked.stage(sigmas, target=there)
