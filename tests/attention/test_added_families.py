"""Families beside those of FAMILIES.md: every layer is found, measured, guided, and where frames are rows, tied."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import get_args

import comfy.ldm.cosmos.predict2
import comfy.ldm.flux.layers
import comfy.ldm.genmo.joint_model.asymm_models_joint
import comfy.ldm.hidream.model
import comfy.ldm.hunyuan_video.model
import comfy.ldm.kandinsky5.model
import comfy.ldm.lightricks.model
import comfy.ldm.lumina.model
import comfy.ldm.minimax.model
import comfy.ldm.omnigen.omnigen2
import comfy.ldm.seedvr.model
import pytest
import torch
from coherence.attention.families import FAMILIES
from coherence.attention.registry import SELECTABLE, AttentionRegistry
from coherence.attention.sites import UnknownModelError, family_of, sites_of
from coherence.attention.tap import tap
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.nodes.editing import EntropyGuidedEdit
from coherence.nodes.entropy_register import EntropyRegister, SelectAttentionLayers
from coherence.nodes.guidance import IEGuidanceCFG
from coherence.nodes.map_preview import AttentionMapPreview
from coherence.nodes.momentum import TemporalMomentumAttention
from coherence.nodes.perturbation import PerturbAttention
from coherence.techniques.cross_frame import CrossFrame, Keys
from coherence.techniques.fine_coarse import FineCoarse
from coherence.techniques.momentum import TemporalMomentum
from comfy.ldm.cosmos.model import GeneralDIT
from comfy.ldm.wan.model import WanModel
from comfy.model_patcher import ModelPatcher
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from guidance_runs import ONE_STEP, Calls, agree, guided, one_by_one
from measured import figures_of
from picture_runs import SAME, WatchAfter, momentum, patched
from register_runs import start_of
from tiny_models import RELATIVES, sample
from watching import ALL_KINDS, Watch, difference

ATTENDS = (
    comfy.ldm.cosmos.predict2.Attention,
    comfy.ldm.flux.layers.DoubleStreamBlock,
    comfy.ldm.flux.layers.SingleStreamBlock,
    comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmetricAttention,
    comfy.ldm.hidream.model.HiDreamAttention,
    comfy.ldm.hunyuan_video.model.TokenRefinerBlock,
    comfy.ldm.kandinsky5.model.SelfAttention,
    comfy.ldm.lightricks.model.CrossAttention,
    comfy.ldm.lumina.model.JointAttention,
    comfy.ldm.minimax.model.DiTBlock,
    comfy.ldm.omnigen.omnigen2.Attention,
    comfy.ldm.wan.model.WanSelfAttention,
)
"""The module classes whose forward attends, or whose attention's does, and that take options."""
LAYERS = {
    "Wan 2.2 S2V": "blocks.1",
    "Wan 2.1 HuMo": "blocks.1",
    "Wan 2.1 SCAIL": "blocks.1",
    "Wan 2.2 Animate": "blocks.4",
    "LTX-2": "blocks.1",
    "HunyuanVideo 1.5": "single.0",
    "Chroma": "single_blocks.1",
    "OmniGen2": "layers.1",
    "Lumina 2": "layers.1",
    "Z-Image Omni": "layers.1",
    "Flux.2": "single_blocks.1",
    "Cosmos-Predict2": "blocks.1",
    "Cosmos-Predict2 Video": "blocks.1",
    "HiDream": "single_stream_blocks.1",
    "Kandinsky 5 Image": "blocks.1",
    "Kandinsky 5": "blocks.1",
    "Mochi": "blocks.1",
    "HunyuanImage": "single.0",
    "MiniMax H3": "blocks.1",
}
PICTURES = [name for name in LAYERS if RELATIVES[name].frames_axis == 0]


@pytest.fixture(scope="module", params=LAYERS)
def name(request):
    return request.param


@pytest.fixture(scope="module", params=PICTURES)
def picture(request, tiny_models):
    """A model of pictures, its family and noise of four frames."""
    family = RELATIVES[request.param]
    noise = torch.randn(family.latent_shape, generator=torch.Generator().manual_seed(3))
    return SimpleNamespace(model=tiny_models.load(request.param), family=family, noise=noise)


def test_sites_are_the_attention_layers_of_the_module_tree(name, tiny_models):
    model = tiny_models.load(name)
    tree, sites = model.get_model_object("diffusion_model"), sites_of(model)
    # LTX-2's connectors attend in text before sampling.
    holders = [m for place, m in tree.named_modules() if isinstance(m, ATTENDS) and "connector" not in place]
    owned = [[site.name for site in sites if site.module in set(holder.modules())] for holder in holders]
    assert all(owned)
    assert sorted(name for names in owned for name in names) == sorted(site.name for site in sites)
    assert family_of(tree).draws_pictures == (name in PICTURES)


