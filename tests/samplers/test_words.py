"""Where the words of a prompt lie among its tokens, with the tokenizers that ComfyUI has."""

from types import SimpleNamespace

import pytest
import torch
from coherence.demo.model import load_clip
from coherence.samplers.words import Text, WordsError, word_tokens
from comfy.sd1_clip import SD1Tokenizer
from comfy.sdxl_clip import SDXLTokenizer
from comfy.text_encoders.anima import AnimaTokenizer
from comfy.text_encoders.flux import FluxTokenizer
from comfy.text_encoders.hunyuan_video import HunyuanVideoTokenizer
from comfy.text_encoders.krea2 import Krea2Tokenizer
from comfy.text_encoders.lt import LTXAVGemmaTokenizer, LTXVT5Tokenizer
from comfy.text_encoders.lumina2 import LuminaTokenizer
from comfy.text_encoders.qwen_image import QwenImageTokenizer
from comfy.text_encoders.sd3_clip import SD3Tokenizer
from comfy.text_encoders.wan import WanT5Tokenizer
from comfy.text_encoders.z_image import ZImageTokenizer
from tiny_text import spiece_model

PROMPT = r"a tiny dachshund's (silver:1.5) jeep, at the \(old\) café!"
WORDS = ["a", "tiny", "dachshund's", "silver", "jeep", ",", "at", "the", "(", "old", ")", "café", "!"]


def clip_with(tokenizer) -> SimpleNamespace:
    """ComfyUI's CLIP without its weights, which are gigabytes."""

    def tokenize(text, return_word_ids=False):
        return tokenizer.tokenize_with_weights(text, return_word_ids)

    return SimpleNamespace(tokenizer=tokenizer, cond_stage_model=SimpleNamespace(), tokenize=tokenize)


def entry(length: int, **options) -> tuple:
    """A conditioning's, of so many tokens."""
    return torch.empty(1, length, 1), options


def decoded(clip, name: str, words, cut: int = 0) -> list[str]:
    """What the tokenizer itself writes for the tokens of each word."""
    tokenizer = getattr(clip.tokenizer, name).tokenizer
    made = clip.tokenize(Text.of(PROMPT).escaped)[name.removeprefix("clip_")]
    tokens = [token for chunk in made for token, _ in chunk]
    return [written(tokenizer, [tokens[n + cut] for n in each if n + cut < len(tokens)]) for each in words]


def written(tokenizer, tokens) -> str:
    """Without spaces: CLIP's writes one before every token that began a word."""
    return "".join(tokenizer.decode(tokens).split())


def test_a_prompt_is_read_as_comfyui_reads_its_weights():
    text = Text.of(PROMPT)
    assert text.plain == "a tiny dachshund's silver jeep, at the (old) café!"
    assert list(text.words) == WORDS
    assert [weight for weight in text.weights if weight is not None] == [1.5]
    assert Text.of("a (red) (big:1.0) (so (very:1.3) nice)").weights == (None, 1.1, 1.0, 1.1, 1.3, 1.1)


@pytest.mark.parametrize(
    ("tokenizer", "name", "spiece", "cut"),
    [
        (SD1Tokenizer, "clip_l", "", 0),
        (SDXLTokenizer, "clip_g", "", 0),
        (FluxTokenizer, "t5xxl", "", 0),
        (LTXVT5Tokenizer, "clip_t5xxl", "", 0),
        (WanT5Tokenizer, "clip_umt5xxl", "t5", 0),
        (LuminaTokenizer, "gemma2_2b", "gemma", 0),
        (QwenImageTokenizer, "qwen25_7b", "", 34),  # its template is cut off
        (Krea2Tokenizer, "qwen3vl_4b", "", 34),
        (ZImageTokenizer, "qwen3_4b", "", 0),  # and this one is not
    ],
)
def test_every_word_has_the_tokens_that_write_it(tokenizer, name, spiece, cut):
    clip = clip_with(tokenizer(tokenizer_data={"spiece_model": spiece_model(spiece)} if spiece else {}))
    made = clip.tokenize(Text.of(PROMPT).escaped)[name.removeprefix("clip_")]
    found = word_tokens(clip, Text.of(PROMPT), entry(sum(map(len, made)) - cut))
    assert decoded(clip, name, found.tokens, cut) == WORDS
    every = [position for each in found.tokens for position in each]
    assert every == sorted({*every})  # each token has one word
    assert [found.find("SILVER jeep")] == [[(*found.tokens[3], *found.tokens[4])]]


