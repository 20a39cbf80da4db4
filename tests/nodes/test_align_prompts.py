"""AlignPrompts: its face, what it encodes, and what its report says."""

import pytest
import torch
from coherence.demo.model import load_clip
from coherence.nodes.align_prompts import AlignPrompts
from coherence.samplers.words import WordsError


@pytest.fixture(scope="module")
def clip():
    return load_clip()


def test_texts_are_encoded_without_their_weights(clip):
    source, target, alignment, _ = AlignPrompts.execute(clip, "a red star", r"a (blue:1.5) \(big\) star").args
    for ours, plain in ((source, "a red star"), (target, r"a blue \(big\) star")):
        [[text, rest]] = clip.encode_from_tokens_scheduled(clip.tokenize(plain))
        assert torch.equal(ours[0][0], text)
        assert ours[0][1].keys() == rest.keys()
    assert alignment.weights[2] == 1.5
    assert alignment.weights.sum() == len(alignment.weights) + 0.5
    assert alignment.source[0] is source[0][0]


def test_the_report_says_what_becomes_of_every_word(clip):
    texts = "a small red star on white", "a red (circle:2) on the white"
    report = AlignPrompts.execute(clip, *texts).args[3].splitlines()
    assert report[2:] == [
        "a: takes its map in the source",
        "red: takes its map in the source",
        "star → circle: replaced, takes that word's map, times 2",
        "on: takes its map in the source",
        "+ the: inserted, keeps its own map",
        "white: takes its map in the source",
        "- small: removed",
        "Where blend edits: small, star",
    ]
    assert report[:2] == ["6 words in 32 tokens: source", "6 words in 32 tokens: target"]


def test_a_word_can_be_marked_and_other_weights_of_the_source_are_refused(clip):
    report = AlignPrompts.execute(clip, "a red (star:1)", "a red star").args[3]
    assert report.endswith("Where blend edits: star")
    with pytest.raises(WordsError, match=r"'star' has the weight 1\.1.*Weights belong in target_text"):
        AlignPrompts.execute(clip, "a red (star)", "a red star")
    with pytest.raises(WordsError, match="expected a number"):
        AlignPrompts.execute(clip, "a star", "a (star:nan)")
