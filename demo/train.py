"""Trains the demo model from nothing: tokenizer, text encoder, UNet, VAE. One command, resumable, CPU or GPU:

    python demo/train.py --comfyui PATH [--threads N] [--parts tokenizer text unet vae]

State lives in demo/.training (ignored by git); a run that was stopped goes on where its last checkpoint was.
Data comes from :mod:`demo.shapes` and :mod:`demo.training_data`; every random number from ``--seed``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import random
import re
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
STATE = FOLDER / ".training"

# Words of the captions, and those of the clips' captions to come: each gets a token of its own.
_MOTION_WORDS = "moving up down to growing shrinking spinning turning standing still and an"


def train_tokenizer() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    shapes = importlib.import_module("coherence_demo.demo.shapes")
    rng = random.Random(0)
    captions = [shapes.caption(shapes.random_scene(rng), rng) for _ in range(20_000)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions + [_MOTION_WORDS] * 1000, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *("".join(pair) for pair in merges),
        start,
        end,
    ]
    folder = FOLDER / "tokenizer"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: index for index, token in enumerate(dict.fromkeys(tokens))})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    config = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": 32, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")


class Captions:
    """Captions → token ids (B, 32). Byte pairs never cross words, so a caption is its words' tokens in a row."""

    def __init__(self) -> None:
        model = importlib.import_module("coherence_demo.demo.model")
        self._tokenizer = model.DemoTokenizer()
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


def text_encoder(device: str) -> torch.nn.Module:
    model = importlib.import_module("coherence_demo.demo.model")
    return model.DemoTextEncoder(device=device, dtype=torch.float32)


def encode_text(encoder: torch.nn.Module, tokens: Tensor) -> Tensor:
    """The context the UNet sees: the last layer, normalised, (B, 32, width)."""
    return encoder.transformer(tokens)[0]


def train_text(arguments: argparse.Namespace) -> None:
    """Every attribute must be linearly readable at the end token and at every padding token after it."""
    shapes = importlib.import_module("coherence_demo.demo.shapes")
    classes = {
        "shape": shapes.SHAPES,
        "colour": tuple(shapes.COLOURS),
        "background": tuple(shapes.COLOURS),
        "size": tuple(shapes.RADII),
        "row": tuple(shapes.ROWS),
        "column": tuple(shapes.COLUMNS),
    }
    torch.manual_seed(arguments.seed)
    rng, tokenize = random.Random(arguments.seed), Captions()
    encoder = text_encoder(arguments.device)
    for module in encoder.transformer.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.05)
        if getattr(module, "bias", None) is not None:
            torch.nn.init.zeros_(module.bias)
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
            # ComfyUI's layers add in place; autograd needs what the norms saw
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:]))
    encoder.requires_grad_(True)
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(128, len(values)) for name, values in classes.items()})
    heads.to(arguments.device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=arguments.text_steps)
    curve = []
    for step in range(arguments.text_steps):
        scenes = [shapes.random_scene(rng) for _ in range(128)]
        tokens = tokenize([shapes.caption(scene, rng) for scene in scenes]).to(arguments.device)
        context = encode_text(encoder, tokens)
        first_end = (tokens == encoder.special_tokens["end"]).int().argmax(1)
        rows = torch.arange(len(tokens))
        later = first_end + (torch.rand(len(tokens)) * (31 - first_end.cpu() + 1)).long().clamp(max=31).to(
            first_end
        )
        loss, right = 0.0, {}
        for place in (first_end, later.clamp(max=31)):
            for name, values in classes.items():
                target = torch.tensor(
                    [values.index(getattr(scene, name)) for scene in scenes], device=tokens.device
                )
                logits = heads[name](context[rows, place])
                loss = loss + F.cross_entropy(logits, target)
                right[name] = (logits.argmax(1) == target).float().mean().item()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == arguments.text_steps - 1:
            curve.append({"step": step, "loss": loss.item(), **right})
            print("text", json.dumps(curve[-1]), flush=True)
    _save(encoder.state_dict(), "text_encoder")
    _write_curve("text", curve)


def initialise(unet: torch.nn.Module) -> None:
    """Stable Diffusion's: torch's defaults, zeros where a branch joins the trunk."""
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.Linear.reset_parameters(module)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.Conv2d.reset_parameters(module)
        elif isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


def explicit_attention(
    _, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **__
) -> Tensor:
    """Plain softmax attention: at 256 tokens its backward pass on CPU takes a third of the fused one's time."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1, dtype=q.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


def alphas_cumprod() -> Tensor:
    """SD1.5's schedule: √β linear from 0.00085 to 0.012 in 1000 steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def sample_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Stratified; three quarters fall where the noise hides shapes (σ > 1), a quarter where only edges are left."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return torch.where(u < 0.25, u * 4 * 400, 400 + (u - 0.25) / 0.75 * 600).long().clamp(0, 999)


