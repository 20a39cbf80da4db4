"""What a report runs: every study and benchmark, with its arguments for each budget."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import covariate_shift
import editing_memory
import editing_study
import ei2_ablation
import ei2_study
import entropy
import ge_adapter_study
import guidance
import ie_guidance_study
import inversion
import long_clip
import methods_study
import noise_convergence
import noise_search
import perturbation_sweep
import propositions
import zs2_compare
import zs2_study
from claims import Claim, Cost, Table
from harness import FIGURES, RECORDS, TOOK

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
    """A script, and how it is run and read. In arguments ``{minutes}`` are those after which it is to begin nothing
    more."""

    read: Callable[[Any], Sequence[Claim | Cost | Table]]
    """What the script says of its figures: a function of it."""
    paper: str
    """One of ``PAPERS``, or ``COSTS``."""
    title: str
    quick: str
    full: str
    minutes: tuple[float, float]
    """After which it is stopped, for either budget."""
    setting: str
    """What it measured, and from which seeds, in words."""
    pictures: dict[str, str] = field(default_factory=dict)
    """File → what it shows."""
    results: str = RECORDS
    """The file with the figures, in its folder."""
    is_alone: bool = False
    """It takes times: nothing else runs beside it."""
    in_folder_of: str = ""
    """Another experiment, whose folder it goes on with."""
    needs_comfyui: bool = True
    called: str = ""
    """Where it is not called as its script."""
    counts_in_part: bool = False
    """What it wrote before it failed or ran out of time is shown, too: each of its records stands for itself."""
    counted_by: str = ""
    """The option that says how many scenes or clips it has: more decide more claims."""
    units_of_one: float = 1.0
    """Units of a claim that each of these gives."""
    further: tuple[str, ...] = ()
    """Words after all others; on the page, of a file only its name."""
    needs: str = ""
    """Another experiment, before it: without what that found, it is not begun."""

    @property
    def script(self) -> str:
        """Without its suffix."""
        return self.read.__module__

    @property
    def name(self) -> str:
        return self.called or self.script

    def arguments(self, budget: str, comfyui: Path, out: Path, pace: float = 1.0) -> list[str]:
        minutes = f"{ENOUGH * self.limit(budget, pace) / 60:.3g}"
        text = self._text(budget)
        words = ["--out", str(out), *shlex.split(text.format(minutes=minutes)), *self.further]
        return ["--comfyui", str(comfyui), *words] if self.needs_comfyui else words

    def command(self, budget: str) -> str:
        """As it can be typed."""
        words = self.arguments(budget, Path("DIR"), Path("FOLDER"))
        words = [Path(word).name if Path(word).is_absolute() else word for word in words]
        return shlex.join(["python", f"benchmarks/{self.script}.py", *words])

    def limit(self, budget: str, pace: float = 1.0) -> float:
        """Seconds; ``pace`` times as many as on a quiet machine."""
        return 60 * pace * self.minutes[BUDGETS.index(budget)]

    @property
    def has_records(self) -> bool:
        """Lines that can be gone on with, rather than figures written at once."""
        return self.results.endswith(".jsonl")

    def findings(self, out: Path) -> list[Claim | Cost | Table]:
        """What came out, of the file that it wrote to ``out``."""
        return [*self.read(self._results(out))]

    def processor(self, out: Path) -> float:
        """Seconds of processors that its records took, in all runs."""
        return sum(record.get(TOOK, 0.0) for record in self._results(out)) if self.has_records else 0.0

    def _results(self, out: Path) -> Any:
        text = (out / self.results).read_text("utf-8")
        # the last line may be cut off where it was stopped
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in lines] if self.has_records else json.loads(text)

    def count(self, budget: str) -> int:
        """Of scenes or clips, as its arguments say; 0 where nothing counts them."""
        found = re.search(rf"{self.counted_by} (\d+)", self._text(budget)) if self.counted_by else None
        return int(found[1]) if found else 0

    def grown(self, budget: str, count: int) -> Experiment:
        """With so many scenes or clips, and as much more time."""
        before, place = self.count(budget), BUDGETS.index(budget)
        texts, minutes = [self.quick, self.full], [*self.minutes]
        texts[place] = texts[place].replace(f"{self.counted_by} {before}", f"{self.counted_by} {count}")
        minutes[place] *= count / before
        return replace(self, quick=texts[0], full=texts[1], minutes=(minutes[0], minutes[1]))

    def _text(self, budget: str) -> str:
        return (self.quick, self.full)[BUDGETS.index(budget)]


EXPERIMENTS = (
    Experiment(
        zs2_study.claims,
        "zs2",
        "Noises and attentions over 16 frames",
        "--scenes 6 --rounds 0 --asked --minutes {minutes}",
        "--scenes 24 --rounds 0 --minutes {minutes}",
        (8, 600),
        "Clips of 16 frames, 8 steps; one seed a prompt, from 0; half of the prompts leave size and place open.",
        {
            "zs2_study.png": "Frame by frame, what clips obey, their form and grain; below, sweeps of μ and λ.",
            "zs2_study.jpg": "Two prompts in several ways, every second frame.",
        },
        counts_in_part=True,
        counted_by="--scenes",
    ),
    Experiment(
        ei2_study.claims,
        "ei2",
        "One clip tuned, then edited",
        "--clips 6 --frames 4 --steps 30 --minutes {minutes}",
        "--clips 8 --frames 8 --minutes {minutes}",
        (7, 600),
        "Rendered clips, numbered from 0, which is the seed of tuning; three edits each.",
        {
            "ei2_study/ei2_study.png": "Every figure, by what was tuned and what was changed.",
            "ei2_study/ei2_study.jpg": "Clips and their edits.",
        },
        results="ei2_study/" + RECORDS,
        counts_in_part=True,
        counted_by="--clips",
    ),
    Experiment(
        ie_guidance_study.claims,
        "ie",
        "Guidances",
        "--scenes 12 --settings usual clips --minutes {minutes}",
        "--scenes 24 --minutes {minutes}",
        (7, 600),
        "Stills of 8 steps, two a prompt; of every second prompt a clip of 6 frames; one seed a prompt, from 0.",
        {
            "ie_guidance_study.png": "Differences from plain CFG against λ.",
            "ie_guidance_study.jpg": "One line a prompt: plain CFG, and every guidance.",
        },
        results=FIGURES,
        counts_in_part=True,
        counted_by="--scenes",
    ),
    Experiment(
        ge_adapter_study.claims,
        "ge",
        "Adapters",
        "--clips 6 --trained-on 8 --steps 60 --minutes {minutes} --variants 'no shared tokens' 'no temporal loss'",
        "--clips 12 --minutes {minutes}",
        (8, 600),
        "Trained on rendered clips of 4 frames with seeds from 10000, measured on others with seeds from 0.",
        {"ge_adapter_study.png": "Differences from no adapter."},
        counts_in_part=True,
        counted_by="--clips",
    ),
    Experiment(
        methods_study.claims_of_adapters,
        "ge",
        "Adapters inside other methods",
        "",
        "--kind adapters --clips 12",
        (0, 600),
        "Rendered clips of 8 frames, 8 steps; seeds from 0, the adapter trained on others with seeds from 10000.",
        {
            "methods_study_adapters.png": "Every figure, by method and what of GE-Adapter is in it.",
            "methods_study_adapters.jpg": "The first clips, edited by every method.",
        },
        called="methods_study_adapters",
    ),
    Experiment(
        editing_study.claims,
        "ie",
        "Editing",
        "--clips 3 --minutes {minutes}",
        "--clips 12 --minutes {minutes}",
        (6, 600),
        "Clips of 4 frames, rendered and inverted, or drawn by the model; seeds from 0 for either.",
        {
            "editing_study.png": "What an edit obeys and what it keeps, by what is replaced.",
            "editing_study.jpg": "A clip of each kind, edited in several ways.",
        },
        counts_in_part=True,
        counted_by="--clips",
        units_of_one=2,
    ),
    Experiment(
        perturbation_sweep.claims,
        "ie",
        "Perturbation of every layer",
        "--scenes 6",
        "--scenes 16 --halves",
        (3, 300),
        "Clips of 3 frames, 8 steps; one seed a prompt, from 0.",
        {
            "perturbation_sweep.png": "What I and U do in each layer, and against the entropy of its map.",
            "perturbation_sweep.jpg": "Two prompts, every layer replaced by I and by U.",
        },
        results=FIGURES,
        counted_by="--scenes",
    ),
    Experiment(
        covariate_shift.claims,
        "ei2",
        "Covariate shift",
        "--clips 6 --frames 4 --steps 30 --minutes {minutes}",
        "--clips 6 --frames 8 --minutes {minutes}",
        (7, 600),
        "The same clips and weights; three noise levels with two noises each, seeds 10000 and 10001.",
        {"covariate_shift/covariate_shift.png": "Shift of mean and covariance by layer."},
        results="covariate_shift/" + RECORDS,
        in_folder_of="ei2_study",
        counts_in_part=True,
        counted_by="--clips",
    ),
    Experiment(
        propositions.claims,
        "ei2",
        "Propositions",
        "--clips 6 --frames 4 --steps 30 --minutes {minutes}",
        "--clips 6 --frames 8 --minutes {minutes}",
        (1, 300),
        "The same clips and weights; three noise levels, seed 10000; Gaussian tokens from the clip's number.",
        results="propositions/" + RECORDS,
        in_folder_of="ei2_study",
        counts_in_part=True,
        counted_by="--clips",
    ),
    Experiment(
        ei2_ablation.claims,
        "ei2",
        "What each module does",
        "",
        "--clips 6 --frames 8 --minutes {minutes}",
        (0, 600),
        "The same clips, seeds and edits; three forms more are tuned on each.",
        results="ei2_ablation/" + RECORDS,
        in_folder_of="ei2_study",
        counts_in_part=True,
        counted_by="--clips",
    ),
    Experiment(
        noise_convergence.claims,
        "zs2",
        "The search of the noise",
        "--pairs 40",
        "--pairs 40",
        (0.3, 30),
        "Pairs of frames of 4×64×64, one seed a pair, from 0.",
        {"noise_convergence.png": "What is left of the divergence's error after each step."},
        needs_comfyui=False,
        counts_in_part=True,
        counted_by="--pairs",
    ),
    Experiment(
        zs2_compare.claims,
        "zs2",
        "ZS² beside plain sampling",
        "--clips 6 --steps 8 --minutes {minutes}",
        "--clips 12 --minutes {minutes}",
        (3.2, 300),
        "Clips of 8 frames, 8 steps (20 in the full budget), λ 0.02, μ 0.98; seeds from 0, each scene by two prompts.",
        {"zs2_compare.jpg": "Plain sampling above, ZS² below."},
        counts_in_part=True,
        counted_by="--clips",
    ),
    Experiment(
        ie_guidance_study.claims,
        "ie",
        "Guidances on the video model",
        "",
        "--kind video --scenes 24 --minutes {minutes}",
        (0, 600),
        "Clips of 16 frames of the demo’s video model; one seed a prompt, from 0. Spinning is what it does worst.",
        {"ie_guidance_study_video.jpg": "The last frame of each clip."},
        results=FIGURES,
        counts_in_part=True,
        counted_by="--scenes",
        called="ie_guidance_study_video",
    ),
    Experiment(
        editing_memory.costs,
        COSTS,
        "Memory of an edit",
        "--frames 8",
        "--frames 8 16 32 64",
        (1, 30),
        "The tensors that live at once in two steps at 128 pixels.",
        results=FIGURES,
    ),
    Experiment(
        guidance.costs,
        COSTS,
        "A guided step",
        "--rounds 3 --side 16 --frames 4",
        "--rounds 5",
        (2, 120),
        "Medians of processor time of one thread, ways taking turns.",
        {"guidance_cost.png": "Cost of a step in that of plain CFG; black lines: theory."},
        results=FIGURES,
        is_alone=True,
    ),
    Experiment(
        zs2_study.costs,
        "zs2",
        "A step with each attention",
        "--scenes 0 --rounds 6",
        "--scenes 0 --rounds 20",
        (1.5, 120),
        "Medians of processor time of one thread, attentions taking turns.",
        results="cost.json",
        is_alone=True,
        called="step_costs",
    ),
    Experiment(
        entropy.costs,
        COSTS,
        "Entropy of attention",
        "--sizes 4096 --repeats 2",
        "",
        (1, 60),
        "Medians of the time of one thread; fp32, 8 heads of 64 channels, seed 0.",
        results=FIGURES,
        is_alone=True,
        needs_comfyui=False,
    ),
    Experiment(
        noise_search.costs,
        COSTS,
        "The search of dependency noise",
        "--rounds 7",
        "",
        (1, 30),
        "64 frames of 4×64×64, seed 0; jobs take turns.",
        results=FIGURES,
        is_alone=True,
        needs_comfyui=False,
    ),
    Experiment(
        long_clip.costs,
        COSTS,
        "A clip in chunks",
        "--frames 32 --per-batch 4 8 --size 128 --repeats 1",
        "",
        (1, 120),
        "Two steps; memory of the tensors that live at once.",
        results=FIGURES,
        is_alone=True,
    ),
    Experiment(
        inversion.costs,
        COSTS,
        "Inversion and its filter",
        "--clips 1 --frames 4 --steps 25 --latents 1",
        "--clips 4",
        (1, 240),
        "Rendered clips, numbered from 0; processor time of one thread.",
        results=FIGURES,
        is_alone=True,
    ),
)
