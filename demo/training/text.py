"""The world's tokenizer and text encoder."""

from __future__ import annotations

import argparse
import json
import random
import re

import torch
import torch.nn.functional as F
from torch import Tensor

from ..world import captions
from ..world.captions import describe
from ..world.model import FOLDER, WorldTextEncoder, WorldTokenizer
from ..world.motion import MOTIONS
from ..world.scenes import COLOURS, COLUMNS, PATTERNS, RADII, RELATIONS, ROWS, random_scene
from ..world.things import THINGS
from .first.text import encode, prepare_norms
from .optimizer import Muon
from .state import WEIGHTS, trained_weights, write_curve, write_weights

# Words of captions to come get tokens of their own, as those of today's do.
_MORE_WORDS = (
    "moving left right up down growing shrinking spinning standing still turning fading jumping to from into the and "
    "then video photo drawing icon two three gray grey brown pink"
)
RATE = 5e-3  # falls from the start, in a line
_COLOURS = tuple(COLOURS)
_CLASSES: dict[str, tuple[str, ...]] = {
    "thing": THINGS,
    "colour": _COLOURS,
    "second": ("", *_COLOURS),
    "size": tuple(RADII),
    "row": ROWS,
    "column": COLUMNS,
    "relation": RELATIONS,
    "thing2": THINGS,
    "colour2": _COLOURS,
    "background": _COLOURS,
    "pattern": PATTERNS,
    "other": ("", *_COLOURS),
    "motion": MOTIONS,
}


def train_tokenizer(_: argparse.Namespace) -> None:
    """Byte pairs learned from the captions, in CLIP's file format."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    rng = random.Random(0)
    texts = [captions.caption(random_scene(rng), rng) for _ in range(20_000)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(texts + [_MORE_WORDS] * 1000, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), start, end]
    folder = FOLDER / "tokenizer"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(dict.fromkeys(tokens))}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    config = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": 32, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")


class Captions:
    """Captions → token ids (B, 32). Byte pairs never cross words, so a caption is its words' tokens in a row."""

    def __init__(self) -> None:
        self._tokenizer = WorldTokenizer()
        self._words: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        tokens = torch.full((len(texts), self._tokenizer.max_length), self._tokenizer.end_token)
        tokens[:, 0] = self._tokenizer.start_token
        for row, text in zip(tokens, texts, strict=True):
            ids = [token for word in re.findall(r"\w+|,", text) for token in self._word(word)]
            row[1 : len(ids) + 1] = torch.tensor(ids)
        return tokens

    def _word(self, word: str) -> list[int]:
        if word not in self._words:
            (chunk,) = self._tokenizer.tokenize_with_weights(word)
            ids = [token for token, _ in chunk[1:]]
            self._words[word] = ids[: ids.index(self._tokenizer.end_token)]
        return self._words[word]


def trained_encoder(device: str) -> WorldTextEncoder:
    encoder = WorldTextEncoder(device=device, dtype=torch.float32)
    encoder.load_state_dict(trained_weights("world_text"))
    return encoder.requires_grad_(False)


def train_text(arguments: argparse.Namespace) -> None:
    """What a caption says must be linearly readable at the end token and at a padding token after it."""
    torch.manual_seed(arguments.seed)
    encoder = WorldTextEncoder(device=arguments.device, dtype=torch.float32)
    _initialise(encoder)
    encoder.requires_grad_(True)
    width = encoder.transformer.text_model.final_layer_norm.weight.shape[0]
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, len(values)) for name, values in _CLASSES.items()})
    heads.to(arguments.device)
    named = [*encoder.named_parameters(), *heads.named_parameters("heads")]
    optimizer = Muon(named, ends=r"^heads|embedding")
    steps, rng, tokenize, curve = arguments.text_steps, random.Random(arguments.seed), Captions(), []
    for step in range(steps):
        texts, said = zip(*(_described(rng) for _ in range(64)), strict=True)
        tokens = tokenize(list(texts))
        ends = (tokens == encoder.special_tokens["end"]).int().argmax(1)
        after = ends + (torch.rand(len(ends)) * (tokens.shape[1] - ends)).long()
        context = encode(encoder, tokens.to(arguments.device))
        rows, loss, right = torch.arange(len(tokens)), torch.zeros((), device=arguments.device), {}
        read = torch.cat([context[rows, ends], context[rows, after]])
        for name, values in _CLASSES.items():
            target = torch.tensor([values.index(each[name]) if name in each else -1 for each in said])
            target = target.repeat(2).to(read.device)
            logits = heads[name](read)
            loss = loss + F.cross_entropy(logits, target, ignore_index=-1)
            right[name] = round((logits.argmax(1) == target)[target >= 0].float().mean().item(), 3)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * (1 - step / steps)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            curve.append({"step": step, "loss": loss.item(), **right})
            print("text", json.dumps(curve[-1]), flush=True)
    write_weights(encoder.state_dict(), WEIGHTS / "world_text.safetensors")
    write_curve(curve, WEIGHTS / "world_text.json")


def _described(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A picture's caption, or a clip's, and what it says."""
    text, said = describe(random_scene(rng, pairs=0.35, backgrounds=0.4, fills=0.3), rng, partial=0.3)
    if rng.random() < 0.6:
        return text, said
    motion = rng.choice(MOTIONS)
    return f"{text}, {motion}", said | {"motion": motion}


def _initialise(encoder: torch.nn.Module) -> None:
    for module in encoder.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.05)
        if isinstance(bias := getattr(module, "bias", None), torch.nn.Parameter):
            torch.nn.init.zeros_(bias)
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
    prepare_norms(encoder)
