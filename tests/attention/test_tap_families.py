"""The tap in real runs of families and relatives: nothing changes, every site is reached, frames are where it says."""

import math

import pytest
import torch
from coherence.attention.sites import sites_of
from comfy.ldm.lightricks.model import GuideAttentionMask
from comfy.ldm.modules.attention import optimized_attention
from tiny_models import FAMILIES, RELATIVES, sample
from watching import watched


@pytest.fixture(scope="module", params=[*FAMILIES, *RELATIVES])
def seen(request, tiny_models):
    """Family, model, the output without and with an observer, and what the observer saw."""
    family, model = (FAMILIES | RELATIVES)[request.param], tiny_models.load(request.param)
    plain = sample(model, family, steps=1)
    clone, watch = watched(model)
    return family, model, plain, sample(clone, family, steps=1), watch.calls


def test_an_observer_leaves_the_output_bit_identical(seen):
    *_, plain, output, _calls = seen
    for before, after in zip(plain.unbind(), output.unbind(), strict=True):  # a video and its sound, or by rows
        assert before.isfinite().all()
        assert torch.equal(after, before)


def test_every_listed_site_is_reached_in_the_order_listed(seen):
    _family, model, _plain, _output, calls = seen
    names = [site.name for site in sites_of(model)]
    assert [call.site.name for call in calls] == names * (len(calls) // len(names))


def test_rows_belong_to_branches_and_frames_lie_where_it_says(seen):
    family, _model, _plain, _output, calls = seen
    frames = family.latent_shape[family.frames_axis]
    for call in calls:
        assert {index for index, _ in call.branches} <= {0, 1}
        assert call.frame_indices == tuple(range(frames))
        assert len(call.q) == len(call.branches) * call.rows_per_branch
        q, k, v = call.per_head()
        assert q.shape[:2] == k.shape[:2] == v.shape[:2] == (len(call.q), call.heads)
        if call.site.frames_in == "rows":
            assert call.rows_per_branch == frames
        if call.tokens_per_frame is not None:
            inside = frames if call.site.frames_in == "tokens" else 1
            assert q.shape[2] == call.leading_tokens + inside * call.tokens_per_frame + call.trailing_tokens
        if call.site.kind in ("joint", "spatial", "temporal", "text"):
            assert k.shape[2] == q.shape[2]


@pytest.mark.parametrize("seen", FAMILIES, indirect=True)
def test_beside_the_frames_there_are_text_and_padding(seen):
    """Relatives also have references, or the text of a second encoder."""
    family, _model, _plain, _output, calls = seen
    for call in calls:
        assert (call.tokens_per_frame is None) == (call.site.leading is None)
        if call.tokens_per_frame is not None:
            assert call.leading_tokens in (0, family.text_tokens)
            assert call.leading_tokens == 0 or call.site.kind == "joint"
            assert call.trailing_tokens == (family.padding if call.site.leading else 0)


def test_the_users_model_is_left_without_hooks(seen):
    _family, model, *_ = seen
    assert not any(module._forward_pre_hooks for module in model.get_model_object("diffusion_model").modules())


def test_image_to_video_attends_to_the_image_then_to_the_text(tiny_models):
    family = FAMILIES["wan21_i2v"]
    model, watch = watched(tiny_models.load("wan21_i2v"), kinds=["cross"])
    sample(model, family, steps=1)
    image, text = family.vision[0], family.context[0]
    keys = {call.site.name.split(".")[-1]: call.k.shape[-2] for call in watch.calls}
    assert keys == {"image": image, "text": text}


def test_a_site_that_attends_several_times_is_one_site(tiny_models):
    """LTXV's guides split a layer's queries into groups; here through another pack's block replacement."""
    family, guides = FAMILIES["ltxv"], 40
    model = tiny_models.load("ltxv")
    tokens = torch.tensor(family.latent_shape[2:]).prod().item()
    mask = GuideAttentionMask(tokens, tokens - guides, guides, torch.full((1, guides), 0.5))

    def with_guides(args, extra):
        return extra["original_block"]({**args, "self_attention_mask": mask})

    def guided(model):
        clone = model.clone()
        clone.set_model_patch_replace(with_guides, "dit", "double_block", 1)
        return clone

    before, watch = watched(guided(model), layers="blocks.1.attn1")
    after, watch_after = watched(model, layers="blocks.1.attn1")
    plain = sample(guided(model), family, steps=1)
    assert torch.equal(sample(before, family, steps=1), plain)
    assert torch.equal(sample(guided(after), family, steps=1), plain)
    for calls in (watch.calls, watch_after.calls):
        assert [call.q.shape[1] for call in calls[:2]] == [tokens - guides, guides]
        assert [call.mask.shape for call in calls[:2]] == [(1, 1, 1, tokens), (1, 1, guides, tokens)]
        assert {call.tokens_per_frame for call in calls} == {None}
        assert {call.site.name for call in calls} == {"blocks.1.attn1"}


def test_svd_replaced_by_another_pack_stays_told_apart(tiny_models):
    """Both kinds have the same block and number for ``attn1_replace``."""
    family = FAMILIES["svd"]
    other_pack = tiny_models.load("svd")

    def replacement(q, k, v, extra):
        return optimized_attention(q, k.flip(-2), v, extra["n_heads"])

    other_pack.set_model_attn1_replace(replacement, "input", 1)
    model, watch = watched(other_pack, layers="input.1", kinds=["spatial", "temporal"])
    assert torch.equal(sample(model, family, steps=1), sample(other_pack, family, steps=1))
    frames, _, height, width = family.latent_shape
    rows = {(call.site.kind, call.rows_per_branch) for call in watch.calls}
    assert rows == {("spatial", frames), ("temporal", height * width)}


@pytest.mark.parametrize("seen", ["LTX-2"], indirect=True)
def test_video_and_sound_attend_at_sites_of_their_own(seen):
    """LTX-2: each to itself, to the text, and to the other."""
    family, *_, calls = seen
    _, _, *video, sound = (*family.latent_shape, family.sound_shape[2])
    q_tokens = {call.site.name.split(".")[-1]: call.per_head()[0].shape[2] for call in calls}
    assert q_tokens == {
        "attn1": math.prod(video),
        "attn2": math.prod(video),
        "audio_attn1": sound,
        "audio_attn2": sound,
        "audio_to_video_attn": math.prod(video),
        "video_to_audio_attn": sound,
    }
