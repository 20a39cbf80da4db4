"""What the pictures of the help pages are made of: prompts for the demo model, strips of frames, and charts."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

PACK = Path(__file__).resolve().parent.parent
sys.path += [str(PACK), str(PACK / "benchmarks")]

import _enter_pack  # noqa: E402

_enter_pack.enter()
from coherence.hosting.provision import Host  # noqa: E402
from coherence.hosting.server import Server  # noqa: E402
from figures import PICTURES, as_webp, font, slim  # noqa: E402

Link = list[Any]
Frames = list[Image.Image]
SIDE, GAP, LABEL, COLUMNS = 80, 4, 148, 8


@dataclass(frozen=True)
class Node:
    """A node of a prompt; ``node[0]`` is the link to its first output."""

    key: str

    def __getitem__(self, output: int) -> Link:
        return [self.key, output]


class Scene:
    """A prompt for the demo model in the making: what every clip of it shares, and the clips that it shows.

    Args:
        text: The positive prompt; the negative one is empty.
        frames: Of every clip.
        kind: Of the demo model.
    """

    def __init__(
        self, text: str, frames: int = COLUMNS, steps: int = 12, seed: int = 1, cfg: float = 5.0, kind: str = "shapes"
    ) -> None:
        self.prompt: dict[str, Any] = {}
        self.cfg = cfg
        load = self.add("CoherenceDemoModel", kind=kind)
        self.model, self.text_encoder, self.vae = load[0], load[1], load[2]
        self.positive, self.negative = self.encode(text), self.encode("")
        self.latent = self.add("EmptyLatentImage", width=128, height=128, batch_size=frames)[0]
        self.noise = self.add("RandomNoise", noise_seed=seed)[0]
        self.sigmas = self.add("BasicScheduler", model=self.model, scheduler="karras", steps=steps, denoise=1.0)[0]

    def add(self, type_: str, **inputs: Any) -> Node:
        key = str(len(self.prompt))
        self.prompt[key] = {"class_type": type_, "inputs": inputs}
        return Node(key)

    def show(self, name: str, images: Link) -> None:
        """``run`` returns these images as ``name``."""
        self.prompt[name] = {"class_type": "PreviewImage", "inputs": {"images": images}}

    def encode(self, text: str) -> Link:
        return self.add("CLIPTextEncode", clip=self.text_encoder, text=text)[0]

    def dependency_noise(self, kl: float, seed: int = 1, **inputs: Any) -> Link:
        settings = {"kl_schedule": "", "divergence": "generalised", "solver": "bisection", "line_iterations": 15}
        return self.add("DependencyNoise", noise_seed=seed, kl=kl, random_candidates=1, **{**settings, **inputs})[0]

    def sample(self, sampler: str | Link = "dpmpp_2m", cfg: float | None = None, **changed: Link) -> Link:
        """The latent of a clip; ``changed`` takes the place of what the scene shares: model, noise, latent..."""
        given = {
            name: changed.get(name, getattr(self, name))
            for name in ("model", "positive", "negative", "noise", "latent", "sigmas")
        }
        guided = {name: given[name] for name in ("model", "positive", "negative")}
        guider = self.add("CFGGuider", cfg=self.cfg if cfg is None else cfg, **guided)[0]
        select = self.add("KSamplerSelect", sampler_name=sampler)[0] if isinstance(sampler, str) else sampler
        return self.add(
            "SamplerCustomAdvanced",
            noise=given["noise"],
            guider=guider,
            sampler=select,
            sigmas=given["sigmas"],
            latent_image=given["latent"],
        )[0]

    def decode(self, name: str, latent: Link) -> Link:
        images = self.add("VAEDecode", samples=latent, vae=self.vae)[0]
        self.show(name, images)
        return images

    def clip(self, name: str, **changed: Any) -> Link:
        """A clip that is sampled and shown; returns its images."""
        return self.decode(name, self.sample(**changed))

    def demo_clip(
        self, name: str, shape: str, colour: str, background: str, motion: str, seed: int, frames: int = COLUMNS
    ) -> Node:
        """A rendered clip, shown: its images and masks."""
        settings = {"shape": shape, "colour": colour, "background": background, "motion": motion, "seed": seed}
        clip = self.add("CoherenceDemoClip", frames=frames, size=128, **settings)
        self.show(name, clip[0])
        return clip

    def invert(self, latent: Link, refine_iterations: int = 2, **changed: Any) -> Link:
        """The noise of a clip, by Bilateral DDIM Invert."""
        settings = {"mode": "none", "kernel_size": 5, "sigma_spatial": 1.0, "sigma_intensity": 1.0, "filter_until": 0.5}
        settings |= {"model": self.model, "positive": self.positive, "sigmas": self.sigmas, **changed}
        return self.add(
            "BilateralDDIMInvert",
            cfg=1.0,
            latent_image=latent,
            restandardise=True,
            seed=0,
            refine_iterations=refine_iterations,
            **settings,
        )[0]

    def run(self, server: Server) -> dict[str, Frames]:
        """All that is shown, by name, in the order it was added."""
        results = server.queue(self.prompt)["outputs"]
        shown = (name for name, node in self.prompt.items() if node["class_type"] == "PreviewImage")
        return {name: [_open(server.download(file)) for file in results[name]["images"]] for name in shown}


def start(comfyui: Path) -> Server:
    """Of a ComfyUI, with this Python, which is its own."""
    return Server(Host(comfyui.resolve(), Path(sys.executable), is_ours=False))


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def strips(name: str, rows: Mapping[str, Frames], label: int = LABEL) -> None:
    """``name``.webp, the smallest form that pages and GitHub show: of each of ``rows`` its name, ``label`` pixels wide,
    and a row of frames."""
    sheet = Image.new("RGB", (label + COLUMNS * (SIDE + GAP), len(rows) * (SIDE + GAP) - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (text, frames) in enumerate(rows.items()):
        y = number * (SIDE + GAP)
        pen.multiline_text((GAP, y + SIDE // 2), text, fill="#1f2933", font=font(13), anchor="lm", spacing=5)
        for column, frame in enumerate(frames[:COLUMNS]):
            small = frame.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (label + column * (SIDE + GAP), y))
    sheet.save(PICTURES / f"{name}.webp", quality=50, method=6)


def chart(name: str, picture: Image.Image) -> None:
    """``name``.webp."""
    path = PICTURES / f"{name}.png"
    picture.save(path)
    slim(path)
    as_webp(path)
