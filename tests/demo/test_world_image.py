"""The world's picture model, as the repository has it, draws what its captions say."""

import pytest
from coherence.demo.world import model
from coherence.demo.world.evaluation import GATES, evaluate, table

MARGIN = 0.1
"""Two or three of 24 pictures: so much may chance, and another machine's arithmetic, take from a share."""


@pytest.mark.slow
def test_its_shares_are_about_as_large_as_the_gates():
    seen = evaluate(model.load_model(), model.load_clip(), model.load_vae(), 24, seed=1, steps=25, cfg=3.0)
    for name, gate in GATES.items():
        assert sum(each.correct[name] for each in seen) / len(seen) >= gate - MARGIN, table(seen)
