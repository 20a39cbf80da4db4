"""What a report runs: every study and benchmark, with its arguments for each budget."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import costs, ei2, ge_adapter, ie_adapt, zs2
from .findings import Findings

PAPERS = {
    "zs2": ("ZS²", "Fine-gained Zero-shot Video Sampling", "arXiv 2407.21475"),
    "ie": ("IE-Adapt", "Understanding Attention Mechanism in Video Diffusion Models", ""),
    "ge": ("GE-Adapter", "Enhancing Low-Cost Video Editing with Lightweight Adaptors and Temporal-Aware Inversion", ""),
    "ei2": ("EI²", "Towards Consistent Video Editing with Text-to-Image Diffusion Models", "NeurIPS 2023"),
}
"""Key → name, title, where it appeared."""
COSTS = "costs"
BUDGETS = ("quick", "full")
ENOUGH = 0.7
"""Of its limit, after which an experiment begins nothing more."""


@dataclass(frozen=True)
class Experiment:
    """A script, and how it is run and read. In arguments ``{out}`` is the experiment's folder, and ``{minutes}`` are
    those after which it is to begin nothing more."""

    name: str
    paper: str
    """One of ``PAPERS``, or ``COSTS``."""
    title: str
    script: str
    quick: str
    full: str
    minutes: tuple[float, float]
    """After which it is stopped, for either budget."""
    results: str
    """The file with the figures, in its folder."""
    read: Callable[[Any], Findings]
    setting: str
    """What it measured, and from which seeds, in words."""
    pictures: dict[str, str] = field(default_factory=dict)
    """File → what it shows."""
    is_alone: bool = False
    """It takes times: nothing else runs beside it."""
    in_folder_of: str = ""
    """Another experiment, whose folder it goes on with."""
    needs_comfyui: bool = True

    def arguments(self, budget: str, comfyui: Path, out: Path, pace: float = 1.0) -> list[str]:
        minutes = f"{ENOUGH * self.limit(budget, pace) / 60:.3g}"
        text = (self.quick, self.full)[BUDGETS.index(budget)]
        words = [word.format(out=out, minutes=minutes) for word in shlex.split(text)]
        return ["--comfyui", str(comfyui), *words] if self.needs_comfyui else words

    def limit(self, budget: str, pace: float = 1.0) -> float:
        """Seconds; ``pace`` times as many as on a quiet machine."""
        return 60 * pace * self.minutes[BUDGETS.index(budget)]

    def findings(self, out: Path) -> Findings:
        """What came out, of the file that it wrote to ``out``."""
        text = (out / self.results).read_text("utf-8")
        is_lines = self.results.endswith(".jsonl")
        return self.read([json.loads(line) for line in text.splitlines()] if is_lines else json.loads(text))


EXPERIMENTS = (
    Experiment(
        "zs2_study",
        "zs2",
        "Noises and attentions over 16 frames",
        "zs2_study.py",
        "--out {out} --scenes 6 --rounds 0 --minutes {minutes}",
        "--out {out} --scenes 24 --rounds 0",
        (8, 600),
        "records.jsonl",
        zs2.study,
        "Clips of 16 frames, 8 steps; one seed a prompt, from 0; half of the prompts leave size and place open.",
        {
            "zs2_study.png": "Frame by frame, what clips obey, their form and grain; below, sweeps of μ and λ.",
            "zs2_study.jpg": "Two prompts in several ways, every second frame.",
        },
    ),
    Experiment(
        "ei2_study",
        "ei2",
        "One clip tuned, then edited",
        "ei2_study.py",
        "--out {out} --clips 6 --frames 4 --steps 30 --minutes {minutes}",
        "--out {out} --clips 8 --frames 8",
        (7, 600),
        "ei2_study/figures.json",
        ei2.edits,
        "Rendered clips, numbered from 0, which is the seed of tuning; three edits each.",
        {
            "ei2_study/ei2_study.png": "Every figure, by what was tuned and what was changed.",
            "ei2_study/ei2_study.jpg": "Clips and their edits.",
        },
    ),
    Experiment(
        "ie_guidance_study",
        "ie",
        "Guidances",
        "ie_guidance_study.py",
        "--out {out} --scenes 12 --settings usual clips --minutes {minutes}",
        "--out {out} --scenes 24",
        (7, 600),
        "figures.json",
        ie_adapt.guidance,
        "Stills of 8 steps, two a prompt; of every second prompt a clip of 6 frames; one seed a prompt, from 0.",
        {
            "ie_guidance_study.png": "Differences from plain CFG against λ.",
            "ie_guidance_study.jpg": "One line a prompt: plain CFG, and every guidance.",
        },
    ),
    Experiment(
        "ge_adapter_study",
        "ge",
        "Adapters",
        "ge_adapter_study.py",
        "--json {out}/figures.json --out {out} --clips 6 --trained-on 8 --steps 60 --minutes {minutes} "
        "--variants 'no shared tokens' 'no temporal loss'",
        "--json {out}/figures.json --out {out} --minutes {minutes}",
        (8, 600),
        "figures.json",
        ge_adapter.study,
        "Trained on rendered clips of 4 frames with seeds from 10000, measured on others with seeds from 0.",
        {"ge_adapter_study.png": "Differences from no adapter."},
    ),
    Experiment(
        "editing_study",
        "ie",
        "Editing",
        "editing_study.py",
        "--clips 3 --json {out}/figures.json --out {out} --minutes {minutes}",
        "--clips 12 --json {out}/figures.json --out {out}",
        (6, 600),
        "figures.json",
        ie_adapt.editing,
        "Clips of 4 frames, rendered and inverted, or drawn by the model; seeds from 0 for either.",
        {
            "editing_study.png": "What an edit obeys and what it keeps, by what is replaced.",
            "editing_study.jpg": "A clip of each kind, edited in several ways.",
        },
    ),
    Experiment(
        "perturbation_sweep",
        "ie",
        "Perturbation of every layer",
        "perturbation_sweep.py",
        "--out {out} --scenes 6",
        "--out {out} --scenes 16 --halves",
        (4, 300),
        "perturbation_sweep.json",
        ie_adapt.sweep,
        "Clips of 3 frames, 8 steps; one seed a prompt, from 0.",
        {
            "perturbation_sweep.png": "What I and U do in each layer, and against the entropy of its map.",
            "perturbation_sweep.jpg": "Two prompts, every layer replaced by I and by U.",
        },
    ),
    Experiment(
        "covariate_shift",
        "ei2",
        "Covariate shift",
        "covariate_shift.py",
        "--out {out} --clips 6 --frames 4 --steps 30 --minutes {minutes}",
        "--out {out} --clips 6 --frames 8",
        (7, 600),
        "covariate_shift/figures.json",
        ei2.shifts,
        "The same clips and weights; three noise levels with two noises each, seeds 10000 and 10001.",
        {"covariate_shift/covariate_shift.png": "Shift of mean and covariance by layer."},
        in_folder_of="ei2_study",
    ),
    Experiment(
        "zs2_compare",
        "zs2",
        "ZS² beside plain sampling",
        "zs2_compare.py",
        "--clips 6 --steps 8 --json {out}/figures.json --sheet {out}/sheet.jpg",
        "--clips 12 --json {out}/figures.json --sheet {out}/sheet.jpg",
        (4, 300),
        "figures.json",
        zs2.compare,
        "Clips of 8 frames, 8 steps (20 in the full budget), λ 0.02, μ 0.98; seeds from 0, each scene by two prompts.",
        {"sheet.jpg": "Plain sampling above, ZS² below."},
    ),
    Experiment(
        "ie_guidance_study_video",
        "ie",
        "Guidances on the video model",
        "ie_guidance_study.py",
        "",
        "--out {out} --kind video --scenes 24",
        (0, 600),
        "figures.json",
        ie_adapt.guidance,
        "Clips of 16 frames of the demo’s video model; one seed a prompt, from 0.",
        {"ie_guidance_study_video.jpg": "The last frame of each clip."},
    ),
    Experiment(
        "editing_memory",
        COSTS,
        "Memory of an edit",
        "editing_memory.py",
        "--frames 8 --json {out}/figures.json",
        "--frames 8 16 32 64 --json {out}/figures.json",
        (1, 30),
        "figures.json",
        costs.edits,
        "The tensors that live at once in two steps at 128 pixels.",
    ),
    Experiment(
        "guidance",
        COSTS,
        "A guided step",
        "guidance.py",
        "--out {out} --rounds 3 --side 16 --frames 4",
        "--out {out} --rounds 5",
        (2, 120),
        "guidance_cost.json",
        costs.guided,
        "Medians of processor time of one thread, ways taking turns.",
        {"guidance_cost.png": "Cost of a step in that of plain CFG; black lines: theory."},
        is_alone=True,
    ),
    Experiment(
        "step_costs",
        "zs2",
        "A step with each attention",
        "zs2_study.py",
        "--out {out} --scenes 0 --rounds 6",
        "--out {out} --scenes 0 --rounds 20",
        (1.5, 120),
        "cost.json",
        zs2.step_costs,
        "Medians of processor time of one thread, attentions taking turns.",
        is_alone=True,
    ),
    Experiment(
        "entropy",
        COSTS,
        "Entropy of attention",
        "entropy.py",
        "--sizes 4096 --repeats 2 --json {out}/figures.json",
        "--json {out}/figures.json",
        (1, 60),
        "figures.json",
        costs.entropy,
        "Medians of the time of one thread; fp32, 8 heads of 64 channels, seed 0.",
        is_alone=True,
        needs_comfyui=False,
    ),
    Experiment(
        "noise_search",
        COSTS,
        "The search of dependency noise",
        "noise_search.py",
        "--rounds 7 --json {out}/figures.json",
        "--json {out}/figures.json",
        (0.5, 30),
        "figures.json",
        costs.noise,
        "64 frames of 4×64×64, seed 0; jobs take turns.",
        is_alone=True,
        needs_comfyui=False,
    ),
    Experiment(
        "long_clip",
        COSTS,
        "A clip in chunks",
        "long_clip.py",
        "--frames 32 --per-batch 4 8 --size 128 --repeats 1 --json {out}/figures.json",
        "--json {out}/figures.json",
        (1, 120),
        "figures.json",
        costs.chunks,
        "Two steps; memory of the tensors that live at once.",
        is_alone=True,
    ),
    Experiment(
        "inversion",
        COSTS,
        "Inversion and its filter",
        "inversion.py",
        "--clips 1 --frames 4 --steps 25 --latents 1 --out {out}",
        "--clips 4 --out {out}",
        (1, 240),
        "inversion.json",
        costs.inversion,
        "Rendered clips, numbered from 0; processor time of one thread.",
        is_alone=True,
    ),
)
