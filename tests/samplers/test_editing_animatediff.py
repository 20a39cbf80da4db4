"""Edits on a model with AnimateDiff-Evolved's settings, as far as a guider meets them."""

from dataclasses import replace

import pytest
import torch
from coherence.demo.model import load_model
from comfy.patcher_extension import WrappersMP
from comfy.samplers import calc_cond_batch
from editing_runs import demo_run
from watching import difference


@pytest.fixture(scope="module")
def run():
    return demo_run(load_model())


class Settings:
    """AnimateDiff-Evolved's, as far as a guider meets them: its Custom CFG comes before the sampler's."""

    initialized = steps = 0

    def __init__(self, scale, functions=()):
        self.sample_settings = self.custom_cfg = self
        self.cfg_multival, self.functions = scale, list(functions)

    def initialize(self, model, options):
        self.initialized += 1

    def prepare_current_keyframes(self, x, timestep, transformer_options):
        assert len(x) == len(timestep)
        self.steps += 1

    def create_exposed_params(self):
        return {"full_length": 3}

    def get_cfg_scale(self, positive):
        return self.cfg_multival[: len(positive)] if isinstance(self.cfg_multival, torch.Tensor) else self.cfg_multival

    def get_model_options(self, options):
        options["sampler_post_cfg_function"] = options.get("sampler_post_cfg_function", []) + self.functions
        return options


def fade(args):
    """Guidance of a clip alone: its last frame is fainter."""
    rows = torch.linspace(1.0, 0.5, len(args["denoised"]))
    return args["denoised"] * rows.reshape(-1, 1, 1, 1)


def call_again(args):
    return calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"])[0]


def animated(model, settings):
    """The model with these settings, and one that has the same in ComfyUI's own terms."""
    own, same = model.clone(), model.clone()
    own.model_options["transformer_options"]["ADGS"] = settings

    def guide(args):
        return args["uncond"] + (args["cond"] - args["uncond"]) * settings.get_cfg_scale(args["cond"])

    same.set_model_sampler_cfg_function(guide)
    for function in settings.functions:
        same.set_model_sampler_post_cfg_function(function)
    return own, same


@pytest.mark.parametrize("scale", [6.0, torch.linspace(2.0, 7.0, 3).reshape(-1, 1, 1, 1)], ids=["one", "by frame"])
@pytest.mark.parametrize("functions", [(), (fade,)], ids=["alone", "with a function"])
def test_animatediffs_custom_cfg_is_obeyed(run, scale, functions):
    settings = Settings(scale, functions)
    own, same = animated(run.model, settings)
    target, source = replace(run, model=own).edit(layers="", source_cfg=1.0)
    for clip, prompt in ((target, run.target), (source, run.source)):
        assert difference(clip, replace(run, model=same).plain(prompt)) < 1e-4
    assert settings.steps == run.steps
    assert difference(target, run.edit(layers="")[0]) > 0.01


def test_animatediffs_custom_cfg_of_1_goes_without_the_negative(run):
    own, _ = animated(run.model, Settings(1.0))
    told = set()

    def apply(executor, x, t, concat=None, context=None, control=None, options=None, **kwargs):
        told.add((tuple(options["cond_or_uncond"]), len(x)))
        return executor(x, t, concat, context, control, options, **kwargs)

    own.add_wrapper(WrappersMP.APPLY_MODEL, apply)
    replace(run, model=own).edit()
    assert told == {((0, 0), 2 * run.shape[0])}


def test_what_custom_cfg_brings_along_that_calls_the_model_again_is_refused(run):
    own, _ = animated(run.model, Settings(4.0, [call_again]))
    with pytest.raises(ValueError, match="calls it once more in every step"):
        replace(run, model=own).edit()
