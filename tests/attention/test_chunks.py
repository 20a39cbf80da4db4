"""A clip in chunks of frames is the clip at once: tensors, then real models under real samplers."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from coherence.attention.bilateral import TemporalBilateral
from coherence.attention.chunks import ChunkError, in_chunks, of_frames, spans
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.techniques.cross_frame import CrossFrame
from coherence.techniques.momentum import TemporalMomentum
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from guidance_runs import guided
from hypothesis import given
from hypothesis import strategies as st
from momentum_runs import clip, run
from random_controlnet import controlnet
from tiny_models import FAMILIES, sample
from watching import DEMO, difference, watched

from nodes import ConditioningSetArea, ConditioningSetMask, ControlNetApplyAdvanced, KSampler

SPATIAL = {"layers": "*", "kinds": ["spatial"], "asked_by": "test"}
EXACT = 1e-5


def frames(count, family=DEMO):
    return type(DEMO)(latent_shape=(count, *family.latent_shape[1:]), conditioning=family.conditioning)


def momentum(model, frames_per_batch=0, mu=0.8, schedule="", **where):
    return tap(model, TemporalMomentum(mu, schedule, frames_per_batch), **{**SPATIAL, **where})[0]


def model_calls(model):
    """A clone of ``model``, and a list of the rows of every call of its network."""
    clone, rows = model.clone(), []

    def note(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    clone.add_wrapper(WrappersMP.DIFFUSION_MODEL, note)
    return clone, rows


@pytest.fixture(scope="module")
def unet():
    return load_model()


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 14))
def test_every_frame_of_every_branch_goes_through_once_and_in_order(branches, count, length):
    rows = torch.arange(branches * count).reshape(-1, 1)
    seen = []

    def call(chunk, inputs):
        x, (same, nothing), named = inputs
        assert torch.equal(x, named["control"][0])
        assert torch.equal(x.reshape(branches, -1)[0], torch.tensor(chunk.frame_indices))
        assert (same.shape, nothing) == ((branches * count + 1,), None)
        seen.extend(chunk.frame_indices)
        return x

    inputs = (rows, [torch.zeros(branches * count + 1), None], {"control": [rows]})
    assert torch.equal(in_chunks(call, inputs, len(rows), range(count), length), rows)
    assert seen == list(range(count))


def test_control_that_a_model_takes_out_of_its_lists_is_there_for_every_chunk():
    control = {"input": [torch.zeros(4, 1), None]}
    of_frames(control, 4, 2, 0, 1)["input"].pop()
    assert len(control["input"]) == 2


techniques = [
    TemporalMomentum(0.7),
    TemporalMomentum(0.98, "0:1, 3:0.25, 9:0.8"),
    *map(CrossFrame, ["first", "previous", "first_and_previous"]),
]


@pytest.mark.parametrize("technique", techniques)
@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 2))
def test_a_technique_hands_on_what_the_next_frames_need(technique, count, length, branches):
    q, k, v = clip(count, branches)
    memory, parts = {}, []
    for start, stop in spans(count, length):
        qkv = (of_frames(x, branches * count, count, start, stop) for x in (q, k, v))
        part = run(technique, *qkv, branches, frame_indices=tuple(range(start, stop)), memory=memory)
        parts.append(part.unflatten(0, (branches, -1)))
    whole = run(technique, q, k, v, branches)
    assert (torch.cat(parts, dim=1).flatten(0, 1) - whole).abs().max() <= 1e-12 * whole.abs().max()


def test_half_precision_hands_its_average_on_in_float32():
    q, k, v = clip(64, branches=1, dtype=torch.float16)
    technique, memory = TemporalMomentum(0.98), {}
    for frame in range(64):
        last = run(technique, *(x[[frame]] for x in (q, k, v)), 1, frame_indices=(frame,), memory=memory)
    assert memory["k"].dtype == torch.float32
    assert torch.equal(last, run(technique, q, k, v, 1)[-1:])


def one_call(model, count, conds=(1, 0)):
    """One call of the model, cond and uncond together, as the sampler makes it."""
    generator = torch.Generator().manual_seed(0)
    rows = len(conds) * count
    x = torch.randn(rows, *DEMO.latent_shape[1:], generator=generator)
    context = torch.randn(rows, 32, 128, generator=generator)
    options = model.model_options["transformer_options"]
    options = {**options, "wrappers": model.wrappers, "cond_or_uncond": [*conds], "uuids": ["c", "u"][: len(conds)]}
    with torch.inference_mode():
        return model.model.apply_model(x, torch.full((rows,), 5.0), c_crossattn=context, transformer_options=options)


@pytest.fixture(scope="module")
def long_clip(unet):
    return one_call(momentum(unet, mu=0.98), 64)


@pytest.fixture(scope="module")
def plain_clip(unet):
    return one_call(unet, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "calls"), [(1, 64), (7, 10)])
def test_64_frames_in_chunks_are_64_frames_at_once(unet, long_clip, plain_clip, length, calls):
    model, rows = model_calls(momentum(unet, length, mu=0.98))
    chunked = one_call(model, 64)
    assert len(rows) == calls
    assert max(rows) == 2 * length
    assert sum(rows) == 128
    assert difference(chunked, long_clip) < EXACT
    assert difference(plain_clip, long_clip) > 1e-2


def test_a_chunk_that_holds_the_whole_clip_changes_no_bit(unet, long_clip):
    assert torch.equal(one_call(momentum(unet, 64, mu=0.98), 64), long_clip)


def test_a_schedule_counts_the_clips_frames(unet):
    schedule = "0:0.9, 5:0, 6:0.9"
    whole, chunked = (one_call(momentum(unet, length, schedule=schedule), 9) for length in (0, 2))
    assert difference(chunked, whole) < EXACT


def with_ksampler(model, latent, positive, negative):
    return KSampler().sample(model, 3, 2, 4.0, "euler", "normal", positive, negative, latent, denoise=0.5)[0]["samples"]


def with_custom_sampler(model, latent, positive, negative):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(4.0)
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([2.0, 1.0, 0.0])
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(3), guider, sampler, sigmas, latent).args[0]["samples"]


def masked(conditioning, count):
    """A mask for every frame on one conditioning, an area of the picture on another."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(count, 128, 128, generator=generator)
    other = [[conditioning[0][0].flip(1), {}]]
    (left,) = ConditioningSetMask().append(conditioning, mask, "default", 1.0)
    (area,) = ConditioningSetArea().append(other, 32, 48, 16, 8, 1.0)
    return left + area


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [with_ksampler, with_custom_sampler])
@pytest.mark.parametrize("conditioned", ["plainly", "by masks and areas"])
def test_a_sampler_gets_the_same_clip(unet, sampling, conditioned):
    positive, negative = DEMO.conditioning()
    if conditioned != "plainly":
        positive = masked(positive, 10)
    latent = {"samples": torch.randn(10, *DEMO.latent_shape[1:], generator=torch.Generator().manual_seed(2))}
    whole, chunked = (sampling(momentum(unet, length), latent, positive, negative) for length in (0, 4))
    assert difference(chunked, whole) < EXACT
    assert difference(sampling(unet, latent, positive, negative), whole) > 1e-3


