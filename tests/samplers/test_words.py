"""Where the words of a prompt lie among its tokens, with the tokenizers that ComfyUI has."""

from types import SimpleNamespace

import pytest
import torch
from coherence.demo.model import load_clip
from coherence.samplers.words import Text, WordsError, word_tokens
from comfy.sd1_clip import SD1Tokenizer
from comfy.sdxl_clip import SDXLTokenizer
from comfy.text_encoders.flux import FluxTokenizer
from comfy.text_encoders.hunyuan_video import HunyuanVideoTokenizer
from comfy.text_encoders.qwen_image import QwenImageTokenizer
from comfy.text_encoders.sd3_clip import SD3Tokenizer
from comfy.text_encoders.z_image import ZImageTokenizer

PROMPT = r"a tiny dachshund's (silver:1.5) jeep, at the \(old\) café!"
WORDS = ["a", "tiny", "dachshund's", "silver", "jeep", ",", "at", "the", "(", "old", ")", "café", "!"]


def clip_with(tokenizer) -> SimpleNamespace:
    """ComfyUI's CLIP without its weights, which are gigabytes."""

    def tokenize(text, return_word_ids=False):
        return tokenizer.tokenize_with_weights(text, return_word_ids)

    return SimpleNamespace(tokenizer=tokenizer, cond_stage_model=SimpleNamespace(), tokenize=tokenize)


def written_in(clip, words, name: str, offset: int = 0) -> list[str]:
    """What the vocabulary has for the tokens of each word."""
    tokenizer = getattr(clip.tokenizer, name)
    made = clip.tokenize(Text.of(PROMPT).escaped)[name.removeprefix("clip_")]
    tokens = [token for chunk in made for token, _ in chunk]
    ids = [[tokens[position - offset] for position in each if 0 <= position - offset < len(tokens)] for each in words]
    return ["".join(tokenizer.inv_vocab[each] for each in here).replace("</w>", "").strip("▁Ġ") for here in ids]


def test_a_prompt_is_read_as_comfyui_reads_its_weights():
    text = Text.of(PROMPT)
    assert text.plain == "a tiny dachshund's silver jeep, at the (old) café!"
    assert list(text.words) == WORDS
    assert [weight for weight in text.weights if weight is not None] == [1.5]
    assert Text.of("a (red) (big:1.0) (so (very:1.3) nice)").weights == (None, 1.1, 1.0, 1.1, 1.3, 1.1)


@pytest.mark.parametrize(
    ("tokenizer", "name", "length", "offset"),
    [
        (SD1Tokenizer, "clip_l", lambda size: size, 0),
        (SDXLTokenizer, "clip_g", lambda size: size, 0),
        (FluxTokenizer, "t5xxl", lambda size: size, 0),
        (QwenImageTokenizer, "qwen25_7b", lambda size: size - 34, -34),  # its template is cut off
        (ZImageTokenizer, "qwen3_4b", lambda size: size, 0),  # and this one is not
    ],
)
def test_every_word_has_the_tokens_that_write_it(tokenizer, name, length, offset):
    clip = clip_with(tokenizer())
    made = clip.tokenize(Text.of(PROMPT).escaped)[name.removeprefix("clip_")]
    found = word_tokens(clip, Text.of(PROMPT), length(sum(map(len, made))))
    assert [word.replace("Ã©", "é") for word in written_in(clip, found.tokens, name, offset)] == WORDS
    every = [position for each in found.tokens for position in each]
    assert every == sorted({*every})  # each token has one word
    assert [found.find("SILVER jeep")] == [[(*found.tokens[3], *found.tokens[4])]]


def test_sd3_has_every_word_twice():
    clip = clip_with(SD3Tokenizer())
    found = word_tokens(clip, Text.of(PROMPT), 154)
    assert all(any(n < 77 for n in each) and any(n >= 77 for n in each) for each in found.tokens)
    clip.cond_stage_model = SimpleNamespace(clip_l=None, clip_g=None)
    assert word_tokens(clip, Text.of(PROMPT), 77).tokens[3] == tuple(n - 77 for n in found.tokens[3] if n >= 77)


def test_a_long_prompt_goes_on_in_the_next_chunk():
    clip = clip_with(SD1Tokenizer())
    text = Text.of("a red star, " * 30)
    found = word_tokens(clip, text, 154)
    assert found.find("star") == [(n,) for n in (3 + 4 * k + (2 if k > 18 else 0) for k in range(30))]
    assert [tuple(each) for each in found.chunks] == [(0, 77), (77, 154)]


def test_a_word_inside_anothers_token_has_that_one():
    """The host's Llama tokenizer drops spaces: "a photo" is "aph", "oto"."""
    clip = clip_with(HunyuanVideoTokenizer())
    text = Text.of("a photo of a cat")
    made = clip.tokenize(text.escaped)["llama"][0]
    found = word_tokens(clip, text, len(made) - 95)
    assert all(found.tokens)


def test_the_demo_models_words():
    clip = load_clip()
    [[cond, _]] = clip.encode_from_tokens_scheduled(clip.tokenize("a big red star"))
    found = word_tokens(clip, Text.of("a big red star"), cond.shape[1])
    assert found.tokens == ((1,), (2,), (3,), (4,))


def test_a_conditioning_of_another_length_is_refused():
    with pytest.raises(WordsError, match=r"has 80 tokens.*l 77"):
        word_tokens(clip_with(SD1Tokenizer()), Text.of("a cat"), 80)


def test_a_textual_inversion_is_one_word(tmp_path):
    torch.save({"emb": torch.randn(3, 768)}, tmp_path / "thing.pt")
    clip = clip_with(SD1Tokenizer(embedding_directory=[str(tmp_path)]))
    found = word_tokens(clip, Text.of("a embedding:thing cat"), 77)
    assert found.words == ("a", "embedding:thing", "cat")
    assert found.tokens == ((1,), (2, 3, 4), (5,))
