"""The mathematics of EI²'s propositions, of its ablation and of the search of ZS²'s noise."""

import sys
from itertools import pairwise

import pytest
import torch
from coherence.hosting.provision import PACK

sys.path.append(str(PACK / "benchmarks"))
import ei2_ablation
import ei2_study
import noise_convergence
import propositions
from claims import FAILS, HOLDS
from ei2_bench import ABLATED, FORMS


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Propositions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_map_moves_by_less_than_the_bound_that_the_proof_gives(scale):
    heads, width = 2, 16
    for seed in range(20):
        z, query, key = normal(3, 12, width, seed=seed), *(normal(width, width, seed=seed + k) for k in (100, 200))
        tuned = query + scale * normal(width, width, seed=seed + 300)
        share = propositions.share_of_bound(z, tuned, query, key, heads)
        assert 0 < share / (width / heads) ** 0.5 <= 1


def test_omega_is_1_where_a_row_attends_to_one_token_and_1_of_n_where_it_attends_to_all():
    z = normal(1, 8, 4)
    nothing = torch.zeros(4, 4, dtype=torch.float64)
    assert propositions.omega(z, nothing, nothing, 2) == pytest.approx(1 / 8)
    far = 1e4 * torch.eye(4, dtype=torch.float64)
    assert propositions.omega(z, far, far, 1).max().item() == pytest.approx(1)


def test_rows_of_attention_have_proposition_1s_moments_where_the_map_does_not_depend_on_the_tokens():
    weights = {"q": torch.zeros(8, 8).double(), "k": normal(8, 8), "v": normal(8, 8, seed=1)}
    z = normal(2, 50, 8, seed=2) + 3
    mean, covariance = propositions.gaussian(z, weights, 2, 0)
    assert mean < 0.02
    assert covariance < 0.15, "of 400 draws"


# Ablation ------------------------------------------------------------------------------------------------------------


def ablated(steady: dict[str, float]) -> list[dict]:
    measures = dict.fromkeys(("obeys", "change", "track", "ssim", "warped", "iou"), 0.5)
    return [
        {
            "ways": {
                way: dict.fromkeys(ei2_study.CHANGES, measures | {"steady": steady.get(way, 0.6) + 0.001 * (clip % 3)})
                for way in ei2_ablation.WAYS
            }
        }
        for clip in range(8)
    ]


@pytest.mark.parametrize(("missing", "module"), [("FFAM alone", "STAM"), ("STAM alone", "FFAM")])
def test_a_module_helps_where_its_absence_hurts(missing, module):
    for without, expected in ((0.4, HOLDS), (0.8, FAILS)):
        found = ei2_ablation.claims(ablated({missing: without}))
        (claim,) = (
            each
            for each in found
            if each.text.startswith(f"{module} facilitates temp") and "neighbours show" in each.figure
        )
        assert claim.verdict == expected


def test_each_ablated_form_differs_from_ei2_in_one_thing():
    whole = FORMS["STAM"]
    for name, form in ABLATED.items():
        assert sum(a != b for a, b in zip(form, whole, strict=True)) == 1, name


# The search ----------------------------------------------------------------------------------------------------------


def test_what_is_left_falls_with_the_steps_and_orthogonal_candidates_fall_fastest():
    found = noise_convergence.record(3, 15)
    for way, errors in found.items():
        assert len(errors) == 16
        assert errors[-1] < errors[0] / 100, way
    assert found["orthogonal"][-1] < 0.02
    searched = found["search"]
    assert all(after <= before for before, after in pairwise(searched))


def test_convergence_is_judged_by_what_is_left():
    def records(left: float, alone: float) -> list[dict]:
        ways = {"search": left, "one candidate": alone, "orthogonal": 0.0}
        return [{way: [1.0, x + 0.0001 * (seed % 3)] for way, x in ways.items()} for seed in range(8)]

    verdicts = [
        [each.verdict for each in noise_convergence.claims(records(*left))][:2] for left in ((0.01, 0.5), (0.5, 0.5))
    ]
    assert verdicts[0] == [HOLDS, HOLDS]
    assert verdicts[1][0] == FAILS
