"""A model that predicts NaN in one frame stops every node that samples or trains, at its step; reports stay JSON."""

import json
import re

import pytest
import torch
from adapter_runs import QUICK, clips
from coherence.attention.forms import TUNE_A_VIDEO
from coherence.demo.model import load_model
from coherence.nodes.inversion import SamplerBilateralDDIMInvert
from coherence.nodes.noise_chart import NoiseCorrelation
from coherence.nodes.reports import to_json
from coherence.samplers.finite import NotFiniteError
from coherence.samplers.motion_field import MotionField, motion_latents
from coherence.training.ge_adapter_training import train_adapter
from coherence.training.loop import Schedule, TrainingError, fit
from comfy.patcher_extension import WrappersMP
from editing_runs import demo_run
from inflation_runs import put
from inversion_runs import FILTER, inverted, sampled, schedule
from measured import figures_of, maps_of
from register_runs import demo_conditioning, demo_start
from tuning_runs import tuned
from watching import DEMO

FRAME = 1


def broken(model, calls=0, value=float("nan")):
    """A clone of ``model`` whose prediction is NaN or infinite in one frame, after so many good calls."""
    done = 0

    def spoil(executor, *args, **kwargs):
        nonlocal done
        out = executor(*args, **kwargs).clone()
        if done >= calls:
            out[FRAME, 0, 0, 0] = value
        done += 1
        return out

    clone = model.clone()
    clone.add_wrapper(WrappersMP.APPLY_MODEL, spoil)
    return clone


def complaint(step, steps, value="nan", frame="frame 1 of 3"):
    return rf"at step {step} of {steps} \(noise level .*prediction holds {value}.*\({frame}\).*Run the model in bf16"


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "nan"), (float("-inf"), "-inf")])
def test_an_inversion_stops(unet, value, said):
    latent, sigmas = {"samples": torch.randn(3, 4, 16, 16)}, schedule(unet, 2)
    with pytest.raises(NotFiniteError, match=complaint(1, 2, said)):
        inverted(broken(unet, 1, value), demo_conditioning(), latent, sigmas)
    (walk,) = SamplerBilateralDDIMInvert.execute(**FILTER).args
    with pytest.raises(NotFiniteError, match=complaint(0, 2)):
        sampled(broken(unet), demo_conditioning(), latent, sigmas.flip(0), sampler=walk)


@pytest.mark.parametrize("layers", ["*", ""])
def test_an_edit_stops(unet, layers):
    with pytest.raises(NotFiniteError, match=r"the (source|target) clip: " + complaint(1, 2)):
        demo_run(broken(unet, 1), steps=2).edit(layers)


def test_looking_at_attention_stops(unet):
    with pytest.raises(NotFiniteError, match="test: " + complaint(1, 4)):
        figures_of(broken(unet, 1), demo_start(unet), [0, 1])
    with pytest.raises(NotFiniteError, match="test: " + complaint(0, 4)):
        maps_of(broken(unet), demo_start(unet), step=1)


def test_motion_field_noise_stops(unet):
    prompts = DEMO.conditioning()
    latent, sigmas = {"samples": torch.zeros(DEMO.latent_shape)}, schedule(unet, 10)
    how = (*prompts, 4.0, latent, sigmas, MotionField(12, 12, 0.5, 0.8), 0)
    with torch.inference_mode(), pytest.raises(NotFiniteError, match=r"at step 1 of 10 .*prediction holds nan"):
        motion_latents(broken(unet, 1), *how)


def test_training_stops(unet):
    with pytest.raises(TrainingError, match="The loss is nan at step 1"):
        tuned(broken(put(unet, TUNE_A_VIDEO), 3), steps=3)  # two calls are for the memory
    with pytest.raises(TrainingError, match="The loss is nan at step 0"):
        train_adapter(broken(unet, 1), clips(), QUICK)


def test_a_gradient_that_is_not_finite_stops_training_before_it_is_used():
    """√x at 0: the loss is 0, its slope infinite."""
    x = torch.zeros(1, requires_grad=True)
    with pytest.raises(TrainingError, match=r"The gradient is (nan|inf) at step 0.*Nothing was changed"):
        fit([{"params": [x]}], lambda _: x.sqrt().sum(), Schedule(1, 0.1))
    assert x.item() == 0


# Reports --------------------------------------------------------------------------------------------------------------


def strict(text):
    """Reads JSON without Python's extensions, NaN and infinity."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("mode", ["none", "latent_spatial"])
def test_an_inversion_of_zeros_has_no_drift_at_its_first_step(unet, mode):
    latent = {"samples": torch.zeros(3, 4, 16, 16)}
    inverted_latent, report = inverted(unet, demo_conditioning(), latent, schedule(unet, 3), mode=mode)
    assert inverted_latent["samples"].isfinite().all()
    assert report["drift"][0] is None
    assert all(each >= 0 for each in report["drift"][1:])
    strict(json.dumps(report, allow_nan=False))


class Loud:
    """Noise whose exponentials overflow."""

    seed = 0

    def generate_noise(self, latent):
        return 1e4 * torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(0))


def test_a_divergence_that_overflows_is_null_and_the_rest_is_told():
    chart, report = NoiseCorrelation.execute(Loud(), {"samples": torch.zeros(3, 4, 16, 16)}).result
    told = strict(report)
    assert told["kl"] == [None, None]
    assert max(told["std"]) == pytest.approx(1e4, rel=0.1)
    assert chart.std() > 0.05


def test_reports_hold_null_for_what_is_not_finite():
    report = {"a": float("nan"), "b": [1.0, float("inf")], "c": torch.tensor([float("-inf"), 2.0]), "d": (None, "nan")}
    assert strict(to_json(report)) == {"a": None, "b": [1.0, None], "c": [None, 2.0], "d": [None, "nan"]}
    assert re.sub(r"\s", "", to_json({"x": 1}, indent=2)) == '{"x":1}'
