"""The tap beside other packs that do unusual things: the same result, or an error that says what is in the way."""

import types
from itertools import pairwise

import comfy.ldm.modules.attention
import pytest
import torch
from clear_errors import unclear
from coherence.attention.chunks import ChunkError
from coherence.attention.rows import RowsError
from coherence.attention.sites import NoSuchSiteError, UnknownModelError
from coherence.attention.steps import NoStepError, is_between
from coherence.attention.tap import tap
from coherence.demo.model import load_model
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.nodes.inflation import TuneAVideoInflate
from coherence.samplers.lora_steps import with_lora
from coherence.techniques.cross_frame import CrossFrame
from coherence.techniques.momentum import TemporalMomentum
from coherence.techniques.technique import FurtherKeysError
from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow
from comfy.samplers import calculate_sigmas
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from gligen import gligen_for, with_boxes
from guidance_runs import guided
from random_lora import lora_for
from tiny_models import FAMILIES, sample
from watching import DEMO, demo_of, difference, watched

pytestmark = pytest.mark.slow

SPATIAL = {"layers": "*", "kinds": ["spatial"], "asked_by": "TemporalMomentumAttention"}
FRAMES = 6
CLIP = demo_of(FRAMES)


@pytest.fixture(scope="module")
def unet():
    return load_model()


def momentum(model, frames_per_batch=0, **where):
    return tap(model, TemporalMomentum(0.8, "", frames_per_batch), **{**SPATIAL, **where})[0]


def refused(error, model, match, **how):
    with pytest.raises(error, match=match) as raised:
        sample(model, CLIP, steps=2, **how)
    assert not unclear(raised.value)


# Chunks of frames, and patches that need all of them ---------------------------------------------------------------


def test_guidance_that_keeps_the_maps_of_a_call_is_refused_in_chunks(unet):
    model = SelfAttentionGuidance.execute(momentum(unet, 3), 0.5, 2.0).result[0]
    refused(ChunkError, model, "frames_per_batch .* SelfAttentionGuidance")
    refused(ChunkError, momentum(SelfAttentionGuidance.execute(unet, 0.5, 2.0).result[0], 4), "SelfAttentionGuidance")


def test_boxes_for_every_frame_are_refused_in_chunks(unet):
    positive, negative = DEMO.conditioning()
    boxed = with_boxes(positive, gligen_for(unet)), negative
    assert difference(sample(unet, CLIP, conditioning=boxed), sample(unet, CLIP)) > 1e-3
    refused(ChunkError, momentum(unet, 4), "frames_per_batch .* Gligen", conditioning=boxed)


class FrameTable:
    """Adds a table to a block's features, which has a row for each frame of both branches."""

    def __init__(self, listens=False):
        self.table = torch.randn(2 * FRAMES, 1, 1, 1, generator=torch.Generator().manual_seed(1))
        self.listens = listens

    def rows(self, count, options):
        return slice(count)

    def __call__(self, h, options):
        if self.listens and "ad_params" in options:
            frames = options["ad_params"]["sub_idxs"]
            return h + torch.cat([branch[frames] for branch in self.table.chunk(2)])
        return h + self.table[self.rows(len(h), options)]


class WholeTable(FrameTable):
    def rows(self, count, options):
        return slice(None)


def patched(model, patch):
    clone = model.clone()
    clone.set_model_input_block_patch(patch)
    return clone


@pytest.mark.parametrize("table", [FrameTable, WholeTable])
def test_a_block_patch_with_a_row_for_each_frame_is_refused_in_chunks(unet, table):
    patch = table()
    assert difference(sample(patched(unet, patch), CLIP), sample(unet, CLIP)) > 1e-3
    refused(ChunkError, momentum(patched(unet, patch), 3), f"frames_per_batch .* {table.__name__}")


