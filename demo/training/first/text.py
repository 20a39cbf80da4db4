"""The demo model's tokenizer and text encoder."""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ...model import CONTEXT_WIDTH, TEXT_ENCODER_FILE, DemoTextEncoder, DemoTokenizer
from ...shapes import COLOURS, COLUMNS, RADII, ROWS, SHAPES, caption, fill, random_scene, template
from .checkpoints import FOLDER, ship, write_curve

# Words of clips' captions to come: each gets a token of its own, as the captions' words do.
_MOTION_WORDS = "moving up down to growing shrinking spinning turning standing still and an"

_CLASSES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(COLOURS),
    "size": tuple(RADII),
    "row": tuple(ROWS),
    "column": tuple(COLUMNS),
}
_SAID_BY = {"row": "where", "column": "where"}
_ATTRIBUTES = ("shape", "colour", "background", "size", "where")


def train_tokenizer(_: argparse.Namespace) -> None:
    """Byte pairs learned from the captions."""
    rng = random.Random(0)
    captions = [caption(random_scene(rng), rng) for _ in range(20_000)]
    learn_byte_pairs(captions + [_MOTION_WORDS] * 1000, FOLDER / "tokenizer")


def learn_byte_pairs(texts: list[str], folder: Path) -> None:
    """Writes a tokenizer in CLIP's file format."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), start, end]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(dict.fromkeys(tokens))}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    config = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": 32, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")


class Captions:
    """Captions → token ids (B, 32). Byte pairs never cross words, so a caption is its words' tokens in a row."""

    def __init__(self, tokenizer: type[DemoTokenizer] = DemoTokenizer) -> None:
        self._tokenizer = tokenizer()
        self._words: dict[str, list[int]] = {}

    def __call__(self, captions: list[str]) -> Tensor:
        tokens = torch.full((len(captions), self._tokenizer.max_length), self._tokenizer.end_token)
        tokens[:, 0] = self._tokenizer.start_token
        for row, text in zip(tokens, captions, strict=True):
            ids = [token for word in re.findall(r"\w+|,", text) for token in self._word(word)]
            row[1 : len(ids) + 1] = torch.tensor(ids)
        return tokens

    def _word(self, word: str) -> list[int]:
        if word not in self._words:
            (chunk,) = self._tokenizer.tokenize_with_weights(word)
            ids = [token for token, _ in chunk[1:]]
            self._words[word] = ids[: ids.index(self._tokenizer.end_token)]
        return self._words[word]


def trained_encoder(device: str) -> DemoTextEncoder:
    encoder = DemoTextEncoder(device=device, dtype=torch.float32)
    encoder.load_state_dict(load_file(TEXT_ENCODER_FILE))
    return encoder


def encode(encoder: DemoTextEncoder, tokens: Tensor) -> Tensor:
    """The context the UNet sees: the last layer, normalised, (B, 32, width)."""
    return encoder.transformer(tokens)[0]


def train_text(arguments: argparse.Namespace) -> None:
    """What a caption says must be linearly readable at the end token and at a padding token after it.

    The first stage sees captions that say everything; in the second, half of them leave attributes out, and the
    others must keep the context they had, so that a UNet trained on it needs no unlearning.
    """
    torch.manual_seed(arguments.seed)
    encoder = DemoTextEncoder(device=arguments.device, dtype=torch.float32)
    initialise(encoder)
    if arguments.text_from:
        encoder.load_state_dict(load_file(arguments.text_from))
    else:
        _teach(encoder, arguments, steps=arguments.text_steps, partial=0.0)
    _teach(encoder, arguments, steps=arguments.text_steps, partial=0.5)
    ship(encoder.state_dict(), "text_encoder")


def _teach(encoder: DemoTextEncoder, arguments: argparse.Namespace, *, steps: int, partial: float) -> None:
    rng, tokenize = random.Random(arguments.seed), Captions()
    anchor = copy.deepcopy(encoder).requires_grad_(False)
    encoder.requires_grad_(True)
    heads = torch.nn.ModuleDict(
        {name: torch.nn.Linear(CONTEXT_WIDTH, len(values)) for name, values in _CLASSES.items()}
    )
    heads.to(arguments.device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    curve = []
    for step in range(steps):
        scenes = [random_scene(rng) for _ in range(128)]
        templates = [template(rng, partial) for _ in scenes]
        tokens = tokenize([fill(t, scene, rng) for t, scene in zip(templates, scenes, strict=True)])
        tokens = tokens.to(arguments.device)
        context = encode(encoder, tokens)
        last = tokens.shape[1] - 1
        end = (tokens == encoder.special_tokens["end"]).int().argmax(1)
        after = end + (torch.rand(len(tokens)).to(tokens.device) * (last - end + 1)).long()
        rows, loss, right = torch.arange(len(tokens)), torch.zeros(()), {}
        for place in (end, after.clamp(max=last)):
            for name, values in _CLASSES.items():
                said = torch.tensor([f"{{{_SAID_BY.get(name, name)}}}" in t for t in templates])
                target = torch.tensor([values.index(getattr(scene, name)) for scene in scenes])[said].to(tokens.device)
                logits = heads[name](context[rows, place][said])
                loss = loss + F.cross_entropy(logits, target)
                right[name] = (logits.argmax(1) == target).float().mean().item()
        if partial:
            whole = torch.tensor([all(f"{{{name}}}" in t for name in _ATTRIBUTES) for t in templates])
            loss = loss + 10 * F.mse_loss(context[whole], encode(anchor, tokens[whole]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            curve.append({"step": step, "loss": loss.item(), **right})
            print("text", json.dumps(curve[-1]), flush=True)
    write_curve("text_partial" if partial else "text", curve)


def initialise(encoder: torch.nn.Module) -> None:
    for module in encoder.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.05)
        if isinstance(bias := getattr(module, "bias", None), torch.nn.Parameter):
            torch.nn.init.zeros_(bias)
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
    prepare_norms(encoder)


def prepare_norms(encoder: torch.nn.Module) -> None:
    """ComfyUI's layers add in place; autograd needs what the norms saw."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:]))
