"""Guidance at prompts that the world's picture model does not obey: what is measured, and what is made of it."""

import random
import sys

import pytest
import torch
from coherence.hosting.provision import PACK

sys.path.append(str(PACK / "benchmarks"))
import hard_prompts
from claims import FAILS, HOLDS, NO_GAIN
from coherence.demo.world.painting import paint
from coherence.demo.world.scenes import random_scene
from reporting.top import rows_of


@pytest.mark.parametrize("kind", hard_prompts.KINDS)
def test_a_drawn_picture_of_a_hard_prompt_is_all_as_said_and_has_no_speck(kind):
    rng = random.Random(0)
    scenes = [random_scene(rng, **hard_prompts.KINDS[kind]) for _ in range(4)]
    for picture, scene in zip(paint(scenes), scenes, strict=True):
        found = hard_prompts.measure(picture, scene)
        assert found["obeys"] == found["all"] == 1
        assert found["form"] > 0.97
        assert found["specks"] == 0


def test_a_picture_of_something_else_and_an_empty_one_are_told():
    rng = random.Random(1)
    scene, other = (random_scene(rng, **hard_prompts.KINDS["two things"]) for _ in range(2))
    wrong = hard_prompts.measure(paint([other])[0], scene)
    assert wrong["obeys"] < 1
    assert wrong["all"] == 0
    empty = hard_prompts.measure(torch.zeros(128, 128, 3), scene)
    assert empty["all"] == empty["form"] == 0


def test_a_guidance_is_judged_by_its_gain_at_the_layer_of_highest_entropy_alone():
    def records(gain: float) -> list[dict]:
        def figures(way: str, n: int) -> dict:
            more = gain * (way in ("U-I", "U-I, most damage, λ=2")) + 0.001 * (n % 3)
            return dict.fromkeys(("obeys", "all", "form", "specks"), 0.5 + more)

        ways = {way: [figures(way, n * (way != hard_prompts.PLAIN)) for n in range(16)] for way in hard_prompts.WAYS}
        return [{"key": "sweep", "layer": "output.3.attn1"}] + [{"kind": "patterns", "ways": ways}] * 3

    for gain, expected in ((0.2, HOLDS), (-0.2, FAILS), (-0.001, NO_GAIN)):
        found = [each for each in hard_prompts.claims(records(gain)) if "[U − I]" in each.text and each.is_papers]
        assert {each.verdict for each in found} == {expected}
        assert all(hard_prompts.SWEPT not in each.figure for each in found)


def test_what_draws_more_of_two_things_is_what_the_reports_first_table_advises():
    def figures(way: str, n: int) -> dict:
        return dict.fromkeys(hard_prompts.MEASURES, 0.5 + (0.2 + 0.001 * (n % 3)) * (way == "A-I, most damage, λ=2"))

    ways = {way: [figures(way, n) for n in range(16)] for way in hard_prompts.WAYS}
    found = hard_prompts.claims([{"kind": kind, "ways": ways} for kind in hard_prompts.KINDS for _ in range(3)])
    rows = {row.technique: row for row in rows_of(found, [])}
    assert len(rows) == len(hard_prompts.USES)
    best = rows["IEGuidanceCFG, A-I, at the layer that LayerSweep finds"]
    assert (best.advice, best.effect) == ("use it", "+20.1% (+20.1% to +20.1%) all as said; 48 prompts")
    assert {row.advice for row in rows.values() if row is not best} == {"no gain"}
