"""What TemporalConsistency tells with encoders: figures of transformers' CLIP with the same weights, or an error."""

import json

import pytest
import torch
from coherence.demo.clips import render_clip
from coherence.nodes import consistency
from coherence.nodes.checks import InputError
from coherence.nodes.consistency import TemporalConsistency
from support.tiny_clip import TEXT, VISION, WIDTH, tiny_clip, tiny_clip_vision

SOURCE = render_clip("circle", "red", "white", frames=4, seed=1).frames
EDIT = render_clip("square", "blue", "white", frames=4, seed=1).frames
TEXTS = ("a blue square", "a red circle")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip_vision():
    return tiny_clip_vision()


def report_of(*args, **inputs):
    return json.loads(TemporalConsistency.execute(*args, **inputs).args[0])


def vectors_of(clip, clip_vision) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors of both clips and of the texts, by transformers' classes."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).eval()
    vision.load_state_dict(clip_vision.model.state_dict(), strict=False)
    text = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, projection_dim=WIDTH)).eval()
    weights = clip.cond_stage_model.clip_l.transformer.state_dict()
    left = text.load_state_dict(weights, strict=False)
    assert not left.missing_keys
    tokens = torch.tensor([[token for token, _ in clip.tokenize(each)["l"][0]] for each in TEXTS])
    size, mean, std = (
        clip_vision.image_size,
        *(torch.tensor(x) for x in (clip_vision.image_mean, clip_vision.image_std)),
    )
    with torch.no_grad():
        pictures = [
            vision(
                (torch.nn.functional.interpolate(x.movedim(-1, 1), (size, size), mode="bicubic", antialias=True) * 255)
                .clamp(0, 255)
                .round()
                .div(255)
                .sub(mean[:, None, None])
                .div(std[:, None, None])
            ).image_embeds.double()
            for x in (EDIT, SOURCE)
        ]
        texts = text(tokens).text_embeds.double()
    return *(each / each.norm(dim=-1, keepdim=True) for each in pictures), texts / texts.norm(dim=-1, keepdim=True)


def test_every_figure_equals_that_of_transformers_clip(clip, clip_vision):
    report = report_of(
        EDIT, SOURCE, clip_vision=clip_vision, clip=clip, prompt=TEXTS[0], reference_prompt=f" {TEXTS[1]}\n"
    )
    edit, source, texts = vectors_of(clip, clip_vision)
    neighbours = (edit[1:] * edit[:-1]).sum(-1)
    seen = report["clip"]["content"]
    assert seen["frame_consistency"] == pytest.approx(neighbours.tolist(), abs=1e-5)
    vbench = (neighbours.clamp(min=0) + (edit[1:] @ edit[0]).clamp(min=0)) / 2
    assert seen["background_consistency"] == pytest.approx(vbench.tolist(), abs=1e-5)
    assert seen["text_similarity"] == pytest.approx((edit @ texts[0]).tolist(), abs=1e-5)
    assert seen["mean"]["text_similarity"] == pytest.approx(float((edit @ texts[0]).mean()), abs=1e-5)
    assert report["reference"]["content"]["text_similarity"] == pytest.approx((source @ texts[1]).tolist(), abs=1e-5)
    both = report["against_reference"]["content"]
    assert both["image_similarity"] == pytest.approx((edit * source).sum(-1).tolist(), abs=1e-5)
    moved, told = edit - source, texts[0] - texts[1]
    direction = (moved @ told) / moved.norm(dim=-1) / told.norm()
    assert both["directional_similarity"] == pytest.approx(direction.tolist(), abs=1e-4)


def test_without_a_prompt_frames_alone_are_compared(clip_vision):
    content = report_of(EDIT, clip_vision=clip_vision)["clip"]["content"]
    assert set(content) == {"mean", "frame_consistency", "background_consistency"}


def test_a_frame_counts_the_same_in_every_company(clip_vision):
    whole = report_of(EDIT, clip_vision=clip_vision)["clip"]["content"]["frame_consistency"]
    assert report_of(EDIT[1:], clip_vision=clip_vision)["clip"]["content"]["frame_consistency"] == whole[1:]


def test_the_encoders_change_no_other_figure(clip, clip_vision):
    report = report_of(EDIT, clip_vision=clip_vision, clip=clip, prompt="a star")
    del report["clip"]["content"]
    assert report == report_of(EDIT)


def test_the_text_encoder_encodes_as_before_afterwards(clip, clip_vision):
    def encoded():
        return clip.encode_from_tokens(clip.tokenize("a red star"), return_pooled=True)

    before = encoded()
    report_of(EDIT, clip_vision=clip_vision, clip=clip, prompt="a blue square")
    for one, other in zip(before, encoded(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("unset", [torch.eye, torch.zeros])
def test_a_text_encoder_without_its_projection_is_refused(tmp_path, clip_vision, unset):
    clip = tiny_clip(tmp_path)
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.copy_(unset(WIDTH, WIDTH))
    with pytest.raises(InputError, match=r"without CLIP's text projection.*Load the whole text encoder"):
        report_of(EDIT, clip_vision=clip_vision, clip=clip, prompt="a star")


def test_encoders_of_different_widths_are_refused(clip):
    with pytest.raises(InputError, match="no encoder with vectors of 16 channels"):
        report_of(EDIT, clip_vision=tiny_clip_vision(projection_dim=16), clip=clip, prompt="a star")


def test_dino_measures_subjects_and_refuses_prompts(clip, monkeypatch):
    dino = tiny_clip_vision(model_type="dinov2", use_swiglu_ffn=False, patch_size=14)
    content = report_of(EDIT, clip_vision=dino)["clip"]["content"]
    assert set(content) == {"mean", "frame_consistency", "subject_consistency"}
    monkeypatch.setattr(consistency, "temporal_consistency", None)  # refused before what takes longest
    with pytest.raises(InputError, match=r"dinov2\) cannot be compared with a prompt"):
        report_of(EDIT, clip_vision=dino, clip=clip, prompt="a star")


def test_an_encoder_without_a_vector_for_the_picture_is_refused():
    siglip = tiny_clip_vision(model_type="siglip_vision_model")
    with pytest.raises(InputError, match=r"siglip_vision_model\) has no vector for a whole picture"):
        report_of(EDIT, clip_vision=siglip)


def test_a_prompt_that_nothing_can_be_done_with_is_refused(clip, clip_vision):
    for inputs, words in (
        ({"prompt": "a star"}, "prompt is given without clip_vision and clip"),
        ({"prompt": "a star", "clip_vision": clip_vision}, "prompt is given without clip,"),
        ({"reference_prompt": "a star", "clip_vision": clip_vision, "clip": clip}, "without a reference"),
    ):
        with pytest.raises(InputError, match=words):
            report_of(EDIT, **inputs)
