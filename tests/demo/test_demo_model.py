"""The demo model draws what captions say, and is to ComfyUI what any Stable Diffusion 1.5 checkpoint is."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from coherence.demo import card, evaluation, model, reader, shapes
from coherence.demo.training.first import data
from coherence.demo.training.first.text import Captions
from coherence.nodes.demo import CoherenceDemoModel
from safetensors import safe_open
from torch import Tensor

PSNR = 28.0  # dB
CAPTION = "a small red star at the top left on a green background"


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As the server runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def demo() -> Any:
    """MODEL, CLIP and VAE, as the node gives them."""
    return CoherenceDemoModel.execute("shapes").result


def encode(clip: Any, text: str) -> list:
    from nodes import CLIPTextEncode

    return CLIPTextEncode().encode(clip, text)[0]


def sampled(unet: Any, clip: Any, text: str = CAPTION, steps: int = 3) -> Tensor:
    """Latents (1, 4, 16, 16) by KSampler."""
    from nodes import EmptyLatentImage, common_ksampler

    (empty,) = EmptyLatentImage().generate(128, 128)
    conditioning = encode(clip, text), encode(clip, "")
    return common_ksampler(unet, 5, steps, 5.0, "euler", "normal", *conditioning, empty)[0]["samples"]


def test_the_node_gives_ordinary_objects(demo: Any) -> None:
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.sd

    unet, clip, vae = demo
    assert isinstance(unet, comfy.model_patcher.ModelPatcher)
    assert isinstance(clip, comfy.sd.CLIP)
    assert isinstance(vae, comfy.sd.VAE)
    assert unet.model.model_type == comfy.model_base.ModelType.EPS
    assert isinstance(unet.model.latent_format, comfy.latent_formats.SD15)
    assert unet.get_model_object("model_sampling").sigma_max.item() == pytest.approx(14.6146, abs=1e-3)


def test_self_and_cross_attention_stand_at_every_level(demo: Any) -> None:
    names = [name for name, _ in demo[0].model.diffusion_model.named_modules()]
    for kind in ("attn1", "attn2"):
        blocks = {".".join(name.split(".")[:2]) for name in names if name.endswith(f"transformer_blocks.0.{kind}")}
        inputs, outputs = (sum(name.startswith(side) for name in blocks) for side in ("input", "output"))
        assert (inputs, outputs, "middle_block.1" in blocks) == (2, 4, True)


def test_ksampler_repeats_to_the_bit_and_obeys_the_prompt(demo: Any) -> None:
    unet, clip, _ = demo
    latents = sampled(unet, clip)
    assert latents.shape == (1, 4, 16, 16)
    assert latents.isfinite().all()
    assert torch.equal(latents, sampled(unet, clip))
    assert not torch.equal(latents, sampled(unet, clip, CAPTION.replace("red", "blue")))


def test_vae_round_trip_keeps_rendered_pictures(demo: Any) -> None:
    from nodes import VAEDecode, VAEEncode

    _, _, vae = demo
    pictures = evaluation.rendered(8)
    (latent,) = VAEEncode().encode(vae, pictures)
    (decoded,) = VAEDecode().decode(vae, latent)
    assert decoded.shape == pictures.shape
    psnr = -10 * (decoded.cpu() - pictures).square().mean().log10().item()
    assert psnr >= PSNR
    assert psnr == pytest.approx(evaluation.reconstruction(vae, pictures), abs=1e-3)


def test_the_files_encoder_is_the_analytic_one(demo: Any) -> None:
    pictures = evaluation.rendered(24)
    latents = demo[0].model.process_latent_in(demo[2].encode(pictures)).float().cpu()
    assert (latents - data.encode(pictures)).abs().max() <= 1e-2


def test_the_bank_holds_the_latents_of_jittered_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RADII", "ROWS", "COLUMNS"):  # one of each is enough, and soon computed
        monkeypatch.setattr(data, name, dict([*getattr(shapes, name).items()][-1:]))
    bank, rng = data.LatentBank(), random.Random(0)
    moves = [(dx, dy, scale) for scale in (0.95, 1.0, 1.05) for dy in range(-3, 4) for dx in range(-3, 4)]
    for shape in shapes.SHAPES:
        scene = shapes.Scene(shape, "orange", "purple", "large", "bottom", "right")
        every = data.encode(torch.stack([shapes.draw(scene, *move) for move in moves]))
        chosen = set()
        for _ in range(20):
            distances = (bank.latent(scene, rng) - every).abs().amax((1, 2, 3))
            assert distances.min() < 5e-3
            chosen.add(distances.argmin().item())
        assert len(chosen) > 10


def test_captions_of_training_are_tokenized_as_the_text_encoder_does() -> None:
    rng = random.Random(3)
    captions = ["", *(shapes.caption(shapes.random_scene(rng), rng, partial=0.5) for _ in range(300))]
    whole = model.DemoTokenizer()
    for caption, ids in zip(captions, Captions()(captions).tolist(), strict=True):
        (chunk,) = whole.tokenize_with_weights(caption)
        assert [token for token, _ in chunk] == ids


def test_prompt_weights_and_long_and_unknown_prompts_work(demo: Any) -> None:
    unet, clip, _ = demo
    plain, weighted, long, unknown = (
        encode(clip, text)[0][0]
        for text in ("a red circle", "a (red:1.5) circle", ", ".join([CAPTION] * 5), "naïve 日本 Ünicorn™ 🙂 \\(x\\)")
    )
    assert plain.shape == weighted.shape == (1, 32, 128)
    assert not torch.equal(plain, weighted)
    assert long.shape[1] > 32
    assert long.shape[1] % 32 == 0
    assert unknown.isfinite().all()
    for text in (", ".join([CAPTION] * 5), "naïve 日本 Ünicorn™ 🙂"):
        assert sampled(unet, clip, text, steps=1).isfinite().all()


def test_a_lora_finds_its_layers_and_changes_the_sample(demo: Any) -> None:
    import comfy.lora
    import comfy.sd

    unet, clip, _ = demo
    weights = {**unet.model.state_dict(), **clip.cond_stage_model.state_dict()}
    names = comfy.lora.model_lora_keys_unet(unet.model, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}))
    # kohya's names; the host also lists biases, norms, and layers that other UNets have
    layers = {name: weights[key] for name, key in names.items() if name.startswith("lora_") and key in weights}
    layers = {name: weight for name, weight in layers.items() if weight.ndim > 1}
    assert sum(name.startswith("lora_unet_input_blocks") for name in layers) >= 2 * 10  # of two transformer blocks
    assert sum(name.startswith("lora_te_") for name in layers) == 2 * 6  # layers × (q, k, v, out, fc1, fc2)
    generator, lora = torch.Generator().manual_seed(0), {}
    for name, weight in layers.items():
        rows, columns = len(weight), weight[0].numel()
        up = torch.randn(rows, 2, generator=generator)
        down = torch.randn(2, columns, generator=generator) / columns**0.5
        lora[f"{name}.lora_up.weight"] = up.reshape(rows, 2, *(1 for _ in weight.shape[2:]))
        lora[f"{name}.lora_down.weight"] = down.reshape(2, *weight.shape[1:])
    before = sampled(unet, clip)
    for strengths in ((0.3, 0.0), (0.0, 0.3)):
        with_lora = comfy.sd.load_lora_for_models(unet, clip, lora, *strengths)
        changed = sampled(*with_lora)
        assert changed.isfinite().all()
        assert (changed - before).norm() > 0.01 * before.norm()
    assert torch.equal(sampled(unet, clip), before)


def test_the_weights_are_small_and_half_precision() -> None:
    files = [model.UNET_FILE, model.TEXT_ENCODER_FILE, model.VAE_FILE, model.VIDEO_FILE, model.VIDEO_TEXT_ENCODER_FILE]
    assert set(files) == set(model.FOLDER.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 25e6
    for file in files:
        with safe_open(file, "pt") as weights:
            names = list(weights.keys())
            assert {weights.get_slice(name).get_dtype() for name in names} == {"F16"}
            assert all(weights.get_tensor(name).isfinite().all() for name in names)


@pytest.mark.parametrize(
    ("file", "loader"), [("UNET_FILE", "load_model"), ("TEXT_ENCODER_FILE", "load_clip"), ("VAE_FILE", "load_vae")]
)
def test_a_missing_file_is_named_with_what_to_do(
    file: str, loader: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = getattr(model, file).name
    monkeypatch.setattr(model, file, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing.*git"):
        getattr(model, loader)()


def test_wilsons_interval_holds_the_share_and_narrows_with_the_count() -> None:
    # Wilson 1927: 0 of n reaches up to z² / (n + z²)
    z = NormalDist().inv_cdf(0.975)
    assert evaluation.wilson(0, 10) == pytest.approx((0.0, z**2 / (10 + z**2)), abs=1e-12)
    assert evaluation.wilson(10, 10)[1] == pytest.approx(1.0)
    (low, high), (lower, higher) = evaluation.wilson(180, 200), evaluation.wilson(18, 20)
    assert lower < low < 0.9 < high < higher


def test_the_card_is_rewritten_between_its_marks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scenes = [shapes.Scene("star", "red", "green", "small", "top", "left")] * 3
    drawn = evaluation.rendered(3)
    drawn[0] = shapes.draw(scenes[0])
    reading = reader.read(drawn)
    results = evaluation.Evaluation(drawn, [CAPTION] * 3, scenes, reading, reader.correct(reading, scenes))
    text = (card.FOLDER / "FIRST.md").read_text("utf-8")
    (tmp_path / "FIRST.md").write_text(text, "utf-8")
    (tmp_path / "curves").mkdir()
    attributes = {"step": 0, **dict.fromkeys(("shape", "colour", "background", "size", "row", "column"), 0.5)}
    for part, curve in {
        "text": [attributes],
        "text_partial": [attributes],
        "unet": [{"step": 50, "pictures": 3200, "loss": 1.0}],
        "vae": [{"step": 50, "psnr": 20.0}],
    }.items():
        (tmp_path / "curves" / f"{part}.json").write_text(json.dumps(curve))
    monkeypatch.setattr(card, "FOLDER", tmp_path)
    monkeypatch.setattr(card, "STATE", tmp_path)
    for _ in range(2):  # a second time on its own work
        card.write_card(results, 31.25, "euler, normal")
        written = (tmp_path / "FIRST.md").read_text("utf-8")
        assert "euler, normal; UNet after 3,200 pictures." in written
        assert "PSNR of 31.2 dB" in written
        before, after = text.split(card.BEGIN)[0], text.split(card.END)[1]
        assert written.startswith(before + card.BEGIN)
        assert written.endswith(card.END + after)
    assert (tmp_path / "images" / "samples.png").stat().st_size > 0
    assert (tmp_path / "images" / "curves.png").stat().st_size > 0
