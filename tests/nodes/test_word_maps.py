"""Word maps: equal to maps kept whole in float64, where the word is, and clear about words that are not there."""

import pytest
import torch
import torch.nn.functional as F
from attended import scores_of
from coherence.attention.sites import NoSuchSiteError
from coherence.attention.word_maps import first_of_text, word_shares
from coherence.demo.clips import render_clip
from coherence.demo.model import load_clip, load_model, load_vae
from coherence.metrics.similarity import iou
from coherence.nodes.word_maps import WordMaps
from coherence.samplers.measure import Start
from coherence.samplers.word_maps import measure_words, parse_phrases, texts_before, tokens_of_prompt
from coherence.samplers.words import WordsError, WordTokens
from coherence.techniques.site import Site, alone, last, last_padded
from coherence.techniques.technique import AttentionCall, PartOfFrameError
from comfy_extras.nodes_custom_sampler import DisableNoise, Noise_RandomNoise
from inversion_runs import inverted, schedule
from tiny_models import FAMILIES
from watching import watched

from nodes import ConditioningSetArea, ConditioningSetMask

FACE = "model conditioning clip words latent_image noise sigmas measure_steps layers threshold prompt"
PROMPT = "a small red circle in the centre, white background"


@pytest.fixture(scope="module")
def demo():
    return load_model()


@pytest.fixture(scope="module")
def text():
    return load_clip()


@pytest.fixture(scope="module")
def prompt(text):
    return text.encode_from_tokens_scheduled(text.tokenize(PROMPT))


def test_face_of_the_node():
    schema = WordMaps.GET_SCHEMA()
    assert " ".join(item.id for item in schema.inputs) == FACE
    assert [item.id for item in schema.inputs if item.optional] == ["prompt"]
    assert {each.id: each.io_type for each in schema.outputs} == {"maps": "IMAGE", "masks": "MASK"}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
def test_a_words_share_is_that_of_its_columns(mask, monkeypatch):
    monkeypatch.setattr("coherence.attention.word_maps.CHUNK_BYTES", 4 * 3 * 30 * 4)  # four queries at once
    q, k, words = 3 * random(2, 3, 20, 8), random(2, 3, 30, 8), [[1], [2, 5], [29]]
    hidden = torch.arange(30) % 4 == 3
    added = torch.zeros(2, 1, 1, 30).masked_fill(hidden, -torch.inf)
    masks = {None: None, "boolean": ~hidden.expand(2, 1, 20, 30), "additive": added}
    scores = 0.7 * q.double() @ k.double().transpose(-1, -2) + (0 if mask is None else added)
    whole = scores.softmax(-1).mean(1)
    expected = torch.stack([whole[..., word].sum(-1) for word in words], dim=-1)
    torch.testing.assert_close(word_shares(q, k, words, 0.7, masks[mask]).double(), expected, atol=1e-6, rtol=0)


TEXT = {"demo": "cross", "wan21": "cross", "wan21_i2v": "cross", "cogvideox": "joint", "flux": "joint"}
TEXT |= {"hunyuan_video": "joint", "z_image": "joint"}
"""The kind of attention in which pictures meet text. Where they attend jointly, the text is first in these."""


@pytest.mark.parametrize("name", TEXT)
def test_maps_are_those_of_attention_kept_whole_in_float64(tiny_models, demo, prompt, name):
    family = None if name == "demo" else FAMILIES[name]
    model = tiny_models.load(name) if family else demo
    conditioning, shape = (family.conditioning()[0], family.latent_shape) if family else (prompt, (3, 4, 16, 16))
    length = conditioning[0][0].shape[1]
    tokens = WordTokens(("one", "two"), ((1,), (3, 4)), length, ())
    start = Start(conditioning, Noise_RandomNoise(3), schedule(model, 2, "simple"), {"samples": torch.zeros(shape)})
    kind, steps = TEXT[name], (0, 1)
    with torch.inference_mode():
        found = measure_words(model, start, tokens, ("one", "two"), steps, "*", "test")
        looked, watch = watched(model, kinds=[kind])
        measure_words(looked, start, tokens, ("one",), steps, "*", "test")
    assert found.kind == kind

    in_rows, (height, width) = len(shape) == 4, shape[-2:]
    sums, number = 0, 0
    for call in watch.calls:
        scores = scores_of(call)
        if kind == "cross" and scores.shape[-1] != length:
            continue
        weights = scores.softmax(-1).mean(1)
        columns = torch.stack([weights[..., word].sum(-1) for word in ([1], [3, 4])], 1)
        here = call.leading_tokens or 0
        picture = columns[..., here : here + call.grid[0] * call.grid[1] * (1 if in_rows else call.frames)]
        if not in_rows:
            picture = picture[0].unflatten(-1, (call.frames, -1)).transpose(0, 1)
        sums += F.interpolate(picture.unflatten(-1, call.grid), (height, width), mode="bilinear", antialias=True)
        number += 1
    expected = sums / number
    expected = expected / expected.amax((0, 2, 3), keepdim=True)
    torch.testing.assert_close(found.maps.double(), expected, atol=1e-5, rtol=0)
    assert (found.maps[:, 0] - found.maps[:, 1]).abs().max() > 1e-3
    assert len(found.layers) * len(steps) == number


