"""The world's tokenizer and text encoder."""

from __future__ import annotations

import argparse
import json
import random

import torch
import torch.nn.functional as F

from ..world.captions import caption, describe
from ..world.model import WorldTextEncoder, WorldTokenizer
from ..world.motion import MOTIONS
from ..world.scenes import COLOURS, COLUMNS, PATTERNS, RADII, RELATIONS, ROWS, random_scene
from ..world.things import THINGS
from .first.text import Captions, encode, initialise, learn_byte_pairs
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
    """Byte pairs learned from the captions."""
    rng = random.Random(0)
    texts = [caption(random_scene(rng), rng) for _ in range(20_000)]
    learn_byte_pairs(texts + [_MORE_WORDS] * 1000, WorldTokenizer.folder)


def trained_encoder(device: str) -> WorldTextEncoder:
    encoder = WorldTextEncoder(device=device, dtype=torch.float32)
    encoder.load_state_dict(trained_weights("world_text"))
    return encoder.requires_grad_(False)


def train_text(arguments: argparse.Namespace) -> None:
    """What a caption says must be linearly readable at the end token and at a padding token after it."""
    torch.manual_seed(arguments.seed)
    encoder = WorldTextEncoder(device=arguments.device, dtype=torch.float32)
    initialise(encoder)
    encoder.requires_grad_(True)
    width = encoder.transformer.text_model.final_layer_norm.weight.shape[0]
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, len(values)) for name, values in _CLASSES.items()})
    heads.to(arguments.device)
    named = [*encoder.named_parameters(), *heads.named_parameters("heads")]
    optimizer = Muon(named, ends=r"^heads|embedding")
    steps, rng, tokenize, curve = arguments.text_steps, random.Random(arguments.seed), Captions(WorldTokenizer), []
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
