"""Without matplotlib nothing that was computed is lost: only the chart is empty."""

import io
import json
import sys

import pytest
import torch
from coherence.demo.model import load_model
from coherence.nodes.charts import ChartError, new_figure
from coherence.nodes.consistency import TemporalConsistency
from coherence.nodes.entropy_register import EntropyRegister, ReselectAttentionLayers
from coherence.nodes.ge_adapter_train import GEAdapterTrain
from coherence.nodes.inflation import TuneAVideoInflate
from coherence.nodes.map_preview import AttentionMapPreview
from coherence.nodes.noise_chart import NoiseCorrelation
from coherence.nodes.one_shot import OneShotTune
from comfy.patcher_extension import WrappersMP
from family_subjects import Encoder
from register_runs import demo_start
from tuning_runs import clip, prompt

TUNING = (1, 1e-3, 0, False, "fp32", 0)
TRAINING = (3, "", 1, "down", 1, 0.01, 1.0, 0.0, 1, 1e-2, 0, 1, 0)


def test_a_users_text_is_no_formula():
    new_figure("costs $5 or $\\frac $", "so $\\frac $").savefig(io.BytesIO())


def started(model):
    start = demo_start(model)
    return model, start.conditioning, start.noise, start.sigmas, start.latent


def one_shot(model):
    return OneShotTune.PREPARE_CLASS_CLONE(None).execute(
        TuneAVideoInflate.execute(model, "middle")[0], prompt(), clip(), *TUNING
    )


def ge_adapter(model):
    return GEAdapterTrain.PREPARE_CLASS_CLONE(None).execute(model, Encoder(prompt()), clip(), *TRAINING)


def register(model):
    return EntropyRegister.execute(*started(model), "all", "highest", 1, 50.0, "0", "exact")


def reselect(model):
    return ReselectAttentionLayers.execute(register(model)[0], "all", "lowest", 2, 50.0)


def noise(model):
    return NoiseCorrelation.execute(demo_start(model).noise, clip())


def consistency(_model):
    return TemporalConsistency.execute(torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def no_matplotlib(monkeypatch):
    """As if it were not installed."""
    import matplotlib.figure  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.mark.parametrize(
    ("node", "chart", "rest"),
    [
        (one_shot, 1, 0),
        (ge_adapter, 1, 0),
        (register, 1, 0),
        (reselect, 1, 0),
        (noise, 0, 1),
        (consistency, 1, 0),
    ],
    ids=["one-shot", "GE-Adapter", "register", "reselect", "noise", "consistency"],
)
def test_what_was_computed_comes_with_an_empty_chart(unet, no_matplotlib, caplog, node, chart, rest):
    with torch.inference_mode():
        result = node(unet).result
    assert result[chart].shape == (1, 768, 1440, 3)
    assert 0.9 < result[chart].mean() < 1, "white, with a line of text"
    assert "The chart could not be drawn; the other outputs are complete" in caplog.text
    assert "pip install matplotlib" in caplog.text
    assert result[rest] is not None
    if isinstance(result[rest], str):
        assert json.loads(result[rest])


def test_the_other_outputs_are_those_that_come_with_a_chart(unet, monkeypatch):
    with torch.inference_mode():
        whole = one_shot(unet)[0].tensors
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            monkeypatch.setitem(sys.modules, name, None)
        bare = one_shot(unet)[0].tensors
    assert all(torch.equal(x, bare[name]) for name, x in whole.items())


def test_a_node_that_only_draws_says_so_before_it_computes(unet, no_matplotlib):
    calls = []
    model = unet.clone()
    model.add_wrapper(WrappersMP.APPLY_MODEL, lambda executor, *args, **how: calls.append(0) or executor(*args, **how))
    with torch.inference_mode(), pytest.raises(ChartError, match=r"matplotlib, which draws.*pip install matplotlib"):
        AttentionMapPreview.execute(*started(model), "middle", 0, 1.0)
    assert not calls