@pytest.fixture(scope="module")
def clip():
    with torch.inference_mode():
        rendered = render_clip("circle", "red", "white", frames=2, seed=3)
        return {"samples": load_vae().encode(rendered.frames)}, rendered.mask


def run(model, prompt, text, latent, sigmas, words, **changed):
    (silent,) = DisableNoise.execute().args
    how = {"measure_steps": "all", "layers": "*", "threshold": 0.5, "prompt": PROMPT} | changed
    with torch.inference_mode():
        return WordMaps.execute(model, prompt, text, words, latent, silent, sigmas, **how).args


def test_the_mask_of_a_word_is_where_it_is_in_a_real_clip(demo, text, prompt, clip):
    latent, mask = clip
    sigmas = schedule(demo, 6)
    noise, _ = inverted(demo, prompt, latent, sigmas, refine_iterations=1)
    maps, masks = run(
        demo, prompt, text, noise, sigmas, "circle, red", measure_steps="3-5", layers="output.2", threshold=0.4
    )
    assert len(maps) == 2
    assert masks.shape == (2, 16, 16)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    there = F.interpolate(mask[:, None].float(), (16, 16), mode="area")[:, 0] > 0.5
    assert iou(masks > 0.5, there).min() > 0.8
    assert not demo.wrappers
    assert not demo.model_options["transformer_options"]


# Words ---------------------------------------------------------------------------------------------------------


def test_a_word_that_is_not_there_is_refused_with_those_that_are(demo, text, prompt, clip):
    with pytest.raises(
        WordsError, match=r"'square' is not in the prompt.*a, small, red, circle, in, the, centre, ,, white"
    ):
        run(demo, prompt, text, clip[0], schedule(demo, 1), "circle, square")
    with pytest.raises(ValueError, match="words is empty"):
        parse_phrases(" ,\n")
    assert parse_phrases("circle, white background\ncircle") == ["circle", "white background"]


def test_the_text_is_found_among_what_was_typed(text, prompt):
    graph = {
        "7": {"inputs": {"conditioning": ["5", 0], "words": "circle", "clip": ["1", 1]}},
        "5": {"inputs": {"clip": ["1", 1], "text": ["3", 0]}},
        "3": {"inputs": {"value": PROMPT}},
        "1": {"inputs": {"kind": "image"}},
    }
    texts = texts_before(graph, "7", "conditioning")
    assert sorted(texts) == sorted(["image", PROMPT])
    tokens = tokens_of_prompt(text, prompt, texts)
    assert "circle" in tokens.words
    assert texts_before(None, None, "conditioning") == []


def test_a_text_that_conditioning_is_not_of_is_refused(text, prompt):
    for conditioning, texts, said in (
        (prompt, [], "prompt is empty"),
        (prompt, ["a large blue star"], "not the text that clip made it of"),
        ([*prompt, *prompt], [PROMPT], "combines 2 prompts"),
    ):
        with pytest.raises(WordsError, match=said):
            tokens_of_prompt(text, conditioning, texts)


def test_a_prompt_for_a_part_of_the_frame_is_refused(demo, text, prompt):
    latent, corner = {"samples": torch.zeros(2, 4, 16, 16)}, torch.zeros(1, 16, 16)
    corner[:, :8, :8] = 1
    area = ConditioningSetArea().append(prompt, 64, 64, 0, 0, 1.0)[0]
    bounds, default = (ConditioningSetMask().append(prompt, corner, how, 1.0)[0] for how in ("mask bounds", "default"))
    for partial in (area, bounds):
        with pytest.raises(PartOfFrameError, match="given a part of the frame"):
            run(demo, partial, text, latent, schedule(demo, 1), "circle")
    run(demo, default, text, latent, schedule(demo, 1), "circle")


@pytest.mark.parametrize(
    ("leading", "where", "first"), [(7, last, 0), (9, last, None), (32, last_padded(32), 0), (0, alone, 20)]
)
def test_the_text_is_before_the_picture_or_behind_it_or_unknown(leading, where, first):
    q = random(1, 2, leading + 20 + (7 if leading == 0 else 0), 4)
    site = Site("blocks.0", 0, "joint", 2, torch.nn.Identity(), "rows", where)
    lie = {"leading_tokens": leading, "tokens_per_frame": 20, "trailing_tokens": q.shape[2] - 20 - leading}
    assert first_of_text(AttentionCall(q, q, q, 2, site, ((0, None),), (0,), 1.0, **lie), 7) == first


def test_layers_without_the_text_are_refused(tiny_models):
    family, model = FAMILIES["flux"], tiny_models.load("flux")
    tokens = WordTokens(("one",), ((1,),), 9, ())  # the conditioning has 7
    start = Start(family.conditioning()[0], Noise_RandomNoise(3), schedule(model, 1), family.latent())
    with torch.inference_mode(), pytest.raises(NoSuchSiteError, match="words cannot be mapped"):
        measure_words(model, start, tokens, ("one",), (0,), "*", "test")
