"""Video transformers of the least useful size: 256 channels, and the widths that real text encoders fix.

Queries and keys are normalised, so their norms' weights set the sharpness: logits have its square as standard
deviation.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .weights import draw, named_shapes


def _write(
    path: Path,
    model: Callable[..., torch.nn.Module],
    config: dict[str, Any],
    sharp: str,
    seed: int,
    metadata: dict[str, str] | None = None,
) -> None:
    import comfy.ops
    from safetensors.torch import save_file

    operations = comfy.ops.disable_weight_init
    shapes = named_shapes(lambda: model(dtype=torch.float32, operations=operations, **config))
    save_file(draw(shapes, {sharp: 2.0}, seed), path, metadata)


def _write_wan(path: Path, seed: int, metadata: dict[str, str] | None = None, **config: Any) -> None:
    from comfy.ldm.wan.model import WanModel

    config = {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 4} | config
    _write(path, WanModel, config, r".*self_attn\.norm_[qk]\.weight", seed, metadata)


def write_wan21(path: Path) -> None:
    """Wan 2.1 text-to-video (Wan 2.2 14B is built alike): 4 blocks, 2 heads, 5 M."""
    _write_wan(path, seed=21)


def write_wan21_for_clip(path: Path, seed: int = 24) -> None:
    """Wan 2.1, or an expert of Wan 2.2, for the texts of a CLIP-L: the file says how wide they are."""
    config = {"text_dim": 768}
    _write_wan(path, seed=seed, metadata={"config": json.dumps({"transformer": config})}, **config)


def write_wan_vae(path: Path) -> None:
    """Wan 2.1's VAE, also Qwen-Image's and Krea 2's: a sixteenth of its width."""
    from comfy.ldm.wan.vae import WanVAE
    from safetensors.torch import save_file

    shapes = named_shapes(lambda: WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True]))
    save_file(draw(shapes, {}, seed=25), path)


def write_wan21_i2v(path: Path) -> None:
    """Wan 2.1 image-to-video: 20 more channels of image and mask, a third attention to CLIP vision."""
    _write_wan(path, seed=23, model_type="i2v", in_dim=36)


def write_wan22(path: Path) -> None:
    """Wan 2.2 5B: 48 latent channels."""
    _write_wan(path, seed=22, in_dim=48, out_dim=48)


def write_cogvideox(path: Path) -> None:
    """CogVideoX with rotary positions: 2 blocks, 4 heads, 6 M; text and video attend jointly."""
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

    config = {"num_attention_heads": 4, "num_layers": 2, "use_rotary_positional_embeddings": True}
    _write(path, CogVideoXTransformer3DModel, config, r"blocks\.\d+\.norm_[qk]\.weight", seed=2)


def write_ltxv(path: Path) -> None:
    """LTX-Video: 2 blocks, 32 heads, 3 M."""
    from comfy.ldm.lightricks.model import LTXVModel

    config = {"attention_head_dim": 8, "cross_attention_dim": 256, "num_layers": 2}
    _write(path, LTXVModel, config, r".*attn1\.[qk]_norm\.weight", seed=9)


def write_ltxav(path: Path) -> None:
    """LTX-2, video with sound: 2 blocks, 32 heads, 8 M. The file says what cannot be read from the weights."""
    from comfy.ldm.lightricks.av_model import LTXAVModel

    config = {
        "num_layers": 2,
        "attention_head_dim": 8,
        "audio_attention_head_dim": 4,
        "cross_attention_dim": 256,
        "audio_cross_attention_dim": 128,
        "caption_channels": 256,
        "connector_attention_head_dim": 32,
        "connector_num_attention_heads": 8,
        "connector_num_layers": 1,
    }
    metadata = {"config": json.dumps({"transformer": config})}
    _write(path, LTXAVModel, config, r".*attn1\.[qk]_norm\.weight", 10, metadata)


def write_hunyuan_video(path: Path) -> None:
    """HunyuanVideo: 2 double and 2 single blocks, 2 heads, 12 M; text and video attend jointly."""
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    config = {
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": [1, 2, 2],
        "hidden_size": 256,
        "num_heads": 2,
        "mlp_ratio": 4.0,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [16, 56, 56],
        "theta": 256,
        "qkv_bias": True,
        "guidance_embed": True,
        "context_in_dim": 4096,
        "vec_in_dim": 768,
        "vision_in_dim": None,
        "byt5": False,
        "meanflow": False,
        "meanflow_sum": False,
        "use_cond_type_embedding": False,
    }
    _write(path, HunyuanVideo, config, r".*\.(query|key)_norm\.weight", seed=13)