@pytest.mark.parametrize("patched_first", [True, False])
def test_a_block_patch_that_looks_up_its_frames_gives_the_same_in_chunks(unet, patched_first):
    patch = FrameTable(listens=True)
    models = [momentum(patched(unet, patch), n) if patched_first else patched(momentum(unet, n), patch) for n in (0, 4)]
    whole, chunked = (sample(model, CLIP) for model in models)
    assert difference(chunked, whole) < 1e-4
    assert difference(whole, sample(momentum(unet), CLIP)) > 1e-3


@pytest.mark.parametrize(
    "node", [lambda m: FreeU_V2.execute(m, 1.3, 1.4, 0.9, 0.2), lambda m: PerturbedAttentionGuidance.execute(m, 3.0)]
)
def test_patches_that_treat_every_row_for_itself_give_the_same_in_chunks(unet, node):
    def drawn(length):
        return sample(node(momentum(unet, length)).result[0], CLIP)

    assert difference(drawn(3), drawn(0)) < 1e-4


# Tiles ----------------------------------------------------------------------------------------------------------


def tiled(model, at_once, order="whole batches"):
    """As TiledDiffusion does: cuts the picture into four tiles and puts ``at_once`` of them into one call."""
    clone = model.clone()

    def by_tiles(apply_model, args):
        x, c, out = args["input"], args["c"], torch.zeros_like(args["input"])
        places = [(..., slice(r, r + 4), slice(s, s + 4)) for r in (0, 4) for s in (0, 4)]
        for start in range(0, len(places), at_once):
            these = places[start : start + at_once]
            rows = torch.cat([x[place] for place in these])
            given = {
                name: value.repeat(len(these), *[1] * (value.ndim - 1)) if isinstance(value, torch.Tensor) else value
                for name, value in c.items()
            }
            drawn = apply_model(rows, args["timestep"].repeat(len(these)), **given)
            for place, tile in zip(these, drawn.chunk(len(these)), strict=True):
                out[place] = tile
        return out

    clone.set_model_unet_function_wrapper(by_tiles)
    return clone


tiled_patches = {
    "momentum": momentum,
    "momentum in chunks": lambda model: momentum(model, 2),
    "guidance": guided,
    "inflation": lambda model: TuneAVideoInflate.execute(model, "*").result[0],
}


@pytest.mark.parametrize("name", tiled_patches)
@pytest.mark.parametrize("tiled_first", [True, False])
def test_tiles_in_one_call_are_tiles_in_calls_of_their_own(unet, name, tiled_first):
    patch = tiled_patches[name]

    def drawn(at_once):
        return sample(patch(tiled(unet, at_once)) if tiled_first else tiled(patch(unet), at_once), CLIP, steps=1)

    alone = drawn(1)
    assert difference(drawn(4), alone) < 1e-4
    assert difference(drawn(3), alone) < 1e-4
    assert difference(sample(tiled(unet, 1), CLIP, steps=1), alone) > 1e-3


def test_rows_that_are_no_whole_groups_are_refused_by_the_settings_name(unet):
    model = momentum(unet)

    def one_more(apply_model, args):
        rows = torch.cat([args["input"][:1], args["input"]])
        more = {**args["c"], "c_crossattn": torch.cat([args["c"]["c_crossattn"][:1], args["c"]["c_crossattn"]])}
        return apply_model(rows, args["timestep"].repeat(2)[: len(rows)], **more)[1:]

    model.set_model_unet_function_wrapper(one_more)
    refused(RowsError, model, "tile_batch_size")


# Blocks and models whose code another node replaced ---------------------------------------------------------------


def as_reference(model, forward):
    """As reference ControlNets do: replaces the blocks' forward during a model call."""
    clone = model.clone()
    blocks = [
        module
        for module in clone.model.diffusion_model.modules()
        if isinstance(module, comfy.ldm.modules.attention.BasicTransformerBlock)
    ]

    def around(executor, *args, **kwargs):
        for block in blocks:
            block.forward = types.MethodType(forward, block)
        try:
            return executor(*args, **kwargs)
        finally:
            for block in blocks:
                del block.forward

    clone.add_wrapper_with_key("diffusion_model", "reference", around)
    return clone


