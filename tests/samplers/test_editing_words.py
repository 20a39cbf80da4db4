"""Edits by words, against Prompt-to-Prompt's and FateZero's maps in memory."""

from dataclasses import replace

import pytest
import torch
from coherence.attention.sites import UnknownModelError
from coherence.demo.model import load_clip, load_model
from coherence.nodes.align_prompts import AlignPrompts
from coherence.nodes.momentum import TemporalMomentumAttention
from coherence.samplers.replacing import AlignmentError
from coherence.techniques.replacement import UnpairedBranchError
from coherence.techniques.technique import PartOfFrameError
from editing_runs import demo_run, halves, longer, stepwise, tiny_run
from tiny_text import tiny_umt5
from watching import difference
from word_edits import StoredWords, aligned

OF_WORDS = ["cross_map", "map_and_cross", "blend"]
EDITS = {
    "refine": ("a red star on white", "a very big red star on white", {}),
    "replace": ("a red star on white", "a red pentagon on white", {}),
    "re-weight": ("a red star on white", "a red star on white", {"red": 3.0, "star": -1.0}),
    "all": ("a small red star on white", "a red pentagon on the white wall", {"red": 2.0}),
}


@pytest.fixture(scope="module")
def unet():
    return load_model()


def effect_and_error(run, how, alignment):
    target, source = run.edit(replace=how, alignment=alignment)
    expected, plain = stepwise(run, StoredWords(how, alignment), "*", 4.0, 4.0)
    assert difference(source, plain) < 1e-4
    return difference(run.edit(layers="")[0], expected), difference(target, expected)


@pytest.mark.parametrize("edit", EDITS)
def test_words_are_edited_as_with_the_maps_in_memory(unet, edit):
    source, target, weights = EDITS[edit]
    run, alignment = aligned(demo_run(unet), source, target, weights)
    effect, error = effect_and_error(run, "cross_map", alignment)
    assert effect > 0.01
    assert error < 1e-4


@pytest.mark.parametrize("how", ["map_and_cross", "blend"])
def test_layout_and_words_together_are_as_with_the_maps_in_memory(unet, how):
    run, alignment = aligned(demo_run(unet), *EDITS["all"], sharpness=5)
    effect, error = effect_and_error(run, how, alignment)
    assert effect > 0.01
    assert error < 1e-4


@pytest.mark.parametrize(("name", "how"), [("wan21", "blend"), ("ltxv", "cross_map")])  # LTXV masks its padding
def test_prompts_of_other_lengths_are_aligned_in_step(tiny_models, name, how):
    """ComfyUI cannot put these into one call."""
    run = tiny_run(tiny_models, name)
    run, alignment = aligned(replace(run, target=longer(run.target, 3)), *EDITS["all"])
    effect, error = effect_and_error(run, how, alignment)
    assert effect > 1e-3
    assert error < max(1e-4, effect / 100)


def test_a_prompt_of_two_chunks_is_aligned_where_comfyui_repeats_the_other(unet):
    run = demo_run(unet)
    run, alignment = aligned(replace(run, target=longer(run.target, 32)), *EDITS["all"])
    effect, error = effect_and_error(run, "cross_map", alignment)
    assert effect > 0.01
    assert error < 1e-4


def words_of(unet, source: str, target: str):
    run, clip = demo_run(unet), load_clip()
    given, wanted, alignment, _ = AlignPrompts.execute(clip, source, target).args
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    return replace(run, source=given, target=wanted, negative=negative), alignment


def test_an_inserted_word_does_not_take_its_neighbours_map(unet):
    """The fault that was: token by token, "red" took the map of "star", and each later word that of its neighbour."""
    run, alignment = words_of(unet, "a star on a green background", "a red star on a green background")
    reference, _ = stepwise(run, StoredWords("cross_map", alignment), "*", 4.0, 4.0)
    by_token, by_word = (run.edit(replace="cross_map", alignment=each)[0] for each in (None, alignment))
    assert difference(by_word, reference) < 1e-4
    assert difference(by_token, reference) > 0.01


def test_blend_goes_along_where_a_clip_runs_in_chunks(unet):
    run, alignment = aligned(demo_run(unet, steps=1), *EDITS["all"], sharpness=5)
    whole, parts = (
        replace(run, model=TemporalMomentumAttention.execute(unet, 0.8, frames_per_batch=frames)[0]).edit(
            replace="blend", alignment=alignment
        )
        for frames in (0, 2)
    )
    for one, other in zip(whole, parts, strict=True):
        assert difference(other, one) <= 1e-4


@pytest.mark.parametrize("how", OF_WORDS)
def test_equal_prompts_give_equal_clips_bitwise(unet, how):
    run, alignment = words_of(unet, "a red (star:1)", "a red star")
    assert torch.equal(*run.edit(replace=how, alignment=alignment))


