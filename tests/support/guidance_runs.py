"""Runs under IE Guidance, and what they are compared with."""

from __future__ import annotations

import comfy.samplers
import torch
from coherence.attention.registry import model_names, named_registry
from coherence.attention.sites import select_sites, sites_of
from coherence.attention.tap import tap
from coherence.samplers.ie_guidance import guide
from coherence.techniques.perturbation import IDENTITY, UNIFORM, Perturbation
from comfy.patcher_extension import WrappersMP
from watching import difference

KINDS = ["spatial", "temporal", "joint"]
ONE_STEP = {"sigmas": torch.tensor([4.0, 0.0])}


def registry_of(model, layers="output.0"):
    sites = sites_of(model)
    return named_registry(*model_names(model), sites, select_sites(sites, layers, KINDS), layers)


def guided(model, guidance="U-I", scale=2.0, layers="output.0", **more):
    return guide(model, registry_of(model, layers), guidance, scale, asked_by="test", **more)


def one_by_one(model, guidance, scale, layers):
    """A clone whose every step is the paper's formula in float64, each of its branches in a call of its own."""
    maps = {None: {}}
    for alpha in (UNIFORM, IDENTITY):
        tapped, _ = tap(model, Perturbation(alpha), layers=layers, kinds=KINDS, asked_by="reference")
        maps[alpha] = {**tapped.model_options["transformer_options"], "wrappers": tapped.wrappers}

    def predict(executor, x, timestep, model_options, seed):
        guider = executor.class_obj

        def branch(side, alpha):
            theirs = maps[alpha]
            options = {**model_options["transformer_options"], **theirs}
            out = comfy.samplers.calc_cond_batch(
                guider.inner_model, [guider.conds[side]], x, timestep, {**model_options, "transformer_options": options}
            )
            return out[0].double()

        c, n = (lambda alpha=None: branch("positive", alpha)), (lambda alpha=None: branch("negative", alpha))
        w, u, i = guider.cfg, UNIFORM, IDENTITY
        plain = n() + w * (c() - n())
        formula = {
            "U-I": lambda: plain + scale * (c(u) - c(i)),
            "A-I": lambda: plain + scale * (c() - c(i)),
            "U-A": lambda: plain + scale * (c(u) - c()),
            "strategy 1": lambda: n() + w * (c() - n(i)),
            "strategy 3": lambda: n() + w * (c(u) - n()) + scale * (c() - c(i)),
            "strategy 4": lambda: n() + w * (c(u) - n()),
        }
        return formula[guidance]().to(x.dtype)

    clone = model.clone()
    clone.add_wrapper(WrappersMP.PREDICT_NOISE, predict)
    return clone


def agree(ours, reference, plain, tolerance=1e-4):
    """``ours`` is the reference, whose effect is far larger than the tolerance."""
    assert difference(reference, plain) > 50 * tolerance
    assert difference(ours, reference) < tolerance


class Calls:
    """A clone of ``model`` that notes every model call: [rows, …]."""

    def __init__(self, model):
        self.rows = []
        self.model = model.clone()
        self.model.add_wrapper(WrappersMP.APPLY_MODEL, self._note)

    def _note(self, executor, x, *args, **kwargs):
        self.rows.append(len(x))
        return executor(x, *args, **kwargs)