def test_a_controlnet_steers_every_frame_by_its_own_picture(unet):
    count, net = 5, controlnet()
    pictures = torch.rand(count, 64, 64, 3, generator=torch.Generator().manual_seed(0))

    def controlled(model, pictures):
        positive, negative = ControlNetApplyAdvanced().apply_controlnet(*DEMO.conditioning(), net, pictures, 3.0, 0, 1)
        latent = {"samples": torch.randn(count, *DEMO.latent_shape[1:], generator=torch.Generator().manual_seed(2))}
        return with_ksampler(model, latent, positive, negative)

    whole, chunked = (controlled(momentum(unet, length), pictures) for length in (0, 2))
    assert difference(chunked, whole) < EXACT
    assert difference(controlled(momentum(unet), pictures.flip(0)), whole) > 1e-3


def test_little_memory_splits_the_branches_and_changes_nothing(unet, monkeypatch):
    whole = sample(momentum(unet), frames(5))
    model, rows = model_calls(momentum(unet, 2))
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 1.0)
    assert difference(sample(model, frames(5)), whole) < 1e-4
    assert rows[:6] == [2, 2, 1] * 2


def test_every_context_window_starts_its_own_average(unet):
    def windows(model):
        return ContextWindowsManualNode.execute(
            model, 4, 1, "standard_static", 1, False, "pyramid", 0, False, []
        ).result[0]

    schedule = "0:0.9, 3:0.2, 7:0.8"
    whole, chunked = (windows(momentum(unet, length, schedule=schedule)) for length in (0, 3))
    watch_model, watch = watched(chunked, kinds=["spatial"], layers="middle")
    assert difference(sample(chunked, frames(7), steps=1), sample(whole, frames(7), steps=1)) < 1e-4
    sample(watch_model, frames(7), steps=1)
    anchored = [(2, 3, 4), (5, 6)]  # the node puts the frame before a window in front of it
    assert list(dict.fromkeys(call.frame_indices for call in watch.calls)) == [(0, 1, 2), (3,), *anchored]


@pytest.mark.parametrize("guided_first", [True, False])
@pytest.mark.parametrize("guidance", ["U-I", "strategy 1"])
def test_guidances_copies_are_branches_like_others(unet, guidance, guided_first):
    def both(length):
        return momentum(guided(unet, guidance), length) if guided_first else guided(momentum(unet, length), guidance)

    whole = sample(both(0), frames(5))
    model, rows = model_calls(both(2))
    assert difference(sample(model, frames(5)), whole) < 1e-4
    assert max(rows) == 2 * {"U-I": 4, "strategy 1": 3}[guidance]