def test_blend_edits_only_where_the_words_are(unet):
    """A threshold that no place reaches is map_and_cross, one that all reach leaves self-attention alone."""
    from coherence.techniques import blend

    run, alignment = aligned(demo_run(unet), *EDITS["all"], sharpness=5)
    blended, mapped = (run.edit(replace=how, alignment=alignment)[0] for how in ("blend", "map_and_cross"))
    crossed = run.edit(replace="cross_map", alignment=alignment)[0]
    assert min(difference(blended, other) for other in (mapped, crossed)) > 1e-3
    usual = blend.THRESHOLD
    try:
        for threshold, expected in ((2.0, mapped), (-1.0, crossed)):
            blend.THRESHOLD = threshold
            assert difference(run.edit(replace="blend", alignment=alignment)[0], expected) < 1e-4
    finally:
        blend.THRESHOLD = usual


def test_blend_sees_combined_prompts_as_one_and_refuses_parts_of_the_frame(unet):
    """A map of a part has other places than one of the whole."""
    run, alignment = aligned(demo_run(unet), *EDITS["all"], sharpness=5)
    how = {"replace": "blend", "alignment": alignment}
    twice = replace(run, source=run.source * 2, target=run.target * 2)
    for one, other in zip(twice.edit(**how), run.edit(**how), strict=True):
        assert difference(one, other) < 1e-4
    in_part = replace(
        run, **{name: getattr(run, name) + halves(getattr(run, name))[:1] for name in ("source", "target")}
    )
    with pytest.raises(PartOfFrameError, match="a prompt is for an area"):
        in_part.edit(**how)


@pytest.mark.parametrize("source_cfg", [1.0, 4.0])
def test_at_source_cfg_1_the_negative_keeps_its_own_words(unet, source_cfg):
    """At cross-attention the negative's words are not the source's."""
    run, alignment = aligned(demo_run(unet), *EDITS["replace"])
    aligned_clip = run.edit(replace="cross_map", alignment=alignment, source_cfg=source_cfg)[0]
    negative = replace(run, negative=longer(run.negative, 5)).edit
    assert aligned_clip.isfinite().all()
    assert negative(replace="cross_map", alignment=alignment, source_cfg=source_cfg)[0].isfinite().all()


def test_unequal_prompts_without_an_alignment_are_refused(unet):
    run = demo_run(unet)
    for tokens in (3, 32):  # ComfyUI repeats the source for a target of twice its length
        for how in ("cross_map", "map_and_cross"):
            with pytest.raises(UnpairedBranchError, match=f"32 and {32 + tokens}.*same number of tokens"):
                replace(run, target=longer(run.target, tokens)).edit(replace=how)


def test_what_an_alignment_cannot_do_is_refused_with_the_reason(unet, tiny_models):
    run, alignment = aligned(demo_run(unet), *EDITS["replace"])
    with pytest.raises(AlignmentError, match="replace map does not look at words"):
        run.edit(alignment=alignment)
    with pytest.raises(AlignmentError, match="blend needs to know which words"):
        run.edit(replace="blend")
    with pytest.raises(AlignmentError, match="other prompts than target"):
        replace(run, target=longer(run.target, 4)).edit(replace="cross_map", alignment=alignment)
    with pytest.raises(AlignmentError, match="have the same words"):
        run.edit(replace="blend", alignment=replace(alignment, edited=()))
    with pytest.raises(UnknownModelError, match="text and picture share one attention"):
        tiny_run(tiny_models, "flux").edit(replace="map_and_cross")


def test_words_of_wans_own_text_encoder_are_edited_as_with_the_maps_in_memory(tiny_models):
    """UMT5, whose vocabulary comes inside the checkpoint, and the tokens that it writes itself."""
    clip = tiny_umt5()
    texts = ("a large red star over a background", "a large silver star over a blue background")
    source, target, alignment, report = AlignPrompts.execute(clip, *texts).args
    here, there = ([token for token, _ in clip.tokenize(text)["umt5xxl"][0]] for text in texts)
    pieces = clip.tokenizer.clip_umt5xxl.tokenizer
    taken = {
        (pieces.decode([here[i]]), pieces.decode([there[j]]))
        for j in range(len(there))
        for i in alignment.mapper[:, j].nonzero().flatten().tolist()
        if here[i] != there[j]
    }
    assert all("red" in one or one in "red" for one, other in taken), taken
    assert all(other in "silver" for one, other in taken), taken
    inserted = [pieces.decode([there[j]]) for j in range(len(there)) if not alignment.mapped[j]]
    assert "".join(inserted) == "blue"
    assert "red → silver: replaced" in report

    run = tiny_run(tiny_models, "wan21", steps=1)
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    run = replace(run, source=source, target=target, negative=negative)
    effect, error = effect_and_error(run, "cross_map", alignment)
    assert effect > 1e-3
    assert error < max(1e-4, effect / 100)
