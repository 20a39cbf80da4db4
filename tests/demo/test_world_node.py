"""Coherence Demo Model: its kinds load, each with a VAE and words of its own, and their weights are small."""

import random

import pytest
import torch
from coherence.attention.forms import InflationError, inflated
from coherence.attention.sites import sites_of
from coherence.demo.world import model
from coherence.demo.world.motion import paint_clips, random_moving_scene
from coherence.nodes.demo import CoherenceDemoModel
from coherence.nodes.ge_adapter import GEAdapterApply, LoadGEAdapter
from coherence.nodes.one_shot import LoadSTAM
from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo
from safetensors import safe_open

from nodes import VAEDecode, VAEDecodeTiled

MEGABYTES = 40


@pytest.fixture(scope="module", params=["image", "video", "wan", "flux", "shapes", "shapes_video"])
def loaded(request):
    return request.param, CoherenceDemoModel.execute(request.param).result


def test_the_video_kinds_attend_over_time_and_the_transformers_to_all_tokens(loaded):
    kind, (loaded_model, _, _) = loaded
    over_time = {site.kind for site in sites_of(loaded_model)} & {"temporal", "joint"}
    assert over_time == ({"temporal"} if kind.endswith("video") else {"joint"} if kind in ("wan", "flux") else set())


@torch.inference_mode()
def test_a_picture_survives_the_vae_of_its_kind(loaded):
    _, (_, _, vae) = loaded
    picture = torch.full((1, 128, 128, 3), 0.97)
    picture[:, 40:88, 40:88] = torch.tensor((0.88, 0.13, 0.15))
    psnr = -10 * (vae.decode(vae.encode(picture)).cpu() - picture).square().mean().log10()
    assert psnr > 30


@torch.inference_mode()
@pytest.mark.parametrize(("given", "left"), [(1, 1), (9, 9), (12, 9), (13, 13)])
def test_a_clip_survives_the_transformers_vae_up_to_a_whole_latent(given, left):
    vae = CoherenceDemoModel.execute("wan").result[2]
    clip = paint_clips([random_moving_scene(random.Random(2))], given)[0]
    latents = vae.encode(clip)
    assert latents.shape == EmptyHunyuanLatentVideo.execute(128, 128, left)[0]["samples"].shape
    (frames,) = VAEDecode().decode(vae, {"samples": latents})
    assert frames.shape == (left, 128, 128, 3)
    assert -10 * (frames.cpu() - clip[:left]).square().mean().log10() > 30
    (tiled,) = VAEDecodeTiled().decode(vae, {"samples": latents}, 128, 32)
    assert (tiled.cpu() - frames.cpu()).abs().max() < 0.05


def test_the_worlds_weights_are_small_and_half_precision():
    files = [*model.WEIGHTS.glob("*.safetensors")]
    assert sum(file.stat().st_size for file in files) <= MEGABYTES * 1e6
    for file in files:
        with safe_open(file, "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
            assert all(weights.get_tensor(name).isfinite().all() for name in weights.keys())  # noqa: SIM118


def test_examples_of_the_first_model_are_refused_by_the_other_one_of_its_class():
    unet = CoherenceDemoModel.execute("image").result[0]
    weights = LoadSTAM.execute("(example) red_star.stam.safetensors")[0]
    with pytest.raises(
        InflationError, match=r"tuned on DemoConfig: use the same model, because this one has different layers"
    ):
        inflated(unet, weights.form, weights, layers="*", strength=1.0, asked_by="STAMInflate")
    adapter = LoadGEAdapter.execute("(example) three_clips.ge_adapter.safetensors")[0]
    with pytest.raises(
        ValueError, match=r"Use the model that the adapter was trained on: this one is a BaseModel, too"
    ):
        GEAdapterApply.execute(unet, adapter, 1.0, 0.0, 1.0)


def test_a_missing_file_is_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(model, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"world_image\.safetensors is missing.*git"):
        CoherenceDemoModel.execute("image")
