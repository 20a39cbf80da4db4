"""One-shot tuning of the demo model: what is learned, what is left alone, what is refused."""

from concurrent.futures import ThreadPoolExecutor

import comfy.model_management as management
import pytest
import torch
from coherence.attention.forms import TUNE_A_VIDEO, Form
from coherence.attention.inflation import inflations_of
from coherence.demo.model import load_model
from coherence.techniques.stam import instance_centred
from coherence.techniques.temporal import over_frames
from coherence.training.loop import Schedule, TrainingError
from coherence.training.memory import extrapolated, kept_for_backward
from coherence.training.sampler import autograd_enabled, dtype_of, train_in_run, trainable
from comfy.patcher_extension import WrappersMP
from hypothesis import given
from hypothesis import strategies as st
from inflation_runs import put, random_weights, run
from torch.multiprocessing.reductions import StorageWeakRef
from tuning_runs import EI2, FORMS, clip, prompt, tuned
from watching import DEMO, difference

QUIET = Form("stam", "after_cross", "self")


def apart(a, b):
    """The largest difference of two runs' weights."""
    ours, theirs = a.weights.tensors, b.weights.tensors
    assert ours.keys() == theirs.keys()
    return max((x - theirs[name]).abs().max().item() for name, x in ours.items())


class Calls:
    """A clone of ``model`` that notes x, t, the context and the output of every model call in ``seen``."""

    def __init__(self, model, instead=None):
        self.seen, self._instead = [], instead
        self.model = model.clone()
        self.model.add_wrapper(WrappersMP.APPLY_MODEL, self._note)

    def _note(self, executor, x, t, c_concat=None, c_crossattn=None, *more, **kwargs):
        x, t = self._instead or (x, t)
        out = executor(x, t, c_concat, c_crossattn, *more, **kwargs)
        self.seen.append((x, t, c_crossattn, out.detach()))
        return out


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return load_model()


@pytest.fixture(scope="module")
def ei2(model):
    """The demo model after 12 steps."""
    return tuned(put(model, EI2), steps=12, learning_rate=2e-3)


@pytest.fixture(scope="module")
def usual(model):
    """After two."""
    return tuned(put(model, EI2))


# What is learned ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@FORMS
def test_the_loss_falls_at_noise_that_was_not_trained_on(model, ei2, form):
    learned = ei2 if form == EI2 else tuned(put(model, form), steps=12, learning_rate=2e-3)
    still = {"steps": 3, "learning_rate": 0.0, "seed": 1}
    before, after = (tuned(put(model, form, weights), **still).history for weights in (None, learned.weights))
    assert after.mean(slice(None)) < 0.97 * before.mean(slice(None))


def test_the_same_seed_gives_the_same_bits_and_another_one_others(model, usual):
    again, other = (tuned(put(model, EI2), seed=seed) for seed in (0, 1))
    assert apart(usual, again) == 0
    assert usual.history.losses == again.history.losses
    assert apart(usual, other) > 1e-3


def on_another_thread(function):
    """As autograd calls a backward pass on a GPU."""

    def called(*args):
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(function, *args).result()

    return called


@FORMS
def test_gradient_checkpointing_gives_the_same_weights_in_less_memory(model, usual, form, monkeypatch):
    plain = usual if form == EI2 else tuned(put(model, form))
    monkeypatch.setattr(torch.Tensor, "backward", on_another_thread(torch.Tensor.backward))
    sparing = tuned(put(model, form), gradient_checkpointing=True)
    assert apart(plain, sparing) < 1e-6
    weights = 4 * 4 * plain.parameters
    assert sparing.needed - weights < 0.6 * (plain.needed - weights)


def test_tuning_goes_on_from_the_weights_of_the_model_and_adds_the_steps(model, ei2):
    on = tuned(put(model, EI2, ei2.weights), learning_rate=0.0)
    assert on.weights.steps == ei2.weights.steps + 2 == 14
    assert apart(on, ei2) < 1e-6
    assert apart(tuned(put(model, EI2, ei2.weights)), ei2) > 1e-4


def test_every_tensor_is_learned_and_says_what_it_was_learned_on(model, ei2):
    start = tuned(put(model, EI2), learning_rate=0.0).weights.tensors
    assert all(not torch.equal(x, start[name]) for name, x in ei2.weights.tensors.items())
    weights = ei2.weights
    assert (weights.form, weights.base, weights.steps, weights.frames) == (EI2, "DemoConfig", 12, 3)
    assert ei2.parameters == sum(x.numel() for x in weights.tensors.values())


def test_weights_are_tuned_in_fp32_whatever_is_computed_in(model, usual):
    learned = tuned(put(model, EI2), precision="bf16")
    assert {x.dtype for x in learned.weights.tensors.values()} == {torch.float32}
    assert learned.dtype == dtype_of("bf16") == torch.bfloat16
    assert 0 < apart(learned, usual) < 0.02  # AdamW's first steps go by the gradient's sign
    assert learned.history.losses == pytest.approx(usual.history.losses, rel=0.05)


