"""The study of the field's methods: what is compared with what, and how figures are read."""

import sys

import pytest
from coherence.hosting.provision import PACK

sys.path.append(str(PACK / "benchmarks"))
import methods_study as study
from claims import FAILS, HOLDS
from editing_study import AS_PEERS

CLIPS = 8
MEASURED = ("fidelity", "form", "background", "consistency", "warped")


def records(ways, **better) -> list[dict]:
    """Of clips on which all ``ways`` measure the same but in what ``better`` says: way and measure → by how much."""

    def figures(way: str, clip: int) -> dict:
        own = {name: 0.5 + 0.01 * clip + better.get(f"{way}/{name}", 0) for name in MEASURED}
        return own | {"seconds": (1 + clip) * better.get(f"{way}/time", 1)}

    clips = [{"key": f"{n:02}", "ways": {way: figures(way, n) for way in ways}} for n in range(CLIPS)]
    return [{"key": study.MEMORY, "MiB": dict.fromkeys(ways, 2.0)}, *clips]


def test_a_step_is_timed_beside_the_plain_edit_of_the_same_clip():
    """The machine may be slower on one clip than on another."""
    taken = study.values(records(study.WAYS, **{"PnP/time": 2.0}), "PnP", "time")
    assert taken.tolist() == [2.0] * CLIPS
    assert study.values(records(study.WAYS), "PnP", "memory").tolist() == [2.0]


@pytest.mark.parametrize(
    ("read", "ways", "way", "name", "words", "sign"),
    [
        (study.claims, study.WAYS, "TokenFlow", "consistency", "TokenFlow is steadier", 1),
        (study.claims, study.WAYS, "FLATTEN", "warped", "FLATTEN follows", -1),
        (study.claims_of_adapters, None, "VidToMe, adapter", "fidelity", "adapter makes VidToMe closer", 1),
        (study.claims_of_adapters, None, "TokenFlow, bilateral", "consistency", "inversion makes TokenFlow more", 1),
    ],
)
def test_a_claim_is_read_with_the_sign_of_its_effect(read, ways, way, name, words, sign):
    ways = ways or [study.named(method, added) for method in study.OF_TABLES for added in study.ADDED]
    for by, expected in ((0.1 * sign, HOLDS), (-0.1 * sign, FAILS)):
        (found,) = (each for each in read(records(ways, **{f"{way}/{name}": by})) if words in each.text)
        assert found.verdict == expected


def test_every_way_is_made_of_nodes_and_edits_that_there_are():
    for way in (*study.WAYS.values(), *study.OF_TABLES.values()):
        assert set(way.nodes) <= set(study.NODES)
        assert not (way.peer and (way.nodes or way.edit))
        assert way.peer in ("", *AS_PEERS)
