"""RAVE's grids against the authors' loop: each step of each shuffled grid as a run of its own, with core's nodes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from adapter_runs import QUICK, clips
from coherence.demo.model import load_model
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.nodes.rave import RAVEGrid
from coherence.nodes.vidtome import VidToMe
from coherence.samplers.inversion import Inversion, invert_latent
from coherence.samplers.rave import GridError, cut, order_of, tiled
from coherence.training.ge_adapter_training import train_adapter
from comfy.samplers import calculate_sigmas
from guided_runs import guided_run
from random_controlnet import controlnet
from tiny_models import FAMILIES
from watching import DEMO, difference

from nodes import ConditioningSetArea, ConditioningSetMask, ControlNetApplyAdvanced

SIDE, SEED, FRAMES = 2, 7, 8


def noise_of(family, frames=FRAMES):
    return torch.randn(frames, *family.latent_shape[1:], generator=torch.Generator().manual_seed(0))


def sigmas_of(model, steps=3):
    return calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def run(model, conds, noise, sigmas, start=None, sampler="euler"):
    return guided_run(model, conds, 3.0, noise, sigmas, sampler, start)


def controlled(conds, pictures):
    return ControlNetApplyAdvanced().apply_controlnet(*conds, controlnet(), pictures, 1.0, 0.0, 1.0)[:2]


def masked(conds, mask, area="default"):
    positive = ConditioningSetMask().append(conds[0], mask, area, 1.0)[0]
    return [*positive, *ConditioningSetMask().append(conds[1], 1 - mask, area, 1.0)[0]], conds[1]


def rows_first(pictures):
    return pictures.movedim(-1, 1)


def authors_loop(model, conds_of, noise, sigmas):
    """For eps models, whose noisy latents pass from run to run as latents without noise."""
    x, quiet = noise, torch.zeros_like(noise)
    for step, span in enumerate(pairwise(sigmas)):
        order = order_of(len(noise), SEED, float(span[0]), sigmas)
        grids, still = (tiled(each, order, SIDE) for each in (x, quiet))
        conds, span = conds_of(order), torch.stack(span)
        out = run(model, conds, grids, span) if step == 0 else run(model, conds, still, span, grids)
        x = cut(out, order, SIDE)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("along", ["alone", "control images", "masks"])
def test_euler_in_grids_is_the_authors_loop(along):
    model, conds, noise = load_model(), DEMO.conditioning(), noise_of(DEMO)
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(FRAMES, 64, 64, 3, generator=generator)
    mask = (torch.rand(FRAMES, 8, 8, generator=generator) > 0.5).float()
    by_frame = {"alone": conds, "control images": controlled(conds, pictures), "masks": masked(conds, mask)}[along]

    def in_grids(order):
        if along == "control images":
            return controlled(conds, tiled(rows_first(pictures), order, SIDE).movedim(1, -1))
        return masked(conds, tiled(mask, order, SIDE)) if along == "masks" else conds

    ours = run(RAVEGrid.execute(model, SIDE, SEED)[0], by_frame, noise, sigmas_of(model))
    theirs = authors_loop(model, in_grids, noise, sigmas_of(model))
    plain = run(model, by_frame, noise, sigmas_of(model))
    assert difference(ours, theirs) <= 1e-4
    assert difference(ours, plain) > 0.02
    if along != "alone":
        assert difference(ours, run(RAVEGrid.execute(model, SIDE, SEED)[0], conds, noise, sigmas_of(model))) > 0.01


def test_a_prompt_for_the_bounds_of_a_mask_reaches_every_cell():
    model, noise = load_model(), noise_of(DEMO, 4)
    grids, mask = RAVEGrid.execute(model, SIDE, SEED)[0], torch.zeros(1, 8, 8)
    mask[:, :4, :4] = 1
    default, bounds = (
        run(grids, masked(DEMO.conditioning(), mask, area), noise, sigmas_of(model))
        for area in ("default", "mask bounds")
    )
    assert difference(bounds, default) <= 1e-5
    assert difference(default, run(grids, DEMO.conditioning(), noise, sigmas_of(model))) > 0.01


@pytest.mark.parametrize("name", ["flux", "qwen_image"])
def test_picture_transformers_draw_grids_too(name, tiny_models):
    model, family = tiny_models.load(name), FAMILIES[name]
    noise, conds = noise_of(family, 4), family.conditioning()
    level = sigmas_of(model, 1)
    order = order_of(4, SEED, float(level[0]), level)
    ours = run(RAVEGrid.execute(model, SIDE, SEED)[0], conds, noise, level)
    assert difference(ours, cut(run(model, conds, tiled(noise, order, SIDE), level), order, SIDE)) <= 1e-4
    assert difference(ours, run(model, conds, noise, level)) > 0.001


def test_a_grid_of_1_is_the_plain_model_and_the_users_model_stays_so_to_the_bit():
    model, conds, noise = load_model(), DEMO.conditioning(), noise_of(DEMO, 4)
    plain = run(model, conds, noise, sigmas_of(model, 2))
    assert torch.equal(run(RAVEGrid.execute(model, 1, SEED)[0], conds, noise, sigmas_of(model, 2)), plain)
    assert not torch.equal(run(RAVEGrid.execute(model, 2, SEED)[0], conds, noise, sigmas_of(model, 2)), plain)
    assert torch.equal(run(model, conds, noise, sigmas_of(model, 2)), plain)


def test_control_images_are_as_they_were_after_a_run_and_after_an_error(monkeypatch):
    model, noise = load_model(), noise_of(DEMO)
    conds = controlled(DEMO.conditioning(), torch.rand(FRAMES, 64, 64, 3, generator=torch.Generator().manual_seed(1)))
    before = run(model, conds, noise, sigmas_of(model, 1))
    grids = RAVEGrid.execute(model, SIDE, SEED)[0]
    run(grids, conds, noise, sigmas_of(model, 1))
    control = conds[0][0][1]["control"]
    assert control.cond_hint_original.shape == (FRAMES, 3, 64, 64)
    monkeypatch.setattr(control, "control_merge", lambda *_args, **_options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(grids, conds, noise, sigmas_of(model, 1))
    monkeypatch.undo()
    assert torch.equal(run(model, conds, noise, sigmas_of(model, 1)), before)


def test_the_same_seed_gives_the_same_bits_however_memory_or_the_user_splits_it(monkeypatch):
    model, conds, noise = load_model(), DEMO.conditioning(), noise_of(DEMO, 4)
    grids, sigmas = RAVEGrid.execute(model, SIDE, SEED)[0], sigmas_of(model, 4)
    whole = run(grids, conds, noise, sigmas)
    half = run(grids, conds, noise, sigmas[:3])
    assert difference(run(grids, conds, torch.zeros_like(noise), sigmas[2:], half), whole) <= 1e-5
    assert not torch.equal(run(RAVEGrid.execute(model, SIDE, SEED + 1)[0], conds, noise, sigmas), whole)
    monkeypatch.setattr(model.model, "memory_required", lambda *_args, **_options: 1e30)
    assert difference(run(grids, conds, noise, sigmas), whole) <= 1e-5


def test_every_step_has_another_order_and_every_frame_its_place():
    sigmas = torch.linspace(14, 0, 21)
    orders = [order_of(9, 0, float(sigma), sigmas) for sigma in sigmas[:-1]]
    assert all(order.sort().values.tolist() == list(range(9)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    x = torch.arange(18 * 2 * 3 * 5).reshape(18, 2, 3, 5)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    grids = tiled(x, order, 3)
    assert torch.equal(grids[1, :, 3:6, 10:15], x[order[9 + 3 + 2]])
    assert torch.equal(cut(grids, order, 3), x)
    five = x.unsqueeze(2)
    assert torch.equal(tiled(five, order, 3), grids.unsqueeze(2))


def refused(match, model=None, conds=None, noise=None):
    model = RAVEGrid.execute(load_model(), SIDE, SEED)[0] if model is None else model
    with pytest.raises(GridError, match=match):
        run(model, conds or DEMO.conditioning(), noise_of(DEMO) if noise is None else noise, sigmas_of(model, 1))


def test_what_cannot_be_drawn_in_grids_is_refused_with_the_reason(tiny_models):
    refused("6 frames do not fill grids of 2 × 2.*Use 4 or 8 frames", noise=noise_of(DEMO, 6))
    refused("3 frames do not fill.*Use 4 frames", noise=noise_of(DEMO, 3))
    conds = DEMO.conditioning()
    refused("an area of the frame", conds=(ConditioningSetArea().append(conds[0], 32, 32, 0, 0, 1.0)[0], conds[1]))
    frames = torch.randn(FRAMES, 32, 128, generator=torch.Generator().manual_seed(2))
    refused("8 different rows of c_crossattn", conds=([[frames, {}]], conds[1]))
    grids = RAVEGrid.execute(load_model(), SIDE)[0]
    with pytest.raises(GridError, match=r"got 3 of its frames, .* Train the model from before this node"):
        train_adapter(grids, clips(1, frames=4, vision=False), QUICK)
    refused("CrossFrameAttention lets frames act", CrossFrameAttention.execute(grids, "first")[0])
    refused("VidToMe lets frames act", VidToMe.execute(grids)[0])
    latent = {"samples": torch.randn(FRAMES, *DEMO.latent_shape[1:], generator=torch.Generator().manual_seed(3))}
    with pytest.raises(GridError, match="lets frames act"):
        invert_latent(grids, conds[0], None, 1.0, latent, sigmas_of(grids, 1), Inversion("feature_temporal"), 0, "test")
    with pytest.raises(GridError, match="draws grids of frames already"):
        RAVEGrid.execute(RAVEGrid.execute(load_model(), 2)[0], 3)
    wan = FAMILIES["wan21"]
    video = RAVEGrid.execute(tiny_models.load("wan21"), SIDE)[0]
    refused("video models join their frames", video, wan.conditioning(), torch.zeros(wan.latent_shape))
