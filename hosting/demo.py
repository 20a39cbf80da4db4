"""The demo: a prompt becomes a coherent clip through the real server. Runs in the host's Python."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from ..client.clip import look
from ..client.server import outputs
from ..client.workflow import Json, read_workflow, to_prompt
from .errors import HostError
from .progress import ProgressBar
from .provision import PACK_NAME, Host
from .server import Server
from .tools import say

_SEEDS = ("seed", "noise_seed")


def set_seed(prompt: Json, seed: int) -> None:
    """Set every seed of a prompt (API format) that is no link."""
    for node in prompt.values():
        node["inputs"] |= {name: seed for name in _SEEDS if isinstance(node["inputs"].get(name), int)}


def prompt_text_node(prompt: Json) -> Json | None:
    """The node whose text says what the clip shows: the nearest one upstream of a positive conditioning."""
    for node in prompt.values():
        for name in ("positive", "conditioning"):
            if isinstance(node["inputs"].get(name), list):
                for upstream in _upstream(prompt, node["inputs"][name][0]):
                    if isinstance(upstream["inputs"].get("text"), str):
                        return upstream
    return None


def _upstream(prompt: Json, node_id: str) -> Iterator[Json]:
    """A node and all that it depends on, nearest first."""
    queue, seen = [node_id], set()
    while queue:
        current = queue.pop(0)
        if current in seen or current not in prompt:
            continue
        seen.add(current)
        yield prompt[current]
        queue += [value[0] for value in prompt[current]["inputs"].values() if isinstance(value, list)]


def demo(host: Host, arguments: argparse.Namespace) -> int:
    """Run a workflow, save what it made, and tell the user about it."""
    workflow = read_workflow(arguments.workflow)
    arguments.output.mkdir(parents=True, exist_ok=True)
    say("starting ComfyUI")
    with Server(host, port=arguments.port) as server:
        prompt = to_prompt(workflow, server.object_info())
        if arguments.seed is not None:
            set_seed(prompt, arguments.seed)
        text_node = prompt_text_node(prompt)
        if arguments.prompt is not None:
            if text_node is None:
                raise HostError("The workflow has no text that leads to a positive conditioning, for --prompt.")
            text_node["inputs"]["text"] = arguments.prompt
        started = time.monotonic()
        with ProgressBar({node_id: node["_meta"]["title"] for node_id, node in prompt.items()}) as bar:
            entry = server.queue(prompt, bar.update)
        seconds = time.monotonic() - started
        saved = _save(server, entry, arguments.output)
    measured = _look_at(saved)
    if text_node:
        print(f"Prompt:  {text_node['inputs']['text']}")
    for path in saved:
        print(f"Saved:   {path.absolute()}")
    print(f"Clip:    {measured['frames']} frames at {measured['fps']:.3g} per second, made in {seconds:.0f} s")
    if measured["temporal_consistency"] is not None:
        print(f"Temporal consistency (mean SSIM of neighbouring frames): {measured['temporal_consistency']:.4f}")
    template = f"/?template={arguments.workflow.stem}&source={PACK_NAME}"
    print(f"To open the graph in your browser: python3 host.py serve, then its address with {template}")
    return 0


def _save(server: Server, entry: dict[str, Any], folder: Path) -> list[Path]:
    paths = []
    for file in outputs(entry):
        path = folder / Path(file["filename"]).name
        path.write_bytes(server.download(file))
        paths.append(path)
    return paths


def _look_at(saved: list[Path]) -> Json:
    """Write the contact sheet, and the MP4 if the workflow made none, beside the clip; measure it."""
    clip = next((path for path in saved if path.suffix == ".webp"), None)
    if clip is None:
        raise HostError("The workflow saved no animated WEBP: add a SaveAnimatedWEBP node to it.")
    made = [clip.with_name(f"{clip.stem}_sheet.png")]
    if not any(path.suffix == ".mp4" for path in saved):
        made.append(clip.with_suffix(".mp4"))
    try:
        measured = look(clip, *made)
    except (OSError, ValueError, av.FFmpegError) as error:
        raise HostError(f"The clip {clip} was saved, but looking at it failed: {error}") from error
    saved += made
    return measured