@FORMS
def test_training_sees_what_sampling_sees(model, form):
    weights = random_weights(model, form)
    training = Calls(put(model, form, weights))
    tuned(training.model, steps=1)
    x, t, _, out = training.seen[-1]
    sampling = Calls(put(model, form, weights), instead=(x, t))
    with torch.inference_mode():
        run(sampling.model, cfg=1.0, conditioning=(prompt(), prompt()), shape=x.shape)
    assert difference(sampling.seen[0][3], out) < 1e-4
    plain = Calls(model, instead=(x, t))
    run(plain.model, cfg=1.0, conditioning=(prompt(), prompt()), shape=x.shape)
    assert difference(plain.seen[0][3], out) > 1e-2


def test_the_tuned_layers_keep_the_norms_and_the_covariance_bound_on_the_features_that_arrive(model, ei2):
    """Proposition 3 on a tuned model: 1.03 leaves room for the sample."""
    arrived = {}

    def listening(place):
        return lambda _module, args, _out: arrived.setdefault(place, []).append(args[0].clone())

    clone = put(model, EI2, ei2.weights)
    (inflation,) = inflations_of(clone.model_options["transformer_options"])
    layers = {name: module for name, module in inflation.modules.items() if name.endswith(".stam")}
    handles = [layer.register_forward_hook(listening(place)) for place, layer in layers.items()]
    run(clone, cfg=1.0, shape=(8, *DEMO.latent_shape[1:]))
    for handle in handles:
        handle.remove()
    assert len(arrived) == len(layers) == 7
    for place, features in arrived.items():
        layer = layers[place].double()
        for weight in (layer.to_v.weight, layer.to_out.weight):
            assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=1e-3)
        for z in (each.double() for each in features):
            assert (layer.branch(z, 8) + layer.branch(-z, 8) - 2 * layer.to_out.bias).abs().max() < 1e-12
            rows = [x.flatten(0, -2) for x in (layer.branch(z, 8), instance_centred(over_frames(z, 8)))]
            added, bound = (torch.linalg.matrix_norm(x.T.cov(), 2) for x in rows)
            assert 0 < added < 1.03 * bound


# The clip, in stretches -----------------------------------------------------------------------------------------------


def test_a_stretch_of_frames_comes_with_its_own_rows_of_the_prompt(model):
    positive, latent = prompt(rows=3), clip()
    calls = Calls(put(model, EI2, layers="middle"))
    tuned(calls.model, positive, latent, batch_frames=2, steps=5)
    stretches = set()
    for x, _, context, _ in calls.seen[1:]:  # the first estimates memory
        (first,) = (i for i in range(2) if torch.equal(context, positive[0][0][i : i + 2]))
        stretches.add(first)
        assert len(x) == 2
    assert len(stretches) > 1
    wide = Calls(put(model, EI2, layers="middle"))
    tuned(wide.model, positive, latent, batch_frames=9)
    assert torch.equal(wide.seen[-1][2], positive[0][0])


def test_several_prompts_in_several_calls_meet_each_module_once(model):
    """Five times the same tokens are the same to attention, but too many for one call."""
    weights = random_weights(model, TUNE_A_VIDEO)
    one, both = prompt(), prompt() + prompt(repeats=5)
    calls = Calls(put(model, TUNE_A_VIDEO, weights))
    learned = tuned(calls.model, both, steps=1)
    assert {len(context[0]) for _, _, context, _ in calls.seen} == {32, 160}
    alone = tuned(put(model, TUNE_A_VIDEO, weights), one, steps=1)
    assert learned.history.losses == pytest.approx(alone.history.losses, rel=1e-4)
    with pytest.raises(TrainingError, match=r"one model call per step.*gradient_checkpointing off"):
        tuned(put(model, TUNE_A_VIDEO, weights), both, gradient_checkpointing=True)


# What is left alone ---------------------------------------------------------------------------------------------------


def hooks_on(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.model.modules()
    )


@pytest.mark.parametrize("end", ["well", "cancelled", "wrong", "no number"])
def test_the_users_model_is_bit_identical_however_tuning_ends(model, end):
    inflation = put(model, EI2, random_weights(model, EI2))
    before, state = run(inflation), {name: x.clone() for name, x in model.model.state_dict().items()}
    latent = clip()

    def after_step(history):
        if end == "cancelled":
            management.interrupt_current_processing()
            management.throw_exception_if_processing_interrupted()
        if end == "wrong":
            raise ZeroDivisionError

    if end == "no number":
        latent["samples"][0, 0, 0, 0] = float("nan")
    expected = {
        "cancelled": management.InterruptProcessingException,
        "wrong": ZeroDivisionError,
        "no number": TrainingError,
    }
    if end == "well":
        tuned(inflation, latent=latent, gradient_checkpointing=True)
    else:
        with pytest.raises(expected[end]):
            tuned(inflation, latent=latent, after_step=after_step, gradient_checkpointing=True)
    assert management.in_training is False
    assert hooks_on(model) == 0
    assert all(torch.equal(x, state[name]) for name, x in model.model.state_dict().items())
    assert torch.equal(run(inflation), before)


