"""Short tunings of one clip."""

from __future__ import annotations

import pytest
import torch
from coherence.attention.forms import TUNE_A_VIDEO, Form
from coherence.training.one_shot import Settings, tune
from watching import DEMO

EI2 = Form("stam", "before_cross", "fine_coarse")


FORMS = pytest.mark.parametrize("form", [EI2, TUNE_A_VIDEO], ids=lambda form: form.module)


def clip(frames=3, seed=0):
    return {"samples": 0.2 * torch.randn(frames, *DEMO.latent_shape[1:], generator=torch.Generator().manual_seed(seed))}


def prompt(rows=1, repeats=1):
    text = torch.randn(rows, 32, 128, generator=torch.Generator().manual_seed(1))
    return [[text.repeat(1, repeats, 1), {}]]


def tuned(model, positive=None, latent=None, after_step=lambda _: None, **settings):
    """As the node does it, in inference mode."""
    settings = {"steps": 2, "learning_rate": 1e-3, **settings}
    with torch.inference_mode():
        return tune(model, positive or prompt(), latent or clip(), Settings(**settings), after_step)
