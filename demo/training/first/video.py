"""The demo video model: a text encoder that reads motions, and temporal layers for the frozen UNet."""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from functools import partial
from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ....attention.forms import InflationWeights
from ....attention.sites import list_sites
from ....files.weights_file import save
from ....techniques.temporal import TemporalAttention
from ...model import (
    CONTEXT_WIDTH,
    UNET_FILE,
    VIDEO_FILE,
    VIDEO_FORM,
    VIDEO_TEXT_ENCODER_FILE,
    DemoTextEncoder,
    by_layer,
    unet_module,
)
from ...motion import FRAMES, MOTIONS, moving_caption, random_moving_scene
from .checkpoints import Trained, ship, write_curve
from .data import ClipBank
from .text import Captions, encode, prepare_norms, trained_encoder
from .unet import alphas_cumprod, explicit_attention, sample_timesteps

QUERIES = ("attn1", "attn2")  # whose W_q is tuned, as Tune-A-Video does


# The text encoder ---------------------------------------------------------------------------------------------------


def train_video_text(arguments: argparse.Namespace) -> None:
    """Motions become linearly readable; pictures' captions, and what is said beside a motion, stay as they were."""
    torch.manual_seed(arguments.seed)
    encoder = trained_encoder(arguments.device)
    prepare_norms(encoder)
    anchor = copy.deepcopy(encoder).requires_grad_(False)
    encoder.requires_grad_(True)
    head = nn.Linear(CONTEXT_WIDTH, len(MOTIONS)).to(arguments.device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], weight_decay=0.01)
    steps, rng, tokenize, curve = arguments.text_steps, random.Random(arguments.seed), Captions(), []
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    end_token = encoder.special_tokens["end"]
    for step in range(steps):
        clips = [random_moving_scene(rng) for _ in range(96)]
        captions = [moving_caption(clip, rng, partial=0.5) for clip in clips]
        still = [text.rsplit(",", 1)[0] for text in captions]
        tokens, plain = (tokenize(texts).to(arguments.device) for texts in (captions, still))
        context, kept = encode(encoder, tokens), encode(anchor, plain)
        rows = torch.arange(len(tokens))
        ends, plain_ends = ((each == end_token).int().argmax(1) for each in (tokens, plain))
        room = tokens.shape[1] - 1 - ends
        offset = (torch.rand(len(tokens)).to(room.device) * (room + 1)).long()
        target = torch.tensor([MOTIONS.index(clip.motion) for clip in clips], device=tokens.device)
        logits = torch.cat([head(context[rows, ends]), head(context[rows, ends + offset])])
        read = F.cross_entropy(logits, target.repeat(2))
        same = F.mse_loss(encode(encoder, plain), kept)
        beside = F.mse_loss(context[rows, ends + offset], kept[rows, plain_ends + offset])
        optimizer.zero_grad()
        (read + 10 * same + beside).backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            right = (logits.argmax(1) == target.repeat(2)).float().mean().item()
            curve.append({"step": step, "motion": right, "same": same.item(), "beside": beside.item()})
            print("video_text", json.dumps(curve[-1]), flush=True)
    ship(encoder.state_dict(), "video_text_encoder")
    write_curve("video_text", curve)


# The temporal layers ------------------------------------------------------------------------------------------------