def patched():
    """The demo model with a patch on a weight, as a LoRA is one."""
    with torch.inference_mode():
        model = load_model()
        name = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
        weight = model.model.state_dict()[name]
        change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        model.add_patches({name: ("diff", (change,))})
        return model


def test_a_copied_model_is_tuned_with_its_patches_as_one_that_is_loaded_anew(usual):
    anew, copied = patched(), patched()
    copied.cached_patcher_init = None
    before = run(copied)
    results = [tuned(put(each, EI2)) for each in (anew, copied)]
    assert apart(*results) == 0
    assert torch.equal(run(copied), before)
    assert results[0].history.losses != usual.history.losses


@pytest.mark.slow
def test_other_inserted_layers_are_there_and_stay_as_they_are(model):
    with torch.inference_mode():
        both = put(put(model, TUNE_A_VIDEO, random_weights(model, TUNE_A_VIDEO)), QUIET)
    before = run(both)
    learned, alone = tuned(both, steps=1), tuned(put(model, QUIET), steps=1)
    assert learned.weights.form == QUIET
    assert abs(learned.history.losses[0] - alone.history.losses[0]) > 1e-4
    assert torch.equal(run(both), before)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "latent", "settings", "complaint"),
    [
        (lambda m: m, clip(), {}, "expected an inflated model, got a plain one.*STAMInflate"),
        (lambda m: put(m, QUIET), clip(1), {}, r"\(1, 4, 8, 8\), expected a clip of two frames or more"),
        (lambda m: put(m, QUIET), {"samples": torch.zeros(1, 4, 3, 16, 16)}, {}, "latent_image has shape"),
        (lambda m: put(m, QUIET), clip(), {"batch_frames": 1}, "batch_frames: expected 0.*got 1"),
    ],
)
def test_what_cannot_be_tuned_is_refused(model, made, latent, settings, complaint):
    with pytest.raises(TrainingError, match=complaint):
        tuned(made(model), latent=latent, **settings)
    assert management.in_training is False


def test_a_step_that_does_not_fit_is_refused_with_what_would_help(model, monkeypatch):
    needed = tuned(put(model, EI2), latent=clip(6), steps=1).needed
    free = needed - 1
    monkeypatch.setattr(
        management, "get_free_memory", lambda *_, torch_free_too=False: (free, free) if torch_free_too else free
    )
    with pytest.raises(TrainingError, match=r"6 frames.*GiB.*batch_frames to 3.*gradient_checkpointing on.*fewer"):
        tuned(put(model, EI2), latent=clip(6), steps=1)
    tuned(put(model, EI2), latent=clip(6), steps=1, gradient_checkpointing=True)
    tuned(put(model, EI2), latent=clip(6), steps=1, batch_frames=3)


# The estimate ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(2, 64))
def test_the_estimate_is_exact_for_what_grows_with_frames_and_their_square(linear, square, frames):
    at = lambda n: linear * n + square * n * n  # noqa: E731
    assert extrapolated(2, at(2), 4, at(4), frames) == pytest.approx(at(frames), rel=1e-9, abs=2)


def test_the_estimate_for_a_clip_is_what_a_step_keeps(model):
    latent, kept = clip(8), {}

    def train(denoiser):
        noise = torch.zeros_like(denoiser.clean)
        kept["all"] = kept_for_backward(lambda: denoiser.squared_error(range(8), noise, 1.0).mean())

    inflation = put(model, EI2)
    estimated = tuned(inflation, latent=latent, steps=1)
    with autograd_enabled():
        copied = trainable(inflation, torch.float32)
        copied.model.requires_grad_(True)
        (there,) = inflations_of(copied.model_options["transformer_options"])
        there.modules.requires_grad_(True)
        train_in_run(copied, [prompt()], latent, torch.float32, train, "test")
    assert estimated.needed - 16 * estimated.parameters == pytest.approx(kept["all"], rel=0.3)


def test_what_is_kept_for_backward_is_let_go_once_it_is_counted():
    made = []

    def forward():
        # saved by the step that made it: its graph holds it, and it must not hold its graph
        shares = torch.randn(8, 8, requires_grad=True).softmax(-1)
        made.append(StorageWeakRef(shares.untyped_storage()))
        return shares.square().sum()

    with autograd_enabled():
        assert kept_for_backward(forward) == 8 * 8 * 4
    assert made[0].expired()


def test_the_rate_rises_and_stays():
    schedule = Schedule(5, 1.0, warmup=3)
    assert [schedule.rate(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Schedule(1, 2.0).rate(0) == 2.0
