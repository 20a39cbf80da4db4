"""A source that is set to an inversion's latents: it is the real clip, and the target attends to that."""

import logging
from dataclasses import replace

import pytest
import torch
from coherence.demo.model import load_model
from coherence.nodes.inversion import BilateralDDIMInvert
from coherence.samplers.trajectory import NOTHING, Pinned, Trajectory, TrajectoryError
from editing_runs import StoredMaps, demo_run, longer, stepwise, tiny_run
from inversion_runs import FILTER
from watching import difference, watched

EXACT = 1e-4
"""Of an edit and its reference with maps in memory."""


@pytest.fixture(scope="module")
def unet():
    return load_model()


def clip_of(run):
    return torch.randn(run.shape, generator=torch.Generator().manual_seed(5))


def inverted(run, samples=None, sigmas=None, **options):
    """The noise and the trajectory of a clip, under the source's prompt."""
    samples = clip_of(run) if samples is None else samples
    sigmas = run.sigmas if sigmas is None else sigmas
    with torch.inference_mode():
        latent, _, kept = BilateralDDIMInvert.execute(
            run.model, run.source, 1.0, {"samples": samples}, sigmas, **FILTER | options
        ).args
    return latent["samples"], kept


@pytest.fixture(scope="module")
def run(unet):
    return demo_run(unet, steps=3)


@pytest.fixture(scope="module")
def kept(run):
    return inverted(run)[1]


@pytest.mark.parametrize(
    ("name", "source_cfg"), [("eps", 4.0), ("eps", 1.0), ("wan21", 1.0), ("flux", 4.0), ("flux, longer", 1.0)]
)
def test_the_source_is_the_clip_bitwise_and_the_target_attends_to_it(unet, tiny_models, name, source_cfg):
    run = demo_run(unet) if name == "eps" else tiny_run(tiny_models, name.split(",")[0])
    if "longer" in name:
        run = replace(run, target=longer(run.target, 3))
    _, kept = inverted(run)
    target, source = run.edit(trajectory=kept, source_cfg=source_cfg)
    expected, _ = stepwise(run, StoredMaps(), "*", 4.0, source_cfg, kept.latents)
    assert torch.equal(source, clip_of(run))
    assert difference(target, expected) < EXACT
    assert difference(target, run.edit(source_cfg=source_cfg)[0]) > 100 * EXACT


def test_it_takes_no_further_model_call(unet):
    model, watch = watched(unet, layers="middle", kinds=["spatial"])
    run = demo_run(model)
    _, kept = inverted(run)
    watch.calls.clear()
    run.edit(trajectory=kept, source_cfg=1.0)
    assert [len(call.branches) for call in watch.calls] == [3] * 2


@pytest.mark.parametrize("sampler", ["dpm_2", "euler_cfg_pp", "lcm"])
def test_other_samplers_pin_it_too(run, kept, sampler):
    target, source = replace(run, sampler=sampler).edit(trajectory=kept)
    assert torch.equal(source, clip_of(run))
    assert target.isfinite().all()


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_outside_the_mask_the_target_is_the_clip_bitwise(run, kept, sampler):
    mask = torch.linspace(-1, 1, 64).clamp(min=0).expand(64, 64)
    target, _ = replace(run, sampler=sampler).edit(trajectory=kept, mask=mask)
    assert torch.equal(target[..., :4], clip_of(run)[..., :4])
    assert difference(target[..., 5:], clip_of(run)[..., 5:]) > 0.05


@pytest.mark.parametrize("name", ["eps", "wan21"])
def test_stages_pin_their_part_of_it(unet, tiny_models, name):
    run = demo_run(unet, steps=4) if name == "eps" else tiny_run(tiny_models, name, steps=4)
    noise, kept = inverted(run)
    mask = torch.ones(64, 64)
    mask[:, :32] = 0
    whole = run.edit(trajectory=kept, mask=mask)
    target, source = run.stage(run.sigmas[:3], trajectory=kept, mask=mask)
    parts = run.stage(run.sigmas[2:], source=source, target=target, trajectory=kept, mask=mask)
    assert torch.equal(parts[1], clip_of(run))
    assert difference(parts[0], whole[0]) < 1e-5
    assert difference(source, run.stage(run.sigmas[:3])[1]) > 0.01
    # each expert inverts its part, from the clean end on
    low, of_low = inverted(run, sigmas=run.sigmas[2:])
    high, of_high = inverted(run, low, sigmas=run.sigmas[:3])
    assert difference(high, noise) < 1e-5
    for one, other in zip((*of_high.latents, *of_low.latents[1:]), kept.latents, strict=True):
        assert difference(one, other) < 1e-5


def test_between_two_levels_it_is_where_the_inversion_went(run, kept):
    pinned = Pinned(kept, run.model, run.sigmas, run.shape)
    (high, low, *_), (start, end, *_) = kept.latents, kept.sigmas
    middle = (start + end) / 2
    assert torch.equal(pinned.at(start, high), high)
    assert difference(pinned.at(middle, high), (high + low) / 2) < 1e-6
    x, clean = pinned.at(middle, high), pinned.denoised(middle, high)
    assert difference(x + (x - clean) / middle * (end - middle), low) < 1e-5


def test_half_precision_takes_half_the_memory_and_keeps_the_clip(run, kept, caplog):
    with caplog.at_level(logging.INFO):
        _, half = inverted(run, keep_trajectory="fp16")
    size = clip_of(run).nbytes
    assert {latent.dtype for latent in half.latents} == {torch.float16}
    assert f"keeps a trajectory: {size * 3 / 2**20:.1f} MiB of RAM" in caplog.text  # four levels of half, and the clip
    target, source = run.edit(trajectory=half)
    assert torch.equal(source, clip_of(run))
    assert difference(target, run.edit(trajectory=kept)[0]) < 0.02
    with pytest.raises(TrajectoryError, match=r"noise level 14.* goes beyond it\. Choose fp32"):
        Trajectory.of(
            run.model, run.sigmas, [clip_of(run).half()] * 3 + [torch.full(run.shape, torch.inf)], clip_of(run)
        )


def test_a_trajectory_of_another_run_is_refused_by_name(tiny_models, run, kept):
    with pytest.raises(
        TrajectoryError, match=r"kept along 3 steps \(14.*but sigmas are 4 steps \(14.*Connect the same"
    ):
        replace(run, steps=4).edit(trajectory=kept)
    with pytest.raises(TrajectoryError, match=r"kept of a latent of 3×4×8×8, but latent_image has 2×4×8×8"):
        replace(run, shape=(2, *run.shape[1:])).edit(trajectory=kept)
    with pytest.raises(
        TrajectoryError, match=r"kept with another model: .*weights.*each needs an inversion of its own"
    ):
        tiny_run(tiny_models, "sd15", steps=3).edit(trajectory=kept)
    with pytest.raises(TrajectoryError, match="keep_trajectory of BilateralDDIMInvert is off"):
        run.edit(trajectory=inverted(run, keep_trajectory="off")[1])
    masked = replace(run, latent={"samples": clip_of(run), "noise_mask": torch.ones(1, 8, 8)})
    with pytest.raises(ValueError, match=r"latent_image has a noise mask.*cannot be used with trajectory"):
        masked.edit(trajectory=kept)
    assert NOTHING.latents == ()