def test_figures_are_those_of_the_maps_in_float64(name, tiny_models):
    model, family, watch = tiny_models.load(name), RELATIVES[name], Watch()
    watched = tap(model, watch, layers="*", kinds=ALL_KINDS, asked_by="test")[0]
    start = start_of(watched, family.conditioning()[0], (), steps=1, latent=family.zeros())
    figures = figures_of(watched, start)
    assert figures.keys() == {call.site.name for call in watch.calls} == {site.name for site in sites_of(model)}
    for call in watch.calls:
        q, k, v = (x.double() for x in call.per_head())
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        entropy = torch.special.entr(weights).sum(-1).mean().item() / math.log(k.shape[2])
        energy = (weights @ v).square().sum(-1).mean().item()
        assert figures[call.site.name].entropy == pytest.approx(entropy, abs=1e-5)
        assert figures[call.site.name].energy.attention == pytest.approx(energy, rel=1e-4)
    sharp = min(figures[call.site.name].entropy for call in watch.calls if call.site.kind in SELECTABLE)
    assert sharp < 0.9


def flat(latents):
    return torch.cat([part.flatten() for part in latents.unbind()])


@pytest.mark.slow
def test_guidance_is_its_formula_with_every_branch_in_a_call_of_its_own(name, tiny_models):
    model, family, layers = tiny_models.load(name), RELATIVES[name], LAYERS[name]
    calls = Calls(guided(model, "U-I", 2.0, layers))
    models = (calls.model, one_by_one(model, "U-I", 2.0, layers), model)
    ours, reference, plain = (flat(sample(each, family, **late(each))) for each in models)
    agree(ours, reference, plain)
    if name == "MiniMax H3":
        assert calls.rows == [1] * 4


def late(model):
    """One step, from where attention counts."""
    sampling = model.get_model_object("model_sampling")
    return {"sigmas": torch.tensor([float(sampling.percent_to_sigma(0.5)), 0.0])}


def draw(picture, noise, mu=None, frames_per_batch=0, model=None):
    model = model or picture.model
    if mu is not None:
        model = momentum(model, mu, frames_per_batch)
    return sample(model, picture.family, noise=noise, empty=torch.zeros_like(noise), cfg=3.0, **late(model))


def test_momentum_carries_a_frame_to_later_ones_alone_whole_or_in_chunks(picture):
    plain, tied = draw(picture, picture.noise), draw(picture, picture.noise, 0.8)
    assert difference(draw(picture, picture.noise, 0.0), plain) <= 1e-5
    assert difference(tied, plain) > 0.002
    assert difference(draw(picture, picture.noise, 0.8, frames_per_batch=3), tied) <= SAME
    assert difference(draw(picture, picture.noise[:2], 0.8), tied[:2]) <= SAME
    changed = picture.noise.clone()
    changed[2] = torch.randn(changed[2].shape, generator=torch.Generator().manual_seed(4))
    parted = [difference(a, b) > SAME for a, b in zip(draw(picture, changed, 0.8), tied, strict=True)]
    assert parted == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("technique", [*map(CrossFrame, get_args(Keys)), FineCoarse(2)])
def test_frames_that_attend_to_others_do_so_whole_or_in_chunks(picture, technique):
    """Fine and coarse patches are of all frames, which chunks do not have together."""
    model = patched(picture.model, technique)
    tied = draw(picture, picture.noise, model=model)
    assert difference(tied, draw(picture, picture.noise)) > 0.002
    if technique.supports_chunks:
        chunked = draw(picture, picture.noise, 0.0, frames_per_batch=3, model=model)
        assert difference(chunked, draw(picture, picture.noise, 0.0, model=model)) <= SAME


def test_momentum_leaves_the_keys_of_the_text_as_they_are(picture):
    site = next(site for site in sites_of(picture.model) if site.kind in ("joint", "spatial"))

    def keys(model):
        watch = WatchAfter()
        looked = tap(model, watch, layers=site.name, kinds=[site.kind], asked_by="test")[0]
        sample(looked, picture.family, noise=picture.noise, empty=torch.zeros_like(picture.noise), **late(model))
        call = watch.calls[0]
        return call, call.k[: call.frames].double()

    call, before = keys(picture.model)
    tied = tap(picture.model, TemporalMomentum(0.8, ""), layers=site.name, kinds=[site.kind], asked_by="test")[0]
    _, after = keys(tied)
    expected = call.of_frame(before).clone()
    for i in range(1, call.frames):
        expected[i] = 0.8 * expected[i - 1] + 0.2 * expected[i]
    assert difference(call.of_frame(after), expected) <= 1e-6
    end = before.shape[-2] - call.trailing_tokens
    for others in (slice(call.leading_tokens), slice(end, None)):
        assert torch.equal(after[..., others, :], before[..., others, :])
    beside = before.shape[-2] - call.of_frame(before).shape[-2]
    assert beside >= (7 if site.kind == "joint" else 0)


