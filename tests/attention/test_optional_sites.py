"""Layers that run only where a run has sound or references: their absence is no error, unless they were asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from coherence.attention.registry import Ranking, ranked_registry, require_model
from coherence.attention.sites import NoSuchSiteError, Site, optional_sites, sites_of
from coherence.files import registry_file
from coherence.samplers.measure import measure_layers
from guidance_runs import agree, guided, one_by_one
from register_runs import MEASUREMENT, start_of
from tiny_models import RELATIVES, Family, sample
from watching import difference, watched

SOUNDLESS = replace(RELATIVES["LTX-2"], sound_shape=())


def without(name: str, *inputs: str) -> Family:
    family = RELATIVES[name]
    settings = {key: value for key, value in family.settings.items() if key not in inputs}
    return replace(family, settings=settings, extras={key: x for key, x in family.extras.items() if key not in inputs})


CASES = {
    "LTX-2": (SOUNDLESS, "sound", "blocks.0.audio_attn1"),
    "Wan 2.1 HuMo": (without("Wan 2.1 HuMo", "audio_embed"), "sound", "blocks.1.audio_cross_attn"),
    "OmniGen2": (without("OmniGen2", "reference_latents"), "reference images", "ref_image_refiner.0"),
    "Z-Image Omni": (without("Z-Image Omni", "reference_latents"), "reference images", "siglip_refiner"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tiny_models):
    """A model, a run that lacks an input, what that is, and a layer that needs it."""
    return tiny_models.load(request.param), *CASES[request.param]


def test_a_run_without_the_input_looks_at_all_other_layers(case):
    model, family, needs, _ = case
    clone, watch = watched(model)
    assert torch.equal(sample(clone, family, steps=1), sample(model, family, steps=1))
    expected = [site.name for site in sites_of(model) if not site.needs]
    assert [call.site.name for call in watch.calls] == expected * (len(watch.calls) // len(expected))
    assert {site.needs for site in sites_of(model)} == {"", needs}


def test_a_layer_that_was_asked_for_by_name_and_lacks_its_input_says_which(case):
    model, family, needs, layer = case
    named, _ = watched(model, layers=layer)
    with pytest.raises(NoSuchSiteError, match=f"run only with {needs}, and this run had none: {layer}"):
        sample(named, family, steps=1)


def test_a_register_holds_the_layers_that_ran_and_is_for_runs_with_the_input_too(case, caplog):
    model, family, _, _ = case
    start = start_of(model, family.conditioning()[0], family.latent_shape, steps=1)
    with torch.inference_mode():
        sites, figures = measure_layers(model, start, [0], "exact", "test")
    ran = [site.name for site in sites if not site.needs]
    assert list(figures) == ran
    names = type(model.model).__name__, type(model.model.diffusion_model).__name__
    registry = ranked_registry(*names, sites, figures, Ranking(), MEASUREMENT)
    assert [layer.name for layer in registry.layers] == ran
    assert registry_file.from_json(registry_file.to_json(registry)) == registry
    require_model(registry, model, "test")
    assert not caplog.text


@pytest.mark.parametrize("sound_shape", [(), (1, 8, 5, 16)])
def test_guidance_is_its_formula_with_sound_and_without(tiny_models, sound_shape):
    model, layers, family = tiny_models.load_ltxav(), "blocks.1", replace(SOUNDLESS, sound_shape=sound_shape)
    models = (guided(model, "U-I", 2.0, layers), one_by_one(model, "U-I", 2.0, layers), model)
    agree(*(sample(each, family, steps=1).unbind()[0] for each in models))


def test_a_piece_names_such_layers_where_it_names_nothing_else():
    sites = [
        Site("blocks.0.attn1", 0, "joint", 8, None),
        Site("blocks.0.audio_attn1", 1, "sound", 8, None, needs="sound"),
        Site("blocks.1.audio_attn1", 2, "sound", 8, None, needs="sound"),
    ]
    both = {"blocks.0.audio_attn1", "blocks.1.audio_attn1"}
    assert optional_sites(sites, "*") == both
    assert optional_sites(sites, "blocks.0, blocks.0-1") == both
    assert optional_sites(sites, "blocks, blocks.1") == both - {"blocks.1.audio_attn1"}
    assert optional_sites(sites, "joint, sound") == set()
    assert optional_sites(sites, "blocks.*.audio_attn1, *") == set()
    assert optional_sites(sites[1:], "*") == set()


def test_sound_that_is_there_is_looked_at_and_changes_with_the_layer(tiny_models):
    """Wan S2V passes its sound's attention no options; the tap sees it all the same."""
    family, model = RELATIVES["Wan 2.2 S2V"], tiny_models.load("Wan 2.2 S2V")
    clone, watch = watched(model, layers="audio_injector.0")
    assert difference(sample(clone, family, steps=1), sample(model, family, steps=1)) == 0
    assert {call.site.name for call in watch.calls} == {"audio_injector.0"}
    assert {call.site.kind for call in watch.calls} == {"cross"}