class TemporalLayers(nn.ModuleDict):
    """``input.1.temporal``: a TemporalAttention; ``input.1.attn1``: what is added to W_q. Dots are underscores here."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self._blocks: dict[str, Any] = {}
        for site in list_sites(unet):
            place, name = site.name.rsplit(".", 1)
            attention: Any = site.module
            query = attention.to_q
            self[site.name.replace(".", "_")] = nn.Linear(query.in_features, query.out_features, bias=False)
            if name == "attn1":
                self[f"{place}.temporal".replace(".", "_")] = TemporalAttention(query.in_features, site.heads, True)
                assert site.replaced_in
                self._blocks[place] = site.replaced_in[0]
        for module in self.values():
            if isinstance(module, TemporalAttention):
                module.reset_parameters(torch.Generator().manual_seed(0))
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)

    def on(self, frames: list[int]):
        """Hooks for one call with clips of ``frames``."""
        hooks = []
        for place, block in self._blocks.items():
            temporal = self[f"{place}.temporal".replace(".", "_")]
            hooks.append(block.register_forward_hook(partial(_temporal, temporal, frames)))
            for name in QUERIES:
                delta = self[f"{place}.{name}".replace(".", "_")]
                hooks.append(getattr(block, name).to_q.register_forward_hook(partial(_plus, delta)))
        return hooks


def _temporal(temporal, frames, _block, _inputs, output: Tensor) -> Tensor:
    return output + temporal(output, frames)


def _plus(delta, _to_q, inputs, output: Tensor) -> Tensor:
    return output + delta(inputs[0])


def train_video(arguments: argparse.Namespace) -> None:
    """As the UNet's training, on clips: every second or fourth frame in the first stage, all 16 in the second.

    Every clip has one noise level and independent noise in its frames. The text encoder learns along: the UNet's own
    keys and values of the text, which are frozen, know nothing of motions.
    """
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    unet = unet_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    unet.load_state_dict(load_file(UNET_FILE))
    unet.requires_grad_(False)
    layers = TemporalLayers(unet).to(device)
    trained = Trained("video", layers, torch.optim.AdamW(layers.parameters(), betas=(0.9, 0.99)), decay=0.997)
    encoder = DemoTextEncoder(device=arguments.device, dtype=torch.float32)
    encoder.load_state_dict(load_file(VIDEO_TEXT_ENCODER_FILE))
    prepare_norms(encoder)
    encoder.requires_grad_(True)
    words = Trained("video_words", encoder, torch.optim.AdamW(encoder.parameters(), betas=(0.9, 0.99)), decay=0.997)
    tokenize, bank, signals = Captions(), ClipBank(arguments.clip_variants, arguments.seed), alphas_cumprod().to(device)
    running, began, first_step = None, time.time(), trained.step
    first, total = arguments.video_stages
    while trained.step < total:
        rng = random.Random(arguments.seed * 1_000_003 + trained.step)
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + trained.step)
        stride = rng.choice((2, 4)) if trained.step < first else 1
        frames = list(range(rng.randrange(stride), FRAMES, stride))
        count = arguments.batch // len(frames)
        clean, captions = bank.batch(count, frames, rng, partial=0.25)
        captions = ["" if rng.random() < 0.1 else text for text in captions]
        timesteps = sample_timesteps(count, generator).to(device).repeat_interleave(len(frames))
        noise = torch.randn(clean.shape, generator=generator).to(device)
        context = encode(encoder, tokenize(captions).to(device)).repeat_interleave(len(frames), 0)
        signal = signals[timesteps].reshape(-1, 1, 1, 1)
        hooks = layers.on(frames)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = unet(
                signal.sqrt() * clean.to(device) + (1 - signal).sqrt() * noise,
                timesteps=timesteps.float(),
                context=context,
                transformer_options={"optimized_attention_override": explicit_attention},
            )
        squared = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        loss = (squared * (1 / signal.flatten()).clamp(max=50.0)).mean()
        rate = _rate(trained.step, arguments)
        trained.descend(loss, rate)
        words.update(rate / 3)
        for hook in hooks:
            hook.remove()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if trained.step % 50 == 0:
            speed = (trained.step - first_step) * count / (time.time() - began)
            trained.note(loss=running, clips_per_second=round(speed, 2))
        if trained.step % arguments.save_every == 0 or trained.step == total:
            trained.save()
            words.save()
    ship_video(trained)
    ship(words.average, "video_text_encoder")
    write_curve("video", trained.curve)


def ship_video(trained: Trained) -> None:
    """The average's weights, fp16, as the file of an inflated model that the pack loads."""
    tensors = {name: tensor.half().contiguous() for name, tensor in by_layer(trained.average).items()}
    save(InflationWeights(VIDEO_FORM, "DemoConfig", tensors, trained.step, FRAMES), VIDEO_FILE)


def _rate(step: int, arguments: argparse.Namespace) -> float:
    """One cosine with a warm-up."""
    warm_up = min(1.0, (step + 1) / 100)
    return (
        arguments.rate * warm_up * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / arguments.video_stages[-1])))
    )