def test_frames_that_do_not_lie_together_are_refused(tiny_models):
    """HiDream E1 lays the picture to edit beside the frame."""
    model, family = tiny_models.load("HiDream"), RELATIVES["HiDream"]
    positive, negative = family.conditioning()
    picture = torch.zeros(1, *family.latent_shape[1:])
    given = [[text, {**extras, "concat_latent_image": picture}] for text, extras in positive]
    tied = tap(model, TemporalMomentum(0.8, ""), layers="*", kinds=["joint"], asked_by="Node")[0]
    with pytest.raises(UnknownModelError, match=r"Node cannot tell where the frames lie.*beside the frame"):
        sample(tied, family, steps=1, conditioning=(given, negative))


def test_an_edit_of_a_model_that_takes_one_row_a_call_says_why_it_cannot(tiny_models):
    model, family = tiny_models.load("MiniMax H3"), RELATIVES["MiniMax H3"]
    source, negative = family.conditioning()
    registry = SelectAttentionLayers.execute(model, "blocks.1")[0]
    how = (registry, Noise_RandomNoise(3), sampler_object("euler"), ONE_STEP["sigmas"], {"samples": family.zeros()})
    with pytest.raises(UnknownModelError, match="MiniMax H3 takes one clip with one conditioning in a model call"):
        EntropyGuidedEdit.execute(model, source, source, negative, *how, 1.0, 1.0, "map")


class WanAnimate2Model(WanModel):
    """Named as newer versions of ComfyUI name it."""


def refused_models():
    with torch.device("meta"):
        animate = WanAnimate2Model(dim=64, ffn_dim=64, num_heads=2, num_layers=1, operations=torch.nn)
        seedvr = comfy.ldm.seedvr.model.NaDiT(
            1e-5, 2, "normal", vid_dim=32, txt_in_dim=16, heads=2, head_dim=16, rope_dim=12, operations=torch.nn
        )
        size = {"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "patch_spatial": 2, "patch_temporal": 1}
        width = {"in_channels": 16, "out_channels": 16, "model_channels": 64, "num_blocks": 1, "num_heads": 2}
        cosmos = GeneralDIT(**size, **width, crossattn_emb_channels=48, pos_emb_cls="rope3d", operations=torch.nn)
    return {"Wan Animate 2": animate, "SeedVR2": seedvr, "Cosmos 1": cosmos}


@pytest.mark.parametrize(
    ("title", "reason"),
    [("Wan Animate 2", "own pose"), ("SeedVR2", "packed into one sequence"), ("Cosmos 1", "behind frames")],
)
def test_models_that_no_technique_can_act_on_are_refused_by_name_and_reason(title, reason):
    network = refused_models()[title]

    class Model(torch.nn.Module):
        diffusion_model = network
        model_config = None

    model = ModelPatcher(Model(), torch.device("cpu"), torch.device("cpu"))
    latent = {"samples": torch.zeros(1, 16, 1, 8, 8)}
    run = ([[torch.zeros(1, 7, 48), {}]], Noise_RandomNoise(0), torch.tensor([1.0, 0.0]), latent)
    levels = {"sigma_max": 1.0, "sigma_min": 0.0, "percent_to_sigma": lambda percent: 1 - percent}
    model.model.model_sampling = SimpleNamespace(**levels)
    registry = AttentionRegistry("", "", (), "blocks.0")
    nodes = (
        lambda: TemporalMomentumAttention.execute(model, 0.9),
        lambda: CrossFrameAttention.execute(model, "first"),
        lambda: PerturbAttention.execute(model, registry, "identity"),
        lambda: SelectAttentionLayers.execute(model, "*"),
        lambda: EntropyRegister.execute(model, *run, "all", "highest", 1, 50.0, "0", "exact"),
        lambda: AttentionMapPreview.execute(model, *run, "blocks.0", 0, 1.0),
        lambda: IEGuidanceCFG.execute(model, registry, "U-I", 2.0),
    )
    for node in nodes:
        with pytest.raises(UnknownModelError, match=f"{title} .*does not work with this node: .*{reason}"):
            node()
    assert title not in {family.name for family in FAMILIES}