def test_a_step_in_chunks_runs_as_many_frames_through_the_network_as_one_at_once(unet):
    def frames_run(length):
        model, rows = model_calls(unet)
        sample(momentum(guided(model), length), frames(5), steps=1)
        return sum(rows)

    assert frames_run(2) == frames_run(0) >= 5


@pytest.mark.parametrize("keys", ["first", "previous", "first_and_previous"])
def test_techniques_beside_each_other_keep_their_own(unet, keys):
    def both(length):
        model = momentum(momentum(unet, 0, mu=0.5, layers="output"), length, mu=0.9)
        return tap(model, CrossFrame(keys), **{**SPATIAL, "layers": "middle"})[0]

    assert difference(one_call(both(3), 8), one_call(both(0), 8)) < EXACT


def test_the_shortest_chunks_hold_at_every_step_also_where_nobody_acts(unet):
    model, rows = model_calls(momentum(momentum(unet, 3), 2, end_percent=0.1))
    sample(momentum(model, 4, start_percent=0.7), frames(5), steps=4)
    assert set(rows) == {4, 2}


def loading(model):
    """A clone of ``model``, and a list of the shapes that memory is made for."""
    clone, shapes = model.clone(), []

    def note(executor, model, noise_shape, *args, **kwargs):
        shapes.append(tuple(noise_shape))
        return executor(model, noise_shape, *args, **kwargs)

    clone.add_wrapper(WrappersMP.PREPARE_SAMPLING, note)
    return clone, shapes


@pytest.mark.parametrize(("length", "frames_loaded_for"), [(0, 5), (2, 2), (8, 5)])
def test_memory_is_made_for_one_chunk(unet, length, frames_loaded_for):
    model, shapes = loading(momentum(unet, length))
    sample(model, frames(5), steps=1)
    assert shapes == [(frames_loaded_for, *DEMO.latent_shape[1:])]


def test_memory_is_made_for_all_frames_where_a_controlnet_sees_them_at_once(unet):
    model, shapes = loading(momentum(unet, 1))
    pictures = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    conditioning = ControlNetApplyAdvanced().apply_controlnet(*DEMO.conditioning(), controlnet(), pictures, 1.0, 0, 1)
    with_ksampler(model, {"samples": torch.zeros(2, 4, 8, 8)}, *conditioning[:2])
    assert shapes == [(2, 4, 8, 8)]


def test_other_packs_are_told_the_frames_as_animatediff_evolved_tells_them(unet):
    told = []

    def note(executor, *args, **kwargs):
        told.append(next(each["ad_params"] for each in args if isinstance(each, dict)))
        return executor(*args, **kwargs)

    model = momentum(unet, 3)
    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, note)
    one_call(model, 5)
    assert told == [{"sub_idxs": [0, 1, 2], "full_length": 5}, {"sub_idxs": [3, 4], "full_length": 5}]


def test_a_model_whose_layers_span_the_frames_is_refused(tiny_models):
    with pytest.raises(ChunkError, match="temporal attention"):
        sample(momentum(tiny_models.load("svd"), 2), FAMILIES["svd"], steps=1)


def test_a_technique_that_needs_all_frames_is_refused_by_its_nodes_name(unet):
    model, _ = tap(momentum(unet, 2), TemporalBilateral(5, 1.0, 1.0), **{**SPATIAL, "asked_by": "BilateralDDIMInvert"})
    with pytest.raises(ChunkError, match="BilateralDDIMInvert needs all frames"):
        sample(model, frames(5), steps=1)
    assert sample(model, frames(2), steps=1).isfinite().all()


def test_a_cancel_between_two_chunks_leaves_nothing_behind(unet):
    model = momentum(unet, 2)
    before = sample(model, frames(5), steps=1)
    interrupted, rows = model_calls(model)

    def cancel(executor, *args, **kwargs):
        comfy.model_management.interrupt_current_processing()
        return executor(*args, **kwargs)

    interrupted.add_wrapper(WrappersMP.DIFFUSION_MODEL, cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(interrupted, frames(5), steps=1)
    assert len(rows) == 1
    comfy.model_management.interrupt_current_processing(False)
    assert torch.equal(sample(model, frames(5), steps=1), before)
    assert not [module for module in unet.model.modules() if module._forward_pre_hooks]


def test_an_error_in_the_middle_of_a_clip_does_not_reach_the_next_run(unet):
    model = momentum(unet, 2)
    before = sample(model, frames(5), steps=1)
    failing, rows = model_calls(model)

    def fail(executor, *args, **kwargs):
        if len(rows) == 2:
            raise RuntimeError("boom")
        return executor(*args, **kwargs)

    failing.add_wrapper(WrappersMP.DIFFUSION_MODEL, fail)
    with pytest.raises(RuntimeError, match="boom"):
        sample(failing, frames(5), steps=1)
    assert torch.equal(sample(model, frames(5), steps=1), before)
