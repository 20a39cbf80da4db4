"""Every family's attention sites are the attention layers of its module tree, and selectors match whole components."""

from collections import Counter

import comfy.ldm.cogvideo.model
import comfy.ldm.cosmos.predict2
import comfy.ldm.flux.layers
import comfy.ldm.hunyuan_video.model
import comfy.ldm.krea2.model
import comfy.ldm.lightricks.model
import comfy.ldm.lumina.model
import comfy.ldm.modules.attention
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.qwen_image.model
import comfy.ldm.wan.model
import pytest
import torch
from coherence.attention.sites import NoSuchSiteError, Site, UnknownModelError, list_sites, select_sites, sites_of
from coherence.demo.model import load_model
from tiny_models import FAMILIES

ATTENDS = (
    comfy.ldm.modules.attention.CrossAttention,
    comfy.ldm.wan.model.WanSelfAttention,
    comfy.ldm.cogvideo.model.CogVideoXBlock,
    comfy.ldm.lightricks.model.CrossAttention,
    comfy.ldm.hunyuan_video.model.TokenRefinerBlock,
    comfy.ldm.flux.layers.DoubleStreamBlock,
    comfy.ldm.flux.layers.SingleStreamBlock,
    comfy.ldm.modules.diffusionmodules.mmdit.JointBlock,
    comfy.ldm.qwen_image.model.Attention,
    comfy.ldm.lumina.model.JointAttention,
    comfy.ldm.krea2.model.Attention,
    comfy.ldm.cosmos.predict2.Attention,
)
"""The module classes whose forward attends."""

UNET_LAYERS = {"sd15": 7, "sd20": 7, "sdxl": 11}
EXPECTED = {
    **{family: {"spatial": n, "cross": n} for family, n in UNET_LAYERS.items()},
    "svd": {"spatial": 7, "temporal": 7, "cross": 14},
    "wan21": {"joint": 4, "cross": 4},
    "wan21_i2v": {"joint": 4, "cross": 8},
    "wan22": {"joint": 4, "cross": 4},
    "cogvideox": {"joint": 2},
    "ltxv": {"joint": 2, "cross": 2},
    "hunyuan_video": {"joint": 4, "text": 2},
    "flux": {"joint": 4},
    "sd3": {"joint": 2, "spatial": 1},
    "qwen_image": {"joint": 2},
    "z_image": {"text": 2, "spatial": 2, "joint": 2},
    "anima": {"spatial": 2, "cross": 2},
    "krea2": {"text": 4, "joint": 2},
}


def test_every_tiny_family_is_listed():
    assert EXPECTED.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_the_attention_layers_the_module_tree_has(tiny_models, family):
    model = tiny_models.load(family)
    tree, sites = model.get_model_object("diffusion_model"), sites_of(model)
    assert {site.module for site in sites} == {module for module in tree.modules() if isinstance(module, ATTENDS)}
    assert Counter(site.kind for site in sites) == EXPECTED[family]
    assert len({site.name for site in sites}) == len(sites)
    assert [site.order for site in sites] == list(range(len(sites)))


def test_svd_tells_spatial_from_temporal_by_the_module(tiny_models):
    tree = tiny_models.load("svd").get_model_object("diffusion_model")
    time_stacks = [module for name, module in tree.named_modules() if ".time_stack." in name]
    for site in list_sites(tree):
        in_time = site.module in time_stacks
        assert site.frames_in == ("tokens" if in_time else "rows")
        assert (".time." in site.name) == in_time
        assert site.kind == ("cross" if site.name.endswith("attn2") else "temporal" if in_time else "spatial")


def test_vace_blocks_come_where_they_run():
    with torch.device("meta"):
        vace = comfy.ldm.wan.model.VaceWanModel(
            dim=64, ffn_dim=64, num_heads=2, num_layers=4, vace_layers=2, vace_in_dim=16, operations=torch.nn
        )
    names = [site.name for site in list_sites(vace) if site.kind == "joint"]
    order = ["blocks.0", "vace_blocks.0", "blocks.1", "blocks.2", "vace_blocks.1", "blocks.3"]
    assert names == [f"{place}.self_attn" for place in order]


def test_models_that_also_attend_elsewhere_are_refused_by_name():
    class Sound(comfy.ldm.wan.model.WanModel):
        pass

    with torch.device("meta"):
        model = Sound(dim=64, ffn_dim=64, num_heads=2, num_layers=1, operations=torch.nn)
    with pytest.raises(UnknownModelError, match=r"Sound.*SD1\.5.*SVD.*Wan.*CogVideoX.*LTXV.*HunyuanVideo"):
        list_sites(model)


def named(*names):
    return [Site(name, order, "spatial", 8, None) for order, name in enumerate(names)]


def test_selectors_match_whole_components():
    sites = named(*(f"input.{n}.attn1" for n in (1, 2, 10, 11)))

    def names(selector):
        return [site.name for site in select_sites(sites, selector, ["spatial"])]

    assert names("input.1") == ["input.1.attn1"]
    assert names("input.2-10") == ["input.2.attn1", "input.10.attn1"]
    assert names(" input.11 , input.1") == ["input.1.attn1", "input.11.attn1"]
    assert names("*") == names("spatial") == names("input.*") == [site.name for site in sites]


@pytest.mark.parametrize("selector", ["middle", "input.99", "middle, input.3", "input.1.attn", "nput.1", "1-2"])
def test_a_piece_that_matches_nothing_says_what_exists(selector):
    with pytest.raises(NoSuchSiteError, match=r"matches no spatial.*input\.1\.attn1, input\.12\.attn1"):
        select_sites(named("input.1.attn1", "input.12.attn1"), selector, ["spatial"])


@pytest.mark.parametrize("selector", ["input.1.attn1, input.4.motion.0", "middle.*.motion", "motion"])
def test_a_motion_layer_on_a_model_without_motion_says_to_connect_animatediff_before(selector):
    sites = named("input.1.attn1", "input.4.attn1")
    with pytest.raises(NoSuchSiteError, match=r"motion.*has none here\. Connect AnimateDiff before this node"):
        select_sites(sites, selector, ["spatial", "temporal"])
    with pytest.raises(NoSuchSiteError, match=r"matches no spatial.*input\.4\.motion\.0"):
        select_sites([*sites, *named("input.4.motion.0")], "input.9.motion.0", ["spatial"])


def test_an_empty_selector_is_refused():
    with pytest.raises(NoSuchSiteError, match=r"empty.*'\*'"):
        select_sites(named("input.1.attn1"), " , ", ["spatial"])


def test_kinds_that_the_model_lacks_are_refused_by_name(tiny_models):
    sites = sites_of(tiny_models.load("wan21"))
    with pytest.raises(NoSuchSiteError, match="with spatial attention, this one has only cross and joint attention"):
        select_sites(sites, "*", ["spatial"])


def test_the_demo_model_is_known():
    assert {site.kind for site in sites_of(load_model())} == {"spatial", "cross"}
