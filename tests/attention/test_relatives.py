"""Relatives of the families that everything is tried on: every site is reached, in order, and nothing changes."""

from __future__ import annotations

from typing import Any

import comfy.sample
import pytest
import torch
from coherence.attention.sites import sites_of
from comfy.nested_tensor import NestedTensor
from tiny_models import Family, sample
from tiny_models.pictures import FLUX, build
from watching import ALL_KINDS, watched

FRAMES = 3
WAN = {
    "image_model": "wan2.1",
    "dim": 128,
    "ffn_dim": 128,
    "freq_dim": 32,
    "text_dim": 48,
    "num_heads": 2,
}
CLIP = (1, 16, FRAMES, 8, 8)
REFERENCE = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def relative(
    config: str, unet_config: dict[str, Any], latent_shape: tuple[int, ...], width: int = 48, **conditioning: Any
) -> Family:
    shapes = {name: value for name, value in conditioning.items() if type(value) is tuple}
    return Family(
        file="",
        kind="built",
        write=lambda _path: None,
        base="",
        config=config,
        latent_shape=latent_shape,
        frames_axis=2 if latent_shape[0] == 1 else 0,
        context=(7, width),
        extras=shapes,
        settings={name: value for name, value in conditioning.items() if name not in shapes},
        unet_config=unet_config,
    )


RELATIVES = {
    "Wan 2.2 S2V": relative(
        "WAN22_S2V",
        {
            **WAN,
            "model_type": "s2v",
            "num_layers": 2,
            "audio_dim": 32,
            "num_audio_token": 2,
            "audio_inject_layers": [0],
        },
        CLIP,
        audio_embed=(1, 25, 32, 12),
        control_video=CLIP,
        reference_latents=[REFERENCE],
    ),
    "Wan 2.1 HuMo": relative(
        "WAN21_HuMo",
        {**WAN, "model_type": "humo", "num_layers": 2},
        CLIP,
        audio_embed=(1, FRAMES, 8, 5, 1280),
        reference_latents=[REFERENCE],
    ),
    "Wan 2.1 SCAIL": relative(
        "WAN21_SCAIL",
        {**WAN, "model_type": "scail", "num_layers": 2, "in_dim": 20},
        CLIP,
        pose_video_latent=(1, 16, FRAMES, 4, 4),
        reference_latents=[REFERENCE],
    ),
    "Wan 2.2 Animate": relative(
        "WAN22_Animate",
        {**WAN, "model_type": "animate", "num_layers": 5, "in_dim": 36},
        CLIP,
        pose_video_latent=(1, 16, FRAMES - 1, 8, 8),
    ),
    "HunyuanVideo 1.5": relative(
        "HunyuanVideo15",
        {
            "image_model": "hunyuan_video",
            "in_channels": 65,
            "out_channels": 32,
            "vec_in_dim": None,
            "context_in_dim": 48,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 2,
            "depth_single_blocks": 1,
            "axes_dim": [8, 12, 12],
            "theta": 256,
            "patch_size": [1, 1, 1],
            "qkv_bias": True,
            "guidance_embed": False,
            "byt5": True,
            "meanflow": False,
            "use_cond_type_embedding": True,
            "vision_in_dim": 32,
            "meanflow_sum": False,
        },
        (1, 32, FRAMES, 4, 4),
        pooled_output=(1, 32),
        conditioning_byt5small=(1, 5, 1472),
    ),
    "Chroma": relative(
        "Chroma",
        {
            **{
                name: FLUX[name]
                for name in ("in_channels", "out_channels", "context_in_dim", "hidden_size", "mlp_ratio")
            },
            **{name: FLUX[name] for name in ("num_heads", "depth", "depth_single_blocks", "axes_dim", "theta")},
            **{name: FLUX[name] for name in ("patch_size", "qkv_bias", "txt_ids_dims", "vec_in_dim")},
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 64,
            "hidden_dim": 64,
            "n_layers": 2,
        },
        (4, 16, 8, 8),
    ),
    "OmniGen2": relative(
        "Omnigen2",
        {
            "image_model": "omnigen2",
            "hidden_size": 64,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 32,
            "axes_dim_rope": (8, 12, 12),
            "axes_lens": (64, 64, 64),
            "text_feat_dim": 48,
        },
        (4, 16, 8, 8),
        attention_mask=torch.ones(1, 7, dtype=torch.long),
    ),
}


@pytest.fixture(scope="module", params=RELATIVES)
def seen(request):
    """Family, model, the output without and with an observer, and what the observer saw."""
    family = RELATIVES[request.param]
    model = build(family.config, dict(family.unet_config), "")
    plain = sample(model, family, steps=1)
    clone, watch = watched(model, kinds=(*ALL_KINDS, "sound"))
    return family, model, plain, sample(clone, family, steps=1), watch.calls


def test_an_observer_leaves_the_output_bit_identical(seen):
    *_, plain, output, _calls = seen
    assert plain.isfinite().all()
    assert torch.equal(output, plain)


def test_every_listed_site_is_reached_in_the_order_listed(seen):
    _family, model, _plain, _output, calls = seen
    names = [site.name for site in sites_of(model)]
    assert [call.site.name for call in calls] == names * (len(calls) // len(names))


def test_the_clip_lies_where_a_site_says(seen):
    family, _model, _plain, _output, calls = seen
    frames = family.latent_shape[family.frames_axis]
    for call in calls:
        assert call.frame_indices == tuple(range(frames))
        if call.tokens_per_frame is not None:
            inside = frames if call.site.frames_in == "tokens" else 1
            assert (
                call.per_head()[0].shape[2]
                == call.leading_tokens + inside * call.tokens_per_frame + call.trailing_tokens
            )


def test_video_and_sound_attend_at_sites_of_their_own(tiny_models):
    """LTX-2: each to itself, to the text, and to the other."""
    model = tiny_models.load_ltxav()
    latent = NestedTensor((torch.zeros(1, 128, FRAMES, 4, 4), torch.zeros(1, 8, 5, 16)))
    positive, negative = (
        [[torch.randn(1, 20, 512, generator=torch.Generator().manual_seed(seed)), {"frame_rate": 25}]]
        for seed in (1, 2)
    )

    def drawn(model):
        noise = comfy.sample.prepare_noise(latent, 0)
        with torch.inference_mode():
            return comfy.sample.sample(
                model, noise, 1, 4.0, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=0
            ).unbind()

    clone, watch = watched(model, kinds=(*ALL_KINDS, "sound"))
    for plain, output in zip(drawn(model), drawn(clone), strict=True):
        assert torch.equal(plain, output)
    names = [site.name for site in sites_of(model)]
    assert [call.site.name for call in watch.calls] == names * (len(watch.calls) // len(names))
    q_tokens = {call.site.name.split(".")[-1]: call.per_head()[0].shape[2] for call in watch.calls}
    video, sound = FRAMES * 4 * 4, 5
    assert q_tokens == {
        "attn1": video,
        "attn2": video,
        "audio_attn1": sound,
        "audio_attn2": sound,
        "audio_to_video_attn": video,
        "video_to_audio_attn": sound,
    }
