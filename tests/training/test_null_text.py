"""Null-text inversion: guided sampling with its negatives returns the clip, on ComfyUI's own sampling."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from coherence.attention.steps import NoStepError
from coherence.demo.clips import render_clip
from coherence.demo.model import load_clip, load_model, load_vae
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.nodes.editing import EntropyGuidedEdit
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.nodes.null_text import NullTextInvert
from coherence.samplers.lora_steps import with_lora
from coherence.training import null_text
from coherence.training.loop import TrainingError
from coherence.training.null_text import time_ranges
from comfy import model_management
from comfy.patcher_extension import WrappersMP
from comfy.samplers import calculate_sigmas, sampler_object
from comfy_extras.nodes_custom_sampler import DisableNoise
from guided_runs import guided_run
from inflation_runs import put, random_weights
from inversion_runs import difference, schedule
from random_lora import lora_for
from tiny_models import FAMILIES
from tuning_runs import EI2

FACE = (
    "model positive negative cfg latent_image sigmas inner_steps learning_rate early_stop refine_iterations precision"
)
CFG, STEPS = 4.0, 4
QUICK = {"inner_steps": 1, "learning_rate": 0.1, "early_stop": 0.0, "precision": "fp32"}


@pytest.fixture(scope="module")
def demo():
    return load_model()


@pytest.fixture(scope="module")
def prompts():
    text = load_clip()
    return [
        text.encode_from_tokens_scheduled(text.tokenize(words))
        for words in ("a small red circle in the centre, white background", "")
    ]


@pytest.fixture(scope="module")
def clip():
    with torch.inference_mode():
        return {
            "samples": load_vae().encode(render_clip("circle", "red", "white", frames=2).frames),
            "batch_index": [0, 1],
        }


def invert(model, prompts, latent, sigmas, **changed):
    with torch.inference_mode():
        return NullTextInvert.execute(model, *prompts, changed.pop("cfg", CFG), latent, sigmas, **QUICK | changed).args


def guided(model, positive, negative, latent, sigmas) -> torch.Tensor:
    x = latent["samples"]
    return guided_run(model, (positive, negative), CFG, torch.zeros_like(x), sigmas, start=x)


@pytest.fixture(scope="module")
def found(demo, prompts, clip):
    """A run of eight changes a step, with the random state before and after."""
    state = torch.get_rng_state()
    outputs = invert(demo, prompts, clip, schedule(demo, STEPS), inner_steps=8, refine_iterations=2)
    return outputs, state, torch.get_rng_state()


def test_face_of_the_node():
    schema = NullTextInvert.GET_SCHEMA()
    assert " ".join(item.id for item in schema.inputs) == FACE
    assert {each.id: each.io_type for each in schema.outputs} == {
        "negative": "CONDITIONING",
        "latent": "LATENT",
        "reconstruction": "LATENT",
        "report": "STRING",
    }


@pytest.mark.slow
def test_guided_sampling_returns_the_clip(demo, prompts, clip, found):
    (negative, latent, reconstruction, report), *_ = found
    sigmas, x = schedule(demo, STEPS), clip["samples"]
    followed = guided(demo, prompts[0], negative, latent, sigmas)
    without = guided(demo, prompts[0], prompts[1], latent, sigmas)
    errors = difference(followed, x), difference(without, x)
    assert errors[0] < 0.12
    assert errors[1] > 3 * errors[0], errors
    assert difference(followed, reconstruction["samples"]) < 1e-4
    assert latent["batch_index"] == reconstruction["batch_index"] == [0, 1]
    told = json.loads(report)
    assert len(told["sigma"]) == STEPS
    assert all(after < before for before, after in zip(told["before"], told["after"], strict=True))
    assert "GiB" in told["memory"]


def test_the_random_state_is_left_alone(found):
    _, before, after = found
    assert torch.equal(before, after)


def test_an_edit_takes_it_as_its_negative(demo, prompts, clip, found):
    (negative, latent, *_), *_ = found
    sigmas = schedule(demo, STEPS)
    registry = SelectAttentionLayers.execute(demo, "*").args[0]
    (silent,) = DisableNoise.execute().args
    with torch.inference_mode():
        target, source = EntropyGuidedEdit.execute(
            demo, prompts[0], prompts[1], negative, registry, silent, sampler_object("euler"), sigmas, latent, CFG, CFG,
            "map",
        ).args  # fmt: skip
    followed = guided(demo, prompts[0], negative, latent, sigmas)
    assert difference(source["samples"], followed) < 1e-4
    assert difference(target["samples"], followed) > 0.01


def test_the_gradient_of_a_step_is_that_of_the_paper_in_float64(demo, prompts, clip, monkeypatch):
    seen = {}

    def look(loss_of, text, *_args):
        text = text.clone().requires_grad_(True)
        loss, arrived = loss_of(text)
        _guider, sigmas, _, step, x, goal = loss_of.args
        seen.setdefault(
            "first", (torch.autograd.grad(loss, text)[0], loss.detach(), text.detach(), sigmas, step, x, goal)
        )
        return text.detach(), arrived.detach(), [loss.item()]

    monkeypatch.setattr(null_text, "follow", look)
    invert(demo, prompts, clip, schedule(demo, 3))
    gradient, loss, text, sigmas, step, x, goal = seen["first"]

    network = copy.deepcopy(demo.model.diffusion_model).double()
    sampling = demo.get_model_object("model_sampling")
    x, goal, sigma, following = (each.double() for each in (x, goal, sigmas[step], sigmas[step + 1]))
    text = text.double().requires_grad_(True)

    def noise(context):
        context = context.double().expand(len(x), -1, -1)
        return network(x / (sigma**2 + 1).sqrt(), sampling.timestep(sigma).expand(len(x)), context=context)

    with torch.inference_mode(False), torch.enable_grad():
        positive, negative = noise(prompts[0][0][0].clone()).detach(), noise(text)
        arrived = x + (negative + CFG * (positive - negative)) * (following - sigma)
        expected = ((arrived - goal) / (following**2 + 1).sqrt()).square().mean()
        (exact,) = torch.autograd.grad(expected, text)
    assert exact.abs().max() > 0
    assert difference(gradient.double(), exact) < 1e-4
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("family", ["wan21", "cogvideox", "flux"])
def test_it_follows_the_inversion_in_every_family(tiny_models, family):
    model, latent = tiny_models.load(family), FAMILIES[family].latent()
    *_, report = invert(
        model, FAMILIES[family].conditioning(), latent, schedule(model, 2, "simple"), learning_rate=0.01
    )
    told = json.loads(report)
    assert max(told["before"]) > 0
    assert all(after <= before for before, after in zip(told["before"], told["after"], strict=True))
    assert max(told["changes"]) > 0


EARLY = {
    "GEAdapterApply": lambda model: with_lora(model, lora_for(model), 1.0, 0.0, 0.5, "GEAdapterApply"),
    "CrossFrameAttention": lambda model: CrossFrameAttention.execute(model, "first", end_percent=0.5)[0],
}


@pytest.mark.parametrize("node", EARLY)
def test_a_node_that_acts_early_alone_is_inverted_and_followed(demo, prompts, clip, node):
    model, sigmas = EARLY[node](demo), schedule(demo, 3)
    negative, latent, reconstruction, _ = invert(model, prompts, clip, sigmas)
    assert difference(guided(model, prompts[0], negative, latent, sigmas), reconstruction["samples"]) < 1e-4
    assert difference(guided(demo, prompts[0], negative, latent, sigmas), reconstruction["samples"]) > 1e-3
    with pytest.raises(NoStepError, match=f"{node}: no step"):
        invert(model, prompts, clip, schedule(demo, 3)[2:])


MADE = {
    "LoRA": lambda model: with_lora(model, lora_for(model), 1.0, 0.0, 1.0, "test"),
    "STAM": lambda model: put(model, EI2, random_weights(model, EI2)),
}


@pytest.mark.parametrize("made", MADE)
def test_weights_that_nodes_made_are_followed_through(demo, prompts, clip, made):
    """In inference mode, as all that they load."""
    with torch.inference_mode():
        model = MADE[made](demo)
    told = json.loads(invert(model, prompts, clip, schedule(demo, 2))[-1])
    assert all(after < before for before, after in zip(told["before"], told["after"], strict=True))


def test_each_step_has_a_time_range_of_its_own(demo, tiny_models):
    for model, name, steps in (
        (demo, "normal", 1),
        (demo, "karras", 50),
        (demo, "beta", 40),
        (tiny_models.load("wan21"), "simple", 50),
    ):
        sampling = model.get_model_object("model_sampling")
        sigmas = calculate_sigmas(sampling, name, steps)
        times = time_ranges(sampling, sigmas)
        assert [times[0][0], times[-1][1]] == [0.0, 1.0]
        assert all(end == start for (_, end), (start, _) in pairwise(times))
        levels = [[float(sampling.percent_to_sigma(edge)) for edge in each] for each in times]
        for step, sigma in enumerate(sigmas[:-1].tolist()):
            assert [low <= sigma <= high for high, low in levels] == [number == step for number in range(len(levels))]


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in model.model.state_dict().items()}


def test_a_cancel_is_obeyed_and_leaves_the_model_as_it_was(demo, prompts, clip):
    before, calls = weights_of(demo), []

    def cancel(executor, *args, **kwargs):
        calls.append(torch.is_grad_enabled())
        if calls[-1] and sum(calls) == 2:  # the first of these measures memory
            model_management.interrupt_current_processing()
        return executor(*args, **kwargs)

    cancelled = demo.clone()
    cancelled.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", cancel)
    with pytest.raises(model_management.InterruptProcessingException):
        invert(cancelled, prompts, clip, schedule(demo, 2), inner_steps=5)
    model_management.interrupt_current_processing(False)
    assert sum(calls) == 2
    assert not model_management.in_training
    assert not demo.wrappers
    assert not demo.model_options["transformer_options"]
    assert all(torch.equal(each, before[name]) for name, each in demo.model.state_dict().items())


def test_blocks_are_computed_twice_where_memory_is_short(demo, prompts, clip, monkeypatch):
    sigmas = schedule(demo, 1)
    plain = invert(demo, prompts, clip, sigmas)
    monkeypatch.setattr(null_text, "is_free", lambda needed: False)
    with monkeypatch.context() as patch:
        patch.setattr(null_text, "require", lambda *_: None)
        twice = invert(demo, prompts, clip, sigmas)
    needed = [json.loads(each[-1])["memory"] for each in (plain, twice)]
    assert needed[1].endswith("with every block computed twice")
    assert float(needed[1].split()[0]) <= float(needed[0].split()[0])
    assert difference(twice[0][0][0], plain[0][0][0]) < 1e-4


def test_too_little_memory_is_told_before_the_first_step(demo, prompts, clip, monkeypatch):
    monkeypatch.setattr(
        model_management, "get_free_memory", lambda *_, torch_free_too=False: (1000,) * 2 if torch_free_too else 1000
    )
    with pytest.raises(TrainingError, match=r"needs about 0\.0\d GiB beside the model, but only 0\.00 GiB is free"):
        invert(demo, prompts, clip, schedule(demo, 1))


# Mistakes of users -------------------------------------------------------------------------------------------------


def test_what_cannot_be_optimised_is_refused_with_a_cure(demo, prompts, clip):
    positive, negative = prompts
    sigmas, part = schedule(demo, 1), [[negative[0][0], {"start_percent": 0.5}]]
    for changed, said in (
        ({"cfg": 1.0}, "cfg is 1"),
        ({"negative": [*negative, *negative]}, "combines 2 conditionings"),
        ({"negative": part}, "ConditioningSetTimestepRange"),
        ({"negative": [[negative[0][0], {"control": object()}]]}, "ControlNet"),
        ({"latent_image": {**clip, "noise_mask": torch.ones(1, 16, 16)}}, "noise mask"),
        ({"sigmas": sigmas.flip(0)}, "without FlipSigmas"),
    ):
        how = {"negative": negative, "latent_image": clip, "sigmas": sigmas, "cfg": CFG} | changed
        with pytest.raises((ValueError, TrainingError), match=said):
            invert(demo, (positive, how["negative"]), how["latent_image"], how["sigmas"], cfg=how["cfg"])


def test_a_model_whose_calls_are_skipped_is_refused(demo, prompts, clip):
    skipping = demo.clone()
    skipping.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"], args["timestep"], **args["c"]).detach()
    )
    with pytest.raises(TrainingError, match="does not depend on the negative prompt"):
        invert(skipping, prompts, clip, schedule(demo, 1))