def train_unet(arguments: argparse.Namespace) -> None:
    """ε-prediction with the loss of v up to σ = 7 (ε's error · (1 + σ²)): shapes are decided at high noise."""
    model = importlib.import_module("coherence_demo.demo.model")
    data = importlib.import_module("coherence_demo.demo.training_data")
    import comfy.ops
    from safetensors.torch import load_file

    torch.manual_seed(arguments.seed)
    device = arguments.device
    unet = model.unet_module(torch.float32, device, comfy.ops.disable_weight_init).diffusion_model
    initialise(unet)
    unet.requires_grad_(True)
    unet.train()
    average = {name: tensor.detach().clone() for name, tensor in unet.state_dict().items()}
    encoder = text_encoder(device)
    encoder.load_state_dict(load_file(STATE / "text_encoder.safetensors"))
    tokenize, bank = Captions(), data.LatentBank()
    acp = alphas_cumprod().to(device)
    decay = [p for p in unet.parameters() if p.ndim > 1]
    no_decay = [p for p in unet.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
        eps=1e-8,
    )
    step, curve, total = 0, [], arguments.unet_steps
    checkpoint = STATE / "unet.pt"
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        unet.load_state_dict(saved["unet"])
        average, step, curve = saved["average"], saved["step"], saved["curve"]
        optimizer.load_state_dict(saved["optimizer"])
        print(f"resumed at step {step}", flush=True)
    running, began, started_at = None, time.time(), step
    while step < total:
        rng = random.Random(arguments.seed * 1_000_003 + step)
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
        clean, captions, _ = bank.batch(arguments.batch, rng)
        captions = ["" if rng.random() < 0.1 else text for text in captions]
        timesteps = sample_timesteps(arguments.batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        clean, noise, timesteps = clean.to(device), noise.to(device), timesteps.to(device)
        with torch.no_grad():
            context = encode_text(encoder, tokenize(captions).to(device))
        signal = acp[timesteps].reshape(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        rate = arguments.rate * min(1.0, (step + 1) / 300) * (0.5 + 0.5 * math.cos(math.pi * step / total))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            predicted = unet(
                noisy,
                timesteps=timesteps.float(),
                context=context,
                transformer_options={"optimized_attention_override": explicit_attention},
            )
        squared = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        loss = (squared * (1 / signal.flatten()).clamp(max=50.0)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        momentum = min(0.9995, (step + 1) / (step + 20))
        with torch.no_grad():
            for name, tensor in unet.state_dict().items():
                average[name].lerp_(tensor, 1 - momentum)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        step += 1
        if step % 50 == 0:
            rate_seen = (step - started_at) * arguments.batch / (time.time() - began)
            curve.append(
                {
                    "step": step,
                    "pictures": step * arguments.batch,
                    "loss": running,
                    "eps": squared.mean().item(),
                }
            )
            print("unet", json.dumps(curve[-1]), f"{rate_seen:.0f} pictures/s", flush=True)
        if step % arguments.save_every == 0 or step == total:
            state = {"unet": unet.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
            partial = checkpoint.with_suffix(".partial")
            torch.save({**state, "step": step, "curve": curve}, partial)
            partial.replace(checkpoint)
            _save(average, "unet")
    _write_curve("unet", curve)


def hand_set_encoder(encoder: torch.nn.Module) -> None:
    """TAESD's encoder as block statistics: its blocks pass on what is positive, strided convolutions average 2×2."""
    data = importlib.import_module("coherence_demo.demo.training_data")
    for parameter in encoder.parameters():
        torch.nn.init.zeros_(parameter)
    convolutions = [layer for layer in encoder if isinstance(layer, torch.nn.Conv2d)]
    first, *strided, last = convolutions
    luma = torch.tensor(data.LUMA)
    for colour in range(3):
        first.weight[colour, colour, 1, 1] = 1.0
        for layer in strided:
            layer.weight[colour, colour, 1:, 1:] = 0.25
        last.weight[colour, colour, 1, 1] = data.COLOUR_GAIN
        strided[-1].weight[3, colour, 1:, 1] = 0.5 * luma[colour]  # luma of the left half,
        strided[-1].weight[4, colour, 1:, 2] = 0.5 * luma[colour]  # of the right half
    last.weight[3, 3, 1, 1], last.weight[3, 4, 1, 1] = data.EDGE_GAIN, -data.EDGE_GAIN
    last.bias[:3] = -0.5 * data.COLOUR_GAIN


def train_vae(arguments: argparse.Namespace) -> None:
    """The decoder, on crops around the shapes, from latents with a little noise: it must not paint grain."""
    from comfy.taesd.taesd import TAESD

    shapes = importlib.import_module("coherence_demo.demo.shapes")
    data = importlib.import_module("coherence_demo.demo.training_data")
    torch.manual_seed(arguments.seed)
    vae = TAESD().to(arguments.device)
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.Conv2d.reset_parameters(module)
    with torch.no_grad():
        hand_set_encoder(vae.taesd_encoder)
        vae.vae_scale.fill_(
            0.18215
        )  # SD1.5's latent format: the UNet then sees the encoder's output as it is
    decoder = vae.taesd_decoder
    average = {name: tensor.detach().clone() for name, tensor in decoder.state_dict().items()}
    optimizer = torch.optim.AdamW(decoder.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    step, curve, total = 0, [], arguments.vae_steps
    checkpoint = STATE / "vae.pt"
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=arguments.device, weights_only=True)
        decoder.load_state_dict(saved["decoder"])
        average, step, curve = saved["average"], saved["step"], saved["curve"]
        optimizer.load_state_dict(saved["optimizer"])
    running = None
    while step < total:
        rng = random.Random(arguments.seed * 7_000_003 + step)
        generator = torch.Generator().manual_seed(arguments.seed * 7_000_003 + step)
        pictures, crops, latents = [], 24, []
        for _ in range(crops):
            scene = shapes.random_scene(rng)
            x, y = (
                shapes.COLUMNS[scene.column] + rng.uniform(-8, 8),
                shapes.ROWS[scene.row] + rng.uniform(-8, 8),
            )
            cover = shapes.coverage(
                scene.shape,
                shapes.RADII[scene.size] * rng.uniform(0.85, 1.15),
                torch.tensor([x]),
                torch.tensor([y]),
                angle=rng.uniform(-0.3, 0.3) if rng.random() < 0.5 else 0.0,
            )
            picture = shapes.paint(cover, scene.colour, scene.background)
            left, top = (min(max(int(c / 8) - 4 + rng.randint(-2, 2), 0), 8) for c in (x, y))
            pictures.append(picture[:, top * 8 : top * 8 + 64, left * 8 : left * 8 + 64])
            latents.append(data.encode(picture)[:, :, top : top + 8, left : left + 8])
        target, latent = torch.cat(pictures).movedim(-1, 1), torch.cat(latents)
        level = torch.rand(crops, 1, 1, 1, generator=generator) * 0.12
        noisy = latent + level * torch.randn(latent.shape, generator=generator)
        target, noisy = target.to(arguments.device), noisy.to(arguments.device)
        rate = 2e-3 * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / total))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(torch.device(arguments.device).type, torch.bfloat16):
            painted = decoder(noisy)
        error = painted.float() - target
        loss = error.square().mean() + 0.1 * error.abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        momentum = min(0.998, (step + 1) / (step + 20))
        with torch.no_grad():
            for name, tensor in decoder.state_dict().items():
                average[name].lerp_(tensor, 1 - momentum)
        squared = error.square().mean().item()
        running = squared if running is None else 0.98 * running + 0.02 * squared
        step += 1
        if step % 50 == 0:
            curve.append({"step": step, "psnr": -10 * math.log10(running)})
            print("vae", json.dumps(curve[-1]), flush=True)
        if step % 100 == 0 or step == total:
            partial = checkpoint.with_suffix(".partial")
            state = {"decoder": decoder.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step, "curve": curve}, partial)
            partial.replace(checkpoint)
            whole = {
                **vae.state_dict(),
                **{"taesd_decoder." + name: tensor for name, tensor in average.items()},
            }
            _save(whole, "vae")
    _write_curve("vae", curve)


def _save(weights: dict[str, Tensor], part: str) -> None:
    """Full precision beside the checkpoints, fp16 where the pack ships it."""
    save_file(
        {name: tensor.float().contiguous() for name, tensor in weights.items()}, STATE / f"{part}.safetensors"
    )
    shipped = FOLDER / f"coherence_demo_{part}.safetensors"
    partial = shipped.with_suffix(".partial")
    save_file({name: tensor.half().contiguous() for name, tensor in weights.items()}, partial)
    partial.replace(shipped)


def _write_curve(part: str, curve: list[dict]) -> None:
    (FOLDER / "curves").mkdir(exist_ok=True)
    (FOLDER / "curves" / f"{part}.json").write_text("[\n" + ",\n".join(map(json.dumps, curve)) + "\n]\n")


def _enter(comfyui: Path) -> None:
    sys.path.insert(0, str(comfyui))
    import comfy.options  # noqa: F401  (this script owns the command line)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    pack = FOLDER.parent
    spec = importlib.util.spec_from_file_location(
        "coherence_demo", pack / "__init__.py", submodule_search_locations=[str(pack)]
    )
    assert spec
    sys.modules["coherence_demo"] = importlib.util.module_from_spec(spec)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--parts", nargs="+", default=["tokenizer", "text", "unet", "vae"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--text-steps", type=int, default=400)
    parser.add_argument("--unet-steps", type=int, default=7000)
    parser.add_argument("--vae-steps", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # the zero-initialised layers start with denormal gradients
    STATE.mkdir(exist_ok=True)
    _enter(arguments.comfyui.resolve())
    trainers = {
        "tokenizer": lambda _: train_tokenizer(),
        "text": train_text,
        "unet": train_unet,
        "vae": train_vae,
    }
    for part in arguments.parts:
        trainers[part](arguments)


if __name__ == "__main__":
    main()
