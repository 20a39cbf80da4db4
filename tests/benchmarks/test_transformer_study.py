"""IE-Adapt on the demo's video transformer: what is measured of its clips, and what is made of it."""

import random
import sys

import pytest
import torch
from coherence.hosting.provision import PACK

sys.path.append(str(PACK / "benchmarks"))
import transformer_study as study
from claims import FAILS, HOLDS
from coherence.demo.world.motion import paint_clips, random_moving_scene


@pytest.fixture(scope="module")
def moving():
    return random_moving_scene(random.Random(5), backgrounds=0.0, fills=0.0)


@pytest.fixture(scope="module")
def drawn(moving):
    return paint_clips([moving], study.FRAMES)[0]


def test_a_drawn_clip_obeys_and_moves_and_an_empty_one_does_not(moving, drawn):
    found = study.measure(drawn, moving)
    assert found["obeys"] == found["moves"] == 1
    assert found["form"] > 0.97
    assert study.measure(torch.zeros_like(drawn), moving)["obeys"] == 0


def test_an_edit_has_another_colour_and_keeps_the_thing_where_it_is(moving, drawn):
    target = study.recoloured(moving, random.Random(1))
    edited = paint_clips([target], study.FRAMES)[0]
    found = study.measure(edited, target, drawn)
    assert found["obeys"] == 1
    assert found["iou"] > 0.97
    assert study.measure(drawn, target, drawn)["obeys"] < 1
    assert study.measure(edited.roll(40, dims=2), target, drawn)["iou"] < 0.5


def test_a_way_is_judged_by_its_gain_over_what_it_is_compared_with():
    def records(better: str) -> list[dict]:
        def ways(kind: str, number: int) -> dict:
            names = (*study.MEASURES, "iou")
            return {
                way: dict.fromkeys(names, 0.5 + 0.2 * (way == better) + 0.001 * (number % 3) * (way != better))
                for way in study.KINDS[kind]
            }

        return [{"key": "sweep"}] + [{"kind": kind, "ways": ways(kind, n)} for n in range(24) for kind in study.KINDS]

    def verdicts(better: str, text: str) -> set[str]:
        return {each.verdict for each in study.claims(records(better)) if text in each.text}

    assert verdicts("U-I", "[U − I] improves") >= {HOLDS}
    assert verdicts("strategy 1", "A-I is better than strategy 1") == {FAILS}
    assert verdicts("lowest 50%", "keep the structure") == {HOLDS}
    assert verdicts("lowest 25%", "The fewer are replaced") == {HOLDS}


@pytest.mark.slow
@torch.inference_mode()
def test_the_model_is_guided_and_edited_in_every_way(tmp_path):
    model = study.Transformer()
    for kind, ways in study.KINDS.items():
        found = study.record(model, tmp_path / kind, kind, 1, 2, "blocks.1.self_attn")
        assert tuple(found["ways"]) == ways
        clips = [study.strip(tmp_path / kind / f"{way}.png", frames=study.FRAMES) for way in ways]
        assert {tuple(clip.shape) for clip in clips} == {(17, 128, 128, 3)}
        assert all(not torch.equal(clips[0], clip) for clip in clips[1:])
