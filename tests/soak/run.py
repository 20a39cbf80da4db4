"""A soak: one server runs random prompts over all workflows, some cancelled, some invalid, and must stay as it was.

    python tests/soak/run.py --comfyui DIR [--prompts 200] [--seed 0] [--minutes M] [--out FOLDER]

Every workflow is run small, with random inputs from the ranges that its nodes state; those for users' models run on
small random ones under the same names. Each workflow runs once to warm up; then one prompt in ten is cancelled at a
random moment and one has an input that is wrong. Every twenty prompts, the plain models draw the same pictures, which
must not differ in a bit; then ComfyUI is told to free its memory, and what its process still holds is read from
within, by a node folder that is put beside the pack for this (``probe``). A failure is clear if it is refused
before it runs, or if the error was raised on purpose: not a KeyError or its like, and no complaint of shapes from the
depths of a library. Run it with the Python of that ComfyUI. The exit code is 1 if something did not hold.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import urllib.error
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from soak.prompts import Draws, Prompt
from soak.record import Record, Run, finished, growths, line_of, refused, report, verdicts

from harness import PACK, command_line, enter, pack  # isort: skip  (it names the pack)

outputs, to_prompt = pack("client.server").outputs, pack("client.workflow").to_prompt
HostError, Host = pack("hosting.errors").HostError, pack("hosting.provision").Host
Server, link_folder = pack("hosting.server").Server, pack("hosting.workspace").link_folder

PROBE = Path(__file__).resolve().parent / "probe"
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
EVERY = 20
"""Prompts between two readings."""
CANCELLED, INVALID = 0.1, 0.1
MOST_SECONDS = 300.0
"""A prompt that takes longer hangs."""


class Soak:
    """A server under random prompts."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.random, self.record = server, Random(seed), Record()
        self._info = server.object_info()
        paths = sorted((PACK / "workflows").glob("*.json"))
        self.draws = {path.stem: Draws(self._prompt_of(path), self._info) for path in paths}

    def run(self, prompts: int, minutes: float) -> None:
        """Warm up, then run until either is over; what ended it early stands in ``record.fault``."""
        end = time.monotonic() + 60 * minutes
        try:
            for name in self.random.sample(sorted(self.draws), len(self.draws)):
                self.record.runs.append(self._one(name, "valid"))
            self._read()
            for count in range(1, prompts + 1):
                if time.monotonic() > end:
                    break
                luck = self.random.random()
                kind = "cancelled" if luck < CANCELLED else "invalid" if luck < CANCELLED + INVALID else "valid"
                self.record.runs.append(self._one(self.random.choice(sorted(self.draws)), kind))
                print(line_of(count, self.record.runs[-1]), flush=True)
                if count % EVERY == 0:
                    self._read()
        except HostError as fault:
            self.record.fault = str(fault)

    def _prompt_of(self, path: Path) -> Prompt:
        prompt = to_prompt(json.loads(path.read_text("utf-8")), self._info)
        linked = {link[0] for node in prompt.values() for link in node["inputs"].values() if isinstance(link, list)}
        # Nodes that wait for the user to connect them lack what they load, and would not run anyway.
        return {k: node for k, node in prompt.items() if k in linked or self._info[node["class_type"]]["output_node"]}

    def _one(self, name: str, kind: str) -> Run:
        draws, change = self.draws[name], ""
        if kind == "invalid":
            prompt, change = draws.invalid(self.random)
        else:
            prompt = draws.valid(self.random)
        cancel_after = self.random.uniform(0, self._usual_seconds(name)) if kind == "cancelled" else None
        start = time.monotonic()
        try:
            answer = self.server.post("/prompt", {"prompt": prompt})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise HostError(f"POST /prompt of {name} ({change}) was answered with {error}") from error
            return refused(name, kind, change, json.loads(error.read()), self._info)
        entry, waited = self._finish(answer["prompt_id"], cancel_after, f"{name} {kind} {change}")
        run = finished(name, kind, change, entry, time.monotonic() - start, waited)
        if answer["node_errors"] and run.outcome == "success":  # a branch was left out, and said so
            return refused(name, kind, change, answer, self._info)
        return run

    def _finish(self, prompt_id: str, cancel_after: float | None, what: str) -> tuple[dict[str, Any], float]:
        """The history's entry, and the seconds since it was cancelled."""
        start, cancelled = time.monotonic(), 0.0
        while not (history := self.server.get(f"/history/{prompt_id}")):
            self.server.require_alive()
            now = time.monotonic()
            if now - start > MOST_SECONDS:
                raise HostError(
                    f"{what} did not end within {MOST_SECONDS:.0f} s. The log ends:\n{self.server.log_tail()}"
                )
            if cancel_after is not None and not cancelled and now - start >= cancel_after:
                self.server.post("/interrupt", {"prompt_id": prompt_id})
                cancelled = time.monotonic()
            time.sleep(0.02)
        return history[prompt_id], time.monotonic() - cancelled if cancelled else 0.0

    def _usual_seconds(self, name: str) -> float:
        taken = [run.seconds for run in self.record.runs if run.workflow == name and run.outcome == "success"]
        return statistics.median(taken) if taken else 2.0

    def _read(self) -> None:
        """Draw the plain pictures, beside whatever models the last prompts left; free the memory; read it."""
        answer = self.server.post("/prompt", {"prompt": plain_pictures()})
        entry, _ = self._finish(answer["prompt_id"], None, "the plain pictures")
        if entry["status"]["status_str"] != "success":
            raise HostError(f"the plain pictures failed: {entry['status']['messages'][-1]}")
        if {"sample_sd15", "sample_demo"} & set(dict(entry["status"]["messages"])["execution_cached"]["nodes"]):
            raise HostError("the plain pictures are those drawn before: their samplers did not run")
        files = outputs(entry)
        self.record.pictures.append([sha256(self.server.download(file)).hexdigest() for file in files])
        self.server.post("/free", {"unload_models": True, "free_memory": True})
        for colour in (0x336699, 0xEE8800):  # ComfyUI frees between prompts: surely so when a second one has run
            self._finish(self.server.post("/prompt", {"prompt": one_colour(colour)})["prompt_id"], None, "one colour")
        self.server.post("/history", {"clear": True})
        self.record.readings.append({"prompts": len(self.record.runs)} | self._memory())

    def _memory(self) -> dict[str, int]:
        """What is held once ComfyUI has freed what it can, which is when two readings in a row agree."""
        before: dict[str, int] = {}
        for _ in range(60):
            now = self.server.get("/soak/memory")
            if before and now["tensors"] == before["tensors"] and abs(now["resident"] - before["resident"]) < 2**20:
                return now
            before = now
            time.sleep(1.0)
        return before


