"""LayerSweep: perturbs one attention layer at a time and measures the damage (IE-Adapt §3.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..attention.recorder import without_map
from ..attention.registry import (
    ORDERS,
    SELECTABLE,
    AttentionRegistry,
    Choice,
    Measurement,
    Order,
    Ranking,
    model_names,
    ranked_registry,
    swept_registry,
)
from ..attention.sites import select_sites, sites_of
from ..attention.steps import is_between, require_percents
from ..metrics.damage import DAMAGES
from ..metrics.embeddings import similarity
from ..metrics.ranks import RankCorrelation, rank_correlation
from ..samplers.measure import Start, measure_layers
from ..samplers.sweep import Found, Run, Seen, Sweep
from ..techniques.perturbation import IDENTITY, UNIFORM
from .charts import drawn
from .checks import InputError
from .encoders import embed_images
from .inputs import ATTENTION, Registry, amount_inputs, cfg_input, kind_input, percent_inputs
from .node import Node
from .reports import to_json
from .sweep_chart import draw_sweep

CLIP_SIMILARITY = "clip_similarity"
SCORES = (*DAMAGES, CLIP_SIMILARITY)
MATRICES = {"identity": IDENTITY, "uniform": UNIFORM}


class LayerSweep(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerSweep",
            display_name="Layer Sweep (IE-Adapt)",
            category=ATTENTION,
            description="Tests on your own model what each attention layer does: samples the clip once for each layer, "
            "with that layer's attention map replaced, and measures the damage. Charts damage next to entropy, with "
            "their rank correlation, and selects layers by damage. Costs one run per layer.",
            search_aliases=["ie-adapt", "layer ablation", "perturbation analysis", "attention analysis", "find layers"],
            inputs=[
                io.Model.Input("model", tooltip="The model to test, of any supported family. It is not changed."),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt of all runs: the one you sample with, or a typical one."
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt. Used if cfg is not 1."),
                io.Noise.Input(
                    "noise",
                    tooltip="The noise of all runs. Repeat the sweep with other seeds to see how "
                    "much the result depends on it.",
                ),
                io.Sampler.Input(
                    "sampler",
                    tooltip="The sampler of all runs. Use the one you sample with; noise that it draws is the same in "
                    "each run.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The noise levels of all runs, from a scheduler node. 8 to 12 steps "
                    "are usually enough to see the damage.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The latent to sample. It sets frame count and size. Small clips "
                    "of 1 to 4 frames keep the sweep short; the score consistency needs 2 or more.",
                ),
                io.Vae.Input("vae", tooltip="Decodes the clips that are compared."),
                io.Combo.Input(
                    "perturbation",
                    options=list(MATRICES),
                    default="identity",
                    tooltip="What replaces a layer's attention map. identity: each token attends only to itself, as in "
                    "PAG. uniform: each token attends to all equally. Run both to compare them.",
                ),
                io.Combo.Input(
                    "score",
                    options=list(SCORES),
                    default="change",
                    tooltip="The damage to rank layers by; the report holds all of them. change: 1 - SSIM to the "
                    "unperturbed clip. consistency: how much the SSIM of neighbouring frames falls. sharpness: the "
                    "share of sharpness lost. clip_similarity: 1 - CLIP similarity to the unperturbed clip; needs "
                    "clip_vision.",
                ),
                kind_input("Which layers to test."),
                cfg_input(
                    5.0,
                    "The guidance scale of all runs. Use the one you sample with; 1 needs no negative prompt "
                    "and is twice as fast.",
                    optional=True,
                ),
                io.String.Input(
                    "layers",
                    default="*",
                    optional=True,
                    tooltip="Tests only these layers, such as 'middle, output.3-8' or 'blocks.10-19'. '*' means all. "
                    "Choose fewer for large models.",
                ),
                io.Combo.Input(
                    "select",
                    options=list(ORDERS),
                    default="highest",
                    optional=True,
                    tooltip="The layers to select in the registry. highest: those that do the most damage when "
                    "perturbed. lowest: those that matter least.",
                ),
                *amount_inputs(
                    "Number of layers to select, from 1 to all tested ones. 0: use percent instead.",
                    "Share of the tested layers to select if count is 0: 0 to 100, rounded down, at least one.",
                    optional=True,
                ),
                *percent_inputs(optional=True),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="An image encoder, from Load CLIP Vision, for the score clip_similarity. Leave it empty "
                    "for the other scores.",
                ),
            ],
            outputs=[
                Registry.Output(
                    "registry", tooltip="All tested layers with entropy and damage, and the selection by damage."
                ),
                io.Image.Output(
                    "chart", tooltip="Damage and entropy of every tested layer, and a plot of damage against entropy."
                ),
                io.String.Output("report", tooltip="All figures and the rank correlation, as JSON."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        noise: Any,
        sampler: Any,
        sigmas: Tensor,
        latent_image: dict,
        vae: Any,
        perturbation: str,
        score: str,
        kind: Choice,
        cfg: float = 5.0,
        layers: str = "*",
        select: Order = "highest",
        count: int = 1,
        percent: float = 50.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        _require_score(score, latent_image, clip_vision)
        kinds = SELECTABLE if kind == "all" else (kind,)
        asked = [site.name for site in select_sites(sites_of(model), layers, kinds)]
        steps = _steps_between(model, sigmas, start_percent, end_percent)
        sites, figures = measure_layers(
            model, Start(positive, noise, sigmas, latent_image), steps, "exact", cls.node_name, all_of_them=False
        )
        names = [name for name in asked if name in figures]  # others lack an input, or another node replaces their map
        if not names:
            raise without_map(asked)
        measurement = Measurement(
            steps, tuple(sigmas[list(steps)].tolist()), "exact", noise.seed, tuple(latent_image["samples"].shape)
        )
        measured = ranked_registry(*model_names(model), sites, figures, Ranking(), measurement)
        ranking = Ranking(kind, select, count, percent, by="damage")
        swept_registry(measured, dict.fromkeys(names, 0.0), ranking)  # refuses what cannot be selected, before all runs
        run = Run(positive, negative, cfg, noise, sampler, sigmas, latent_image)
        sweep = Sweep(model, MATRICES[perturbation], run, 1 + len(names), cls.node_name, start_percent, end_percent)
        damage = sweep.compared(names, partial(_seen, vae=vae, clip_vision=clip_vision), _damage)
        scored = {name: each[score] for name, each in damage.items() if math.isfinite(each[score])}
        registry = swept_registry(measured, scored, ranking)
        entropies = np.array([figures[name].entropy for name in scored])
        found = rank_correlation(entropies, np.array(list(scored.values())))
        report = _report(registry, damage, perturbation, score, cfg, found)
        return io.NodeOutput(registry, drawn(draw_sweep, registry, perturbation, score, found), report)


def _require_score(score: str, latent: Mapping[str, Any], clip_vision: Any) -> None:
    if score == CLIP_SIMILARITY and clip_vision is None:
        raise InputError(
            "score is clip_similarity, which needs clip_vision. Connect Load CLIP Vision, or choose another score."
        )
    shape = latent["samples"].shape
    if score == "consistency" and shape[0] * (shape[2] if len(shape) == 5 else 1) < 2:
        raise InputError(
            "score is consistency, which compares neighbouring frames, but latent_image has one frame. Use more "
            "frames, or choose another score."
        )


def _steps_between(model: ModelPatcher, sigmas: Tensor, start_percent: float, end_percent: float) -> tuple[int, ...]:
    """The steps at which a layer is perturbed, or the first one if there is none: the run itself raises the error about
    the sigmas. The last sigma is no step."""
    require_percents(start_percent, end_percent, LayerSweep.node_name)
    sampling = model.get_model_object("model_sampling")
    levels = sigmas[:-1].tolist()
    return tuple(n for n, x in enumerate(levels) if is_between(x, start_percent, end_percent, sampling)) or (0,)


def _seen(samples: Tensor, vae: Any, clip_vision: Any) -> Seen:
    """The clip, and with an encoder its frames' vectors."""
    clip = _decoded(vae, samples)
    return (clip,) if clip_vision is None else (clip, embed_images(clip_vision, clip))