def without_options(self, x, context=None, transformer_options=None):
    """ComfyUI's own forward, but it passes no options on."""
    x = x + self.attn1(self.norm1(x))
    x = x + self.attn2(self.norm2(x), context=context)
    return x + self.ff(self.norm3(x))


def own_attention(self, x, context=None, transformer_options=None):
    n, attention = self.norm1(x), self.attn1
    q, k, v = (linear(n) for linear in (attention.to_q, attention.to_k, attention.to_v))
    q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + attention.to_out(out)
    x = x + self.attn2(self.norm2(x), context=context)
    return x + self.ff(self.norm3(x))


@pytest.mark.parametrize("patch", [momentum, lambda m: momentum(m, 2), guided], ids=["whole", "chunks", "guidance"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_blocks_that_hand_no_options_on_are_tapped_all_the_same(unet, patch, ours_first):
    model = as_reference(patch(unet), without_options) if ours_first else patch(as_reference(unet, without_options))
    assert difference(sample(model, CLIP), sample(patch(unet), CLIP)) < 1e-4
    assert not any("forward" in vars(module) for module in unet.model.diffusion_model.modules())


def test_a_layer_that_attends_in_its_own_way_is_named_at_the_first_step(unet):
    calls = []

    def counted(self, *args, **kwargs):
        calls.append(self)
        return own_attention(self, *args, **kwargs)

    refused(
        NoSuchSiteError,
        as_reference(momentum(unet), counted),
        r"cannot see, although they ran: input.* \(.*test_tap_company\)",
    )
    assert len(calls) == len({id(block) for block in calls})


def test_a_layer_that_attends_once_more_for_some_of_the_rows_is_named(unet):
    """As reference ControlNets do for the negative."""

    def negatives_apart(self, x, context=None, transformer_options=None):
        n = self.norm1(x)
        attended = self.attn1(n)
        attended[:FRAMES] = self.attn1(n[:FRAMES])
        x = x + attended
        x = x + self.attn2(self.norm2(x), context=context)
        return x + self.ff(self.norm3(x))

    assert sample(as_reference(unet, negatives_apart), CLIP).isfinite().all()
    refused(RowsError, as_reference(momentum(unet), negatives_apart), f"with {FRAMES} rows, expected {2 * FRAMES}: 2 ")


def test_what_another_node_keeps_of_all_frames_is_named_in_chunks(unet):
    banks = {}

    def with_bank(self, x, context=None, transformer_options=None):
        bank = banks.setdefault(id(self), torch.zeros(2 * FRAMES, *x.shape[1:]))
        n = self.norm1(x)
        x = x + self.attn1(n, context=torch.cat([n, bank], dim=1))
        x = x + self.attn2(self.norm2(x), context=context)
        return x + self.ff(self.norm3(x))

    assert sample(as_reference(momentum(unet), with_bank), CLIP).isfinite().all()
    refused(ChunkError, as_reference(momentum(unet, 2), with_bank), "frames_per_batch .* with_bank .*test_tap_company")


@pytest.mark.parametrize("patch", [momentum, lambda m: TuneAVideoInflate.execute(m, "*").result[0]])
def test_a_node_that_replaces_the_models_class_is_told_of(patch):
    class ReUNet(torch.nn.Module):
        forward = None

    model = patch(load_model())
    model.model.diffusion_model.__class__ = ReUNet
    refused(UnknownModelError, model, r"was put on a UNetModel, but the model that runs is a ReUNet .* replaced")
    with pytest.raises(UnknownModelError, match=r"Its class \(.*test_tap_company\) may be another node's"):
        momentum(model)


def test_merged_tokens_are_told_from_further_keys(unet):
    model = CrossFrameAttention.execute(TomePatchModel.execute(unet, 0.3).result[0], "fine_coarse").result[0]
    refused(FurtherKeysError, model, "merges tokens .*ToMe")


# Windows that hold no step ----------------------------------------------------------------------------------------

windows = {
    "tap": lambda model, start, end: momentum(model, start_percent=start, end_percent=end),
    "LoRA": lambda model, start, end: with_lora(model, lora_for(model, "down"), 0.5, start, end, "GEAdapterApply"),
}


@pytest.mark.parametrize("name", windows)
@pytest.mark.parametrize(("start", "end"), [(0.3, 0.4), (0.0, 0.0), (1.0, 1.0), (0.8, 0.9)])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_a_window_that_holds_no_step_is_refused_and_says_which_there_are(unet, name, start, end, sampler):
    model = windows[name](unet, start, end)
    refused(
        NoStepError,
        model,
        rf"no step .* start_percent {start} and end_percent {end}.* lie at 0\.001, 1\.",
        sampler=sampler,
    )


@pytest.mark.parametrize("shift", [1, 1.15, 2, 3, 5, 8, 9, 12])
def test_steps_on_the_borders_of_a_window_lie_in_it_at_any_shift(shift):
    class Flow(ModelSamplingDiscreteFlow, CONST):
        pass

    sampling = Flow()
    sampling.set_parameters(shift)
    steps = calculate_sigmas(sampling, "simple", 20)[:-1].tolist()
    for begin, end in pairwise(range(0, 20, 5)):
        inside = [n for n, sigma in enumerate(steps) if is_between(sigma, begin / 20, end / 20, sampling)]
        assert inside == [*range(begin, end + 1)]


def test_a_window_between_two_steps_is_enough_for_a_sampler_that_calls_there(unet):
    model, watch = watched(unet, layers="middle", start_percent=0.15, end_percent=0.45)
    sample(model, CLIP, steps=2, sampler="dpm_2")
    assert watch.calls


def test_a_run_that_begins_after_the_window_is_refused_before_its_first_step(unet):
    model, watch = watched(momentum(unet, end_percent=0.2), layers="middle")
    with pytest.raises(NoStepError, match="TemporalMomentumAttention: no step"):
        sample(model, CLIP, sigmas=torch.tensor([1.0, 0.5, 0.0]))
    assert not watch.calls


@pytest.mark.parametrize("family", ["wan21", "cogvideox"])
def test_a_shifted_schedule_says_where_its_steps_lie(tiny_models, family):
    sampling = tiny_models.load(family).get_model_object("model_sampling")
    sigmas = torch.tensor([sampling.percent_to_sigma(percent) for percent in (0.01, 0.4, 0.7, 1.0)])
    model, _ = watched(tiny_models.load(family), start_percent=0.1, end_percent=0.3)
    with pytest.raises(NoStepError, match=r"lie at 0\.0\d*, 0\.4, 0\.7\."):
        sample(model, FAMILIES[family], sigmas=sigmas)


def test_an_inversion_walks_the_windows_the_other_way(unet):
    sampling = unet.get_model_object("model_sampling")
    rising = torch.tensor([sampling.percent_to_sigma(percent) for percent in (0.9, 0.6, 0.3)])
    early = momentum(unet, start_percent=0.85, end_percent=1.0)
    assert difference(sample(early, CLIP, sigmas=rising), sample(unet, CLIP, sigmas=rising)) > 1e-4
    with pytest.raises(NoStepError, match=r"0\.7"):
        sample(momentum(unet, start_percent=0.65, end_percent=0.7), CLIP, sigmas=rising)


def test_keys_of_the_first_frame_count_in_tiles_too(unet):
    where = {**SPATIAL, "asked_by": "CrossFrameAttention"}

    def drawn(at_once):
        return sample(tiled(tap(unet, CrossFrame("first"), **where)[0], at_once), CLIP)

    assert difference(drawn(4), drawn(1)) < 1e-4