def plain_pictures() -> Prompt:
    """ComfyUI's own nodes alone, on a checkpoint and on the demo model."""
    prompt: Prompt = {
        "load_sd15": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "load_demo": {"class_type": "CoherenceDemoModel", "inputs": {"kind": "image"}},
    }
    for model in ("sd15", "demo"):
        load, latent, picture = f"load_{model}", f"latent_{model}", {"width": 128, "height": 128, "batch_size": 2}
        prompt |= {
            latent: {"class_type": "EmptyLatentImage", "inputs": picture},
            f"sample_{model}": {
                "class_type": "KSampler",
                "inputs": {"model": [load, 0], "positive": [f"yes_{model}", 0], "negative": [f"no_{model}", 0]}
                | {"latent_image": [latent, 0], "seed": 1, "steps": 3, "cfg": 5.0, "denoise": 1.0}
                | {"sampler_name": "euler", "scheduler": "normal"},
            },
            f"save_{model}": {
                "class_type": "SaveLatent",
                "inputs": {"samples": [f"sample_{model}", 0], "filename_prefix": f"plain_{model}"},
            },
        }
        for name, text in (("yes", "a red circle on a white background"), ("no", "")):
            prompt[f"{name}_{model}"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [load, 1], "text": text}}
    return prompt


def one_colour(colour: int) -> Prompt:
    """A prompt that costs next to nothing."""
    image = {"width": 64, "height": 64, "batch_size": 1, "color": colour}
    return {
        "image": {"class_type": "EmptyImage", "inputs": image},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["image", 0]}},
    }


def soak(comfyui: Path, prompts: int, seed: int, minutes: float) -> Record:
    """Start a server with the pack, the probe and the small models; and soak it."""
    from tiny_models import TinyModels
    from tiny_models.stand_ins import STAND_INS

    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        base, models = Path(folder, "server"), TinyModels(Path(folder, "models"))
        models.folder.mkdir()
        (base / "custom_nodes").mkdir(parents=True)
        link_folder(base / "custom_nodes" / "soak_probe", PROBE)
        for name in STAND_INS:
            path = base / "models" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(models.stand_in(name))
        with Server(Host(comfyui, Path(sys.executable), is_ours=False), base) as server:
            soaked = Soak(server, seed)
            soaked.run(prompts, minutes)
            return soaked.record


def main() -> int:
    parser = command_line(
        __doc__, "minutes", prompts=(200, "beside one of each workflow to warm up"), seed=(0, "of what is drawn")
    )
    parser.set_defaults(minutes=120.0, out=Path("coherence-report", "soak"))
    arguments = parser.parse_args()
    enter(arguments)
    record = soak(arguments.comfyui.resolve(), arguments.prompts, arguments.seed, arguments.minutes)
    text = report(record)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = {"seed": arguments.seed, "verdicts": verdicts(record), "growth": growths(record), **asdict(record)}
    (arguments.out / "soak.json").write_text(json.dumps(figures, indent=1, allow_nan=False), "utf-8")
    (arguments.out / "soak.md").write_text(text + "\n", "utf-8")
    return 0 if all(verdicts(record).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