def _damage(seen: Seen, plain: Seen) -> dict[str, float]:
    """By every score."""
    (clip, *vectors), (plain_clip, *plain_vectors) = seen, plain
    found = {score: of(clip, plain_clip) for score, of in DAMAGES.items()}
    if vectors:
        found[CLIP_SIMILARITY] = 1 - float(similarity(*vectors, *plain_vectors).mean())
    return found


def _decoded(vae: Any, samples: Tensor) -> Tensor:
    """(F, H, W, 3) in [0, 1], of pictures and videos alike; of video with sound the video."""
    images = vae.decode(samples.unbind()[0] if samples.is_nested else samples)
    return images.flatten(0, -4).clamp(0, 1)[..., :3]


def _report(
    registry: AttentionRegistry, damage: Found, perturbation: str, score: str, cfg: float, found: RankCorrelation
) -> str:
    return to_json(
        {
            "model": registry.model,
            "network": registry.network,
            "perturbation": perturbation,
            "score": score,
            "cfg": cfg,
            "measurement": None if registry.measurement is None else asdict(registry.measurement),
            "correlation_with_entropy": found._asdict(),
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "selected": layer.selected,
                    "entropy": layer.figures.entropy if layer.figures else None,
                    "damage": damage[layer.name],
                }
                for layer in registry.layers
                if layer.name in damage
            ],
        },
        indent=2,
    )


NODES = [LayerSweep]
