"""What the tests of editing share: a run from the same start, as an edit and plainly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from attended import output_by, scores_of
from coherence.attention.tap import tap
from coherence.samplers.editing import Edit, Prompts, sample_edit
from coherence.techniques.technique import Stage, Technique
from comfy.samplers import KSAMPLER, CFGGuider, Sampler, calc_cond_batch, calculate_sigmas, sampler_object
from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, Noise_RandomNoise
from guided_runs import guided_run
from tiny_models import FAMILIES, RELATIVES
from watching import DEMO

from nodes import ConditioningSetArea


class StoredMaps(Technique):
    """As IE-Adapt's Algorithm 1 has it, in float64: keep the source's maps in memory, then hand them to the target.

    Kept as scores: where the prompts differ in length, the picture's are handed over and the text's are the target's.
    """

    stage = Stage.MAPS

    def __init__(self):
        self.scores, self.keeping = {}, False

    def attend(self, call, proceed):
        scores = scores_of(call)
        end = scores.shape[-1] - call.trailing_tokens
        if self.keeping:
            self.scores[call.site.name] = scores, slice(call.leading_tokens or 0, end)
            return proceed(call.q, call.k, call.v)
        kept, there = self.scores[call.site.name]
        here = slice(call.leading_tokens or 0, end)
        if kept.shape == scores.shape:
            scores = kept
        else:
            scores[..., here, here] = kept[..., there, there]
        return output_by(call, torch.softmax(scores, dim=-1))


@dataclass(frozen=True)
class Run:
    """A start: model, source, target and negative conditioning, and what sampling takes."""

    model: Any
    source: list
    target: list
    negative: list
    shape: tuple[int, ...]
    steps: int = 2
    sampler: Sampler | str = "euler"
    latent: dict | None = None
    start: float = 0.0
    """Where given, the run is one step from there; 0 is pure noise, 1 the clip."""

    @property
    def sigmas(self) -> torch.Tensor:
        if self.start:
            sampling = self.model.get_model_object("model_sampling")
            return torch.tensor([float(sampling.percent_to_sigma(self.start)), 0.0])
        return calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", self.steps)

    @property
    def latents(self) -> dict:
        return self.latent or {"samples": torch.zeros(self.shape)}

    def _sampler(self) -> Sampler:
        return sampler_object(self.sampler) if isinstance(self.sampler, str) else self.sampler

    def edit(self, layers: str = "*", **edit: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Target and source, guided alike unless ``source_cfg`` is given."""
        return self.stage(self.sigmas, layers, **edit)

    def stage(
        self,
        sigmas: torch.Tensor,
        layers: str = "*",
        source: torch.Tensor | None = None,
        target: torch.Tensor | None = None,
        trajectory: Any = None,
        **edit: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``edit``, along other ``sigmas``; where ``source`` is given, from there, and without new noise."""
        prompts = Prompts(self.source, self.target, self.negative)
        edit = Edit(layers, **{"cfg": 4.0, "source_cfg": 4.0} | edit)
        noise, latent = Noise_RandomNoise(3), self.latents
        if source is not None:
            noise, latent = Noise_EmptyNoise(), {"samples": source}
        start = (noise, self._sampler(), sigmas, latent)
        goes_on = None if target is None else {"samples": target}
        with torch.inference_mode():
            return sample_edit(self.model, prompts, edit, *start, "test", goes_on, trajectory)

    def plain(self, positive: list, cfg: float = 4.0) -> torch.Tensor:
        """ComfyUI's own sampling of one clip."""
        samples, noise = self.latents["samples"], Noise_RandomNoise(3).generate_noise(self.latents)
        mask = self.latents.get("noise_mask")
        prompts = (positive, self.negative)
        return guided_run(self.model, prompts, cfg, noise, self.sigmas, self.sampler, samples, mask, seed=3)


def demo_run(model: Any, **settings: Any) -> Run:
    generator = torch.Generator().manual_seed(1)
    source, target, negative = ([[torch.randn(1, 32, 128, generator=generator), {}]] for _ in range(3))
    return Run(model, source, target, negative, **{"shape": DEMO.latent_shape} | settings)


def halves(prompt: list) -> list:
    """The prompt for the left half of a picture of 64 pixels, and for the right one."""
    return [entry for x in (0, 32) for entry in ConditioningSetArea().append(prompt, 32, 64, x, 0, strength=1.0)[0]]


def tiny_run(tiny_models: Any, name: str, **settings: Any) -> Run:
    """The target's text differs from the source's; the other parts of the conditioning are the same."""
    family = RELATIVES.get(name) or FAMILIES[name]
    source, negative = family.conditioning(seed=1)
    target = [[family.conditioning(seed=2)[0][0][0], source[0][1]]]
    return Run(tiny_models.load(name), source, target, negative, **{"shape": family.latent_shape} | settings)


def longer(prompt: list, tokens: int) -> list:
    """The prompt with further tokens."""
    [[text, rest]] = prompt
    rest = dict(rest)
    if "attention_mask" in rest:
        rest["attention_mask"] = torch.nn.functional.pad(rest["attention_mask"], (0, tokens), value=1)
    generator = torch.Generator().manual_seed(7)
    return [[torch.cat([text, torch.randn(1, tokens, text.shape[-1], generator=generator)], dim=1), rest]]


def told_in(run: Run, source: int, target: int, negative: int) -> Run:
    """The run with other prompts, of so many tokens."""

    def of_length(prompt: list, tokens: int, seed: int) -> list:
        [[text, rest]] = prompt
        masked = {"attention_mask": torch.ones(1, tokens, dtype=torch.long)} if "attention_mask" in rest else {}
        generator = torch.Generator().manual_seed(seed)
        return [[torch.randn(1, tokens, text.shape[-1], generator=generator), rest | masked]]

    prompts = zip((run.source, run.target, run.negative), (source, target, negative), (11, 12, 13), strict=True)
    made = dict(zip(("source", "target", "negative"), (of_length(*each) for each in prompts), strict=True))
    return replace(run, **made)


def stepwise(
    run: Run,
    technique: Any,
    layers: str,
    cfg: float,
    source_cfg: float,
    pinned: Sequence[torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and source by Euler steps, each branch in a model call of its own; CFG where it is not 1.

    ``technique`` keeps what it must of the source's call, while its ``keeping`` is set, for the target's after it.
    ``pinned``: where the source is at each step, whatever its own steps do.
    """
    kinds = getattr(technique, "kinds", ("spatial", "temporal", "joint"))
    model, _ = tap(run.model, technique, layers=layers, kinds=kinds, asked_by="test")
    guider = CFGGuider(model)
    guider.inner_set_conds({"source": run.source, "positive": run.target, "negative": run.negative})

    def walk(model_wrap, x, sigmas, extra_args, callback, disable):
        denoise = model_wrap.inner_model  # the guider, with the run's conditionings
        source = target = x
        scale_in = (lambda sigma: (sigma**2 + 1).rsqrt()) if "CogVideoX" in type(model.model).__name__ else None

        def branch(name, x, sigma, keeping):
            technique.keeping = keeping
            x = x * scale_in(sigma) if scale_in else x
            conds = [denoise.conds[name]]
            return calc_cond_batch(denoise.inner_model, conds, x, sigma.expand(len(x)), extra_args["model_options"])[0]

        for step, (sigma, following) in enumerate(pairwise(sigmas)):
            source = source if pinned is None else pinned[step]
            source_clean = branch("source", source, sigma, keeping=True)
            positive = branch("positive", target, sigma, keeping=False)
            if source_cfg != 1:
                unguided = branch("negative", source, sigma, keeping=True)
                source_clean = unguided + (source_clean - unguided) * source_cfg
            negative = branch("negative", target, sigma, keeping=False)
            target_clean = negative + (positive - negative) * cfg
            source, target = (
                x + (x - clean) * ((following - sigma) / sigma)
                for x, clean in ((source, source_clean), (target, target_clean))
            )
        both.append(model_wrap.inner_model.inner_model.process_latent_out(target))
        return source

    both = []
    samples = run.latents["samples"]
    with torch.inference_mode():
        source = guider.sample(
            Noise_RandomNoise(3).generate_noise(run.latents), samples, KSAMPLER(walk), run.sigmas, disable_pbar=True
        )
    return both[0], source
