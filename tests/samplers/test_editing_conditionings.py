"""What ComfyUI hands from one conditioning to others, in an edit: of one clip, not of the other."""

from dataclasses import replace

import pytest
import torch
from coherence.demo.model import load_model
from editing_runs import demo_run, halves
from gligen import gligen_for, with_boxes
from random_controlnet import controlnet
from watching import difference

from nodes import ControlNetApply, ControlNetApplyAdvanced

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run():
    return demo_run(load_model())


def test_gligen_boxes_are_those_of_their_clip(run):
    """ComfyUI makes a patch of its own for each conditioning with boxes, even where the boxes are the same."""
    gligen = gligen_for(run.model)
    boxed = replace(run, **{name: with_boxes(getattr(run, name), gligen) for name in ("source", "target")})
    assert difference(boxed.edit()[1], boxed.plain(boxed.source)) < 1e-3
    assert difference(boxed.edit()[0], run.edit()[0]) > 0.01


@pytest.mark.parametrize("in_areas", [False, True])
@pytest.mark.parametrize("clip", ["source", "target"])
@pytest.mark.parametrize("what", ["boxes", "ControlNet"])
def test_what_comfyui_hands_to_the_negative_is_of_one_clip(run, what, clip, in_areas):
    """GLIGEN's boxes, and a ControlNet of Apply ControlNet (OLD): the other clip is as without them."""
    if in_areas:
        run = replace(run, source=halves(run.source), target=halves(run.target))
    if what == "boxes":
        told = with_boxes(getattr(run, clip), gligen_for(run.model))
    else:
        hint = torch.rand(len(run.latents["samples"]), 64, 64, 3, generator=torch.Generator().manual_seed(3))
        told = ControlNetApply().apply_controlnet(getattr(run, clip), controlnet(), hint, 1.0)[0]
    changed = replace(run, **{clip: told})
    target, source = changed.edit(layers="")
    assert difference(source, changed.plain(changed.source)) < 1e-3
    assert difference(target, changed.plain(changed.target)) < 1e-3
    assert difference(changed.plain(told), run.plain(getattr(run, clip))) > 1e-2


@pytest.mark.parametrize("clip", ["source", "target"])
def test_a_clip_keeps_its_controlnet_where_only_the_other_has_an_area(run, clip):
    """The area is added to it, and is drawn with its own ControlNet."""
    hint = torch.rand(len(run.latents["samples"]), 64, 64, 3, generator=torch.Generator().manual_seed(3))
    net, apply = controlnet(), ControlNetApplyAdvanced().apply_controlnet
    source, target = (apply(prompt, run.negative, net, hint, 1.0, 0, 1)[0] for prompt in (run.source, run.target))
    negative = apply(run.source, run.negative, net, hint, 1.0, 0, 1)[1]
    both = replace(run, source=source, target=target, negative=negative)
    in_areas = {name: halves(getattr(both, name)) for name in ("source", "target") if name != clip}
    told = replace(both, **in_areas)
    expected = {name: getattr(told, name) for name in ("source", "target")}
    expected[clip] = expected[clip] + halves(expected[clip])
    for result, name in zip(told.edit(layers=""), ("target", "source"), strict=True):
        assert difference(result, told.plain(expected[name])) < 1e-3


def test_a_negative_for_areas_alone_takes_what_comfyui_hands_to_negatives(run):
    """ComfyUI itself divides by zero there."""
    boxed = with_boxes(run.target, gligen_for(run.model))
    target, source = replace(run, target=boxed, negative=halves(run.negative)).edit(layers="")
    assert target.isfinite().all()
    assert difference(source, replace(run, negative=halves(run.negative)).plain(run.source)) < 1e-3
