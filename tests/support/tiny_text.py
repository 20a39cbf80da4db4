"""Small text encoders of the kinds whose vocabulary comes inside the checkpoint, as ComfyUI loads them."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import torch

TEXTS = (
    "a tiny dachshund's silver jeep, at the (old) café!",
    "a large red star slides over a blue background",
    "describe the image for the user, as a helpful assistant",
)
_KINDS: dict[str, dict[str, Any]] = {
    "t5": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "gemma": {
        "model_type": "bpe",
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    },
}


def spiece_model(kind: str) -> torch.Tensor:
    """A checkpoint's ``spiece_model`` of UMT5's kind or Gemma's, which knows the words of ``TEXTS`` and all bytes."""
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=written,
        vocab_size=400,
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **_KINDS[kind],
    )
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)


def tiny_umt5() -> Any:
    """Wan's text encoder in ComfyUI's classes, as wide as the real one, with one small layer of random weights."""
    from comfy.sd import CLIP
    from comfy.sd1_clip import SD1ClipModel, SDClipModel
    from comfy.text_encoders.t5 import T5
    from comfy.text_encoders.wan import WanT5Tokenizer

    config = {
        "d_ff": 32,
        "d_kv": 8,
        "d_model": 4096,
        "dense_act_fn": "gelu_pytorch_tanh",
        "is_gated_act": True,
        "model_type": "umt5",
        "num_heads": 2,
        "num_layers": 1,
        "vocab_size": 512,
    }

    class Encoder(SDClipModel):
        def __init__(self, **how: Any) -> None:
            how |= {"layer": "last", "special_tokens": {"end": 1, "pad": 0}, "model_class": T5}
            super().__init__(**how, textmodel_json_config=config, enable_attention_masks=True, zero_out_masked=True)

    class Whole(SD1ClipModel):
        def __init__(self, **how: Any) -> None:
            super().__init__(**how, name="umt5xxl", clip_model=Encoder)

    target = SimpleNamespace(params={}, clip=Whole, tokenizer=WanT5Tokenizer)
    clip = CLIP(target, tokenizer_data={"spiece_model": spiece_model("t5")})
    generator = torch.Generator().manual_seed(4)
    for name, parameter in clip.cond_stage_model.named_parameters():
        is_norm = name.endswith("layer_norm.weight")
        parameter.data = torch.ones_like(parameter) if is_norm else torch.randn(parameter.shape, generator=generator)
    return clip
