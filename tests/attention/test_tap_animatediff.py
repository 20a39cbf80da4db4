"""The tap on AnimateDiff-Evolved: a stand-in of its layout, and the pack itself where the host has it."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from animatediff_layout import AnimateDiffModel, find_packs
from coherence.attention.sites import NoSuchSiteError, list_sites, sites_of
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.techniques.technique import Technique
from tiny_models import sample
from watching import DEMO, Watch, demo_of, difference, watched

PACKS = find_packs(Path(os.environ["COMFYUI_PATH"]))
FRAMES = DEMO.latent_shape[0]


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module", params=PACKS)
def animate(request):
    return PACKS[request.param]


@pytest.fixture(scope="module")
def animated(animate, unet):
    return animate(unet)


@pytest.fixture(scope="module")
def plain(animated):
    return sample(animated, DEMO)


def temporal_modules(model):
    (motion,) = model.get_additional_models()
    return [module for module in motion.model.modules() if hasattr(module, "actual_attention")]


def test_sites_are_the_unets_and_the_motion_models(unet, animated):
    sites, spatial = sites_of(animated), sites_of(unet)
    motion = [site for site in sites if ".motion." in site.name]
    assert [site.name for site in sites if site not in motion] == [site.name for site in spatial]
    assert {site.module for site in motion} == set(temporal_modules(animated))
    assert Counter(site.kind for site in motion) == {"temporal": 14}
    assert [site.order for site in sites] == list(range(len(sites)))
    places = ["input.1", "input.3", "middle.0", "output.0", "output.1", "output.2", "output.3"]
    assert [site.name for site in motion] == [f"{place}.motion.{n}" for place in places for n in range(2)]


def test_of_several_motion_models_the_sites_are_foretold_as_they_run(unet):
    first, second = AnimateDiffModel(), AnimateDiffModel()
    tree = unet.get_model_object("diffusion_model")
    foretold = list_sites(tree, [first, second])
    for motion in (first, second):
        motion.inject(unet)
    there = list_sites(tree)
    first.eject(unet)
    assert [(site, site.module) for site in foretold] == [(site, site.module) for site in there]
    assert sum(".motion." in site.name for site in there) == 28


def test_an_observer_leaves_the_output_bit_identical_and_sees_every_site_in_order(animated, plain):
    model, watch = watched(animated)
    assert torch.equal(sample(model, DEMO), plain)
    assert plain.isfinite().all()
    names = [site.name for site in sites_of(animated)]
    assert [call.site.name for call in watch.calls] == names * (len(watch.calls) // len(names))


def test_rows_are_branches_and_places_and_tokens_are_frames(animated):
    model, watch = watched(animated, layers="input.1", kinds=["temporal"])
    sample(model, DEMO, steps=1)
    height, width = DEMO.latent_shape[2:]
    for call in watch.calls:
        assert call.rows_per_branch == height * width
        assert call.q.shape[1] == call.frames == FRAMES
        assert (call.leading_tokens, call.tokens_per_frame) == (0, 1)
        assert call.frame_indices == tuple(range(FRAMES))
        assert call.heads == 8


def test_a_technique_acts_on_the_temporal_layers(animated, plain):
    class OwnFrameOnly(Technique):
        def attend(self, call, proceed):
            return call.v

    model, _ = tap(animated, OwnFrameOnly(), layers="temporal", kinds=["temporal"], asked_by="test")
    assert difference(sample(model, DEMO), plain) > 1e-2


def test_a_context_window_holds_its_own_frames(animate, unet):
    model, watch = watched(animate(unet, window=2), kinds=["spatial", "temporal"])
    longer = demo_of(4)
    sample(model, longer, steps=1)
    assert {call.frame_indices for call in watch.calls} == {(0, 1), (2, 3)}
    assert {call.site.kind for call in watch.calls} == {"spatial", "temporal"}
    assert {call.tokens_per_frame for call in watch.calls if call.site.kind == "temporal"} == {1}


def test_a_plain_clone_has_no_temporal_layers_even_while_they_are_inserted(unet, animated, plain):
    with pytest.raises(NoSuchSiteError, match="only cross and spatial"):
        watched(unet, kinds=["temporal"])
    assert {site.kind for site in sites_of(unet)} == {"spatial", "cross"}


def test_motion_models_that_come_after_the_node_change_nothing_for_it(animate, unet):
    watched_first, watch = watched(unet, kinds=["spatial"])
    sample(animate(watched_first), DEMO, steps=1)
    assert {call.site.name for call in watch.calls} == {site.name for site in sites_of(unet) if site.kind == "spatial"}


def test_after_an_error_the_motion_models_attention_is_its_own(animated):
    class Fail(Watch):
        def attend(self, call, proceed):
            raise RuntimeError("boom")

    before = [module.actual_attention for module in temporal_modules(animated)]
    model, _ = tap(animated, Fail(), layers="temporal", kinds=["temporal"], asked_by="test")
    with pytest.raises(RuntimeError, match="boom"):
        sample(model, DEMO)
    assert [module.actual_attention for module in temporal_modules(animated)] == before


def test_a_run_leaves_the_plain_model_as_it_was(unet, animated, plain):
    sample(unet, DEMO, steps=1)
    assert {site.kind for site in list_sites(unet.get_model_object("diffusion_model"))} == {"spatial", "cross"}