@pytest.mark.parametrize("kind", ["t5", "gemma"])
def test_a_word_that_is_written_in_bytes_has_them(kind):
    """Every vocabulary of such models has them for what it does not know."""
    tokenizer = {"t5": WanT5Tokenizer, "gemma": LuminaTokenizer}[kind](
        tokenizer_data={"spiece_model": spiece_model(kind)}
    )
    clip, text = clip_with(tokenizer), Text.of("a 猫 jeep, ½ zebra")
    ((name, (made,)),) = clip.tokenize(text.escaped).items()
    found = word_tokens(clip, text, entry(len(made)))
    inner = getattr(tokenizer, f"clip_{name}", None) or getattr(tokenizer, name)
    assert len(found.tokens[1]) >= 3
    assert [written(inner.tokenizer, [made[n][0] for n in each]) for each in found.tokens] == [
        written(inner.tokenizer, inner.tokenizer.tokenizer.encode(word, add_bos=False, add_eos=False))
        for word in text.words
    ]


def test_where_a_model_reads_other_tokens_than_it_is_given_words_are_told_among_those():
    """Anima's adapter makes T5's tokens of Qwen's and pads with zeros; LTX-2's pads with registers."""
    clip, text = clip_with(AnimaTokenizer()), Text.of(PROMPT)
    made = clip.tokenize(text.escaped)
    ids = torch.tensor([token for token, _ in made["t5xxl"][0]])
    assert len(ids) != len(made["qwen3_06b"][0])
    found = word_tokens(clip, text, entry(len(made["qwen3_06b"][0]), t5xxl_ids=ids))
    assert found.length == 512
    assert found.chunks == ((0, 512),)
    assert decoded(clip, "t5xxl", found.tokens) == WORDS

    clip = clip_with(LTXAVGemmaTokenizer(tokenizer_data={"spiece_model": spiece_model("gemma")}))
    tokens = [token for token, _ in clip.tokenize(text.escaped)["gemma3_12b"][0]]
    padding = sum(token == 0 for token in tokens)  # before the text, and cut off
    found = word_tokens(clip, text, entry(len(tokens) - padding, unprocessed_ltxav_embeds=True))
    assert found.length == len(tokens) == 1024
    assert max(n for each in found.tokens for n in each) < len(tokens) - padding
    assert decoded(clip, "gemma3_12b", found.tokens, padding) == WORDS


def test_a_tokenizer_that_does_not_tell_the_prompts_tokens_is_refused():
    """MiniMax H3's, where ComfyUI has it."""

    class Silent(SD1Tokenizer):
        def tokenize_with_weights(self, text, return_word_ids=False, **how):
            made = super().tokenize_with_weights(text, return_word_ids, **how)
            return {
                name: [[(*each[:2], 0)[: len(each)] for each in row] for row in rows] for name, rows in made.items()
            }

    with pytest.raises(WordsError, match="does not tell which tokens are the prompt's"):
        word_tokens(clip_with(Silent()), Text.of("a cat"), entry(77))


def test_sd3_has_every_word_twice():
    clip = clip_with(SD3Tokenizer())
    found = word_tokens(clip, Text.of(PROMPT), entry(154))
    assert all(any(n < 77 for n in each) and any(n >= 77 for n in each) for each in found.tokens)
    clip.cond_stage_model = SimpleNamespace(clip_l=None, clip_g=None)
    assert word_tokens(clip, Text.of(PROMPT), entry(77)).tokens[3] == tuple(n - 77 for n in found.tokens[3] if n >= 77)


def test_a_long_prompt_goes_on_in_the_next_chunk():
    clip = clip_with(SD1Tokenizer())
    text = Text.of("a red star, " * 30)
    found = word_tokens(clip, text, entry(154))
    assert found.find("star") == [(n,) for n in (3 + 4 * k + (2 if k > 18 else 0) for k in range(30))]
    assert [tuple(each) for each in found.chunks] == [(0, 77), (77, 154)]


def test_a_word_inside_anothers_token_has_that_one():
    """The host's Llama tokenizer drops spaces: "a photo" is "aph", "oto"."""
    clip = clip_with(HunyuanVideoTokenizer())
    text = Text.of("a photo of a cat")
    made = clip.tokenize(text.escaped)["llama"][0]
    found = word_tokens(clip, text, entry(len(made) - 95))
    assert all(found.tokens)


def test_the_demo_models_words():
    clip = load_clip()
    [cond] = clip.encode_from_tokens_scheduled(clip.tokenize("a big red star"))
    found = word_tokens(clip, Text.of("a big red star"), cond)
    assert found.tokens == ((1,), (2,), (3,), (4,))


def test_a_conditioning_of_another_length_is_refused():
    with pytest.raises(WordsError, match=r"has 80 tokens.*l 77"):
        word_tokens(clip_with(SD1Tokenizer()), Text.of("a cat"), entry(80))


def test_a_textual_inversion_is_one_word(tmp_path):
    torch.save({"emb": torch.randn(3, 768)}, tmp_path / "thing.pt")
    clip = clip_with(SD1Tokenizer(embedding_directory=[str(tmp_path)]))
    found = word_tokens(clip, Text.of("a embedding:thing cat"), entry(77))
    assert found.words == ("a", "embedding:thing", "cat")
    assert found.tokens == ((1,), (2, 3, 4), (5,))
