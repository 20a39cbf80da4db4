"""Prompts for batches, of core nodes and the pack's, without a model; and how to run batch.py in a process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from coherence.hosting.provision import PACK

BATCH_PY = PACK / "batch.py"


def every_output(video: str) -> dict[str, Any]:
    """A drawn clip as pictures, previews, WEBP, video and figures; and a loaded video, saved again."""
    size = {"shape": "circle", "colour": "red", "background": "white", "frames": 4, "size": 64, "seed": 0}
    webp = {"filename_prefix": "all/clip", "fps": 8.0, "lossless": True, "quality": 80, "method": "default"}
    video_file = {"filename_prefix": "all/video", "format": "auto", "codec": "auto"}
    return {
        "clip": {"class_type": "CoherenceDemoClip", "inputs": size | {"motion": "slide"}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["clip", 0], "filename_prefix": "all/picture"}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["clip", 0]}},
        "webp": {"class_type": "SaveAnimatedWEBP", "inputs": webp | {"images": ["clip", 0]}},
        "measure": {"class_type": "TemporalConsistency", "inputs": {"images": ["clip", 0]}},
        "text": {
            "class_type": "PreviewAny",
            "inputs": {"source": ["measure", 0]},
            "_meta": {"title": "How steady"},
        },
        "load": {"class_type": "LoadVideo", "inputs": {"file": video}},
        "video": {"class_type": "SaveVideo", "inputs": video_file | {"video": ["load", 0]}},
    }


def slow(side: int = 1024, copies: int = 10) -> dict[str, Any]:
    """Half a second's work for one core, all of it in core nodes; a picture of the colour comes out."""
    empty = {"width": 64, "height": 64, "batch_size": copies, "color": 0}
    larger = {"image": ["1", 0], "upscale_method": "lanczos", "width": side, "height": side, "crop": "disabled"}
    smaller = {"image": ["2", 0], "upscale_method": "lanczos", "width": 32, "height": 32, "crop": "disabled"}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty, "_meta": {"title": "Colour"}},
        "2": {"class_type": "ImageScale", "inputs": larger},
        "3": {"class_type": "ImageScale", "inputs": smaller},
        "4": {"class_type": "ImageFromBatch", "inputs": {"image": ["3", 0], "batch_index": 0, "length": 1}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "slow"}},
    }


def write(folder: Path, prompt: dict[str, Any], table: Any) -> list[str]:
    """Write a prompt and a table; returns the arguments of batch.py that name them and a folder for results."""
    (folder / "workflow.json").write_text(json.dumps(prompt))
    (folder / "table.json").write_text(json.dumps(table))
    return [str(folder / "workflow.json"), str(folder / "table.json"), "--out", str(folder / "out")]


def start(*arguments: str, python: tuple[str, ...] = (sys.executable,), **env: str) -> "subprocess.Popen[str]":
    """batch.py in a process of its own."""
    command = [*python, str(BATCH_PY), *arguments]
    environment = os.environ | env
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def lines(folder: Path, event: str = "finished") -> list[dict[str, Any]]:
    """The manifest's whole lines of an event."""
    path = folder / "out" / "manifest.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
    return [line for line in map(json.loads, whole) if line["event"] == event]
