"""The nodes: their faces, the NOISE they hand on, and the chart."""

import json
import random
import re

import numpy as np
import pytest
import torch
from coherence.nodes.momentum import TemporalMomentumAttention
from coherence.nodes.noise import NODES, DependencyNoise, NoiseFrames, VideoNoisePrior
from coherence.nodes.noise_chart import NoiseCorrelation
from coherence.noise.divergence import DIVERGENCES
from coherence.noise.measure import neighbour_kl
from coherence.samplers.noises import ClipNoise
from noise_clips import dependency_node
from tiny_models import FAMILIES, TinyModels

FACES = {
    "DependencyNoise": (
        "noise_seed kl kl_schedule divergence solver random_candidates line_iterations previous orthogonal loop",
        ["NOISE"],
    ),
    "VideoNoisePrior": ("noise_seed prior alpha", ["NOISE"]),
    "NoiseFrames": ("noise latent_image", ["LATENT"]),
    "KeyframeNoise": ("noise keyframes frames", ["NOISE"]),
    "NoiseCorrelation": ("noise latent_image", ["IMAGE", "STRING"]),
}


def dependency_noise(kl: float = 0.01, kl_schedule: str = "", **inputs):
    return dependency_node(kl, kl_schedule, **inputs)


def latent(*shape: int, **entries) -> dict:
    return {"samples": torch.zeros(shape), **entries}


@pytest.mark.parametrize("node", [*NODES, NoiseCorrelation])
def test_face_of_the_node(node) -> None:
    schema = node.GET_SCHEMA()
    inputs, outputs = FACES[schema.node_id]
    assert [entry.id for entry in schema.inputs] == inputs.split()
    assert [output.io_type for output in schema.outputs] == outputs
    assert schema.category == "coherence/noise"
    assert schema.description
    assert schema.search_aliases
    assert all(entry.tooltip for entry in schema.inputs)


def test_noise_has_the_seed_and_the_latents_shape_and_dtype() -> None:
    noise = dependency_noise(seed=2**64 - 1)
    assert noise.seed == 2**64 - 1
    made = noise.generate_noise({"samples": torch.zeros(5, 4, 16, 16, dtype=torch.float16)})
    assert (made.shape, made.dtype, made.device.type) == ((5, 4, 16, 16), torch.float16, "cpu")


def test_kl_schedule_takes_the_place_of_kl() -> None:
    frames = latent(6, 4, 16, 16)
    constant = dependency_noise(kl=0.05).generate_noise(frames)
    assert torch.equal(dependency_noise(kl=1, kl_schedule="0:0.05").generate_noise(frames), constant)
    changing = dependency_noise(kl=1, kl_schedule="2:0, 5:0.3").generate_noise(frames)
    assert torch.equal(changing[2], changing[0])
    assert not torch.equal(changing[3], changing[2])


@pytest.mark.parametrize("schedule", [[0.3, 0.02, 0.1], "[0.3, 0.02, 0.1]"])
def test_kl_schedule_may_be_a_list_of_numbers(schedule) -> None:
    frames = latent(5, 4, 16, 16)
    expected = dependency_noise(kl_schedule="0:0.3, 1:0.02, 2:0.1").generate_noise(frames)
    assert torch.equal(dependency_noise(kl_schedule=schedule).generate_noise(frames), expected)


@pytest.mark.parametrize(
    ("node", "name"), [(DependencyNoise, "kl_schedule"), (TemporalMomentumAttention, "mu_schedule")]
)
def test_schedule_takes_text_and_links_of_numbers(node, name: str) -> None:
    from comfy_execution.validation import validate_node_input

    kind, options = node.INPUT_TYPES()["required"][name]
    assert options["widgetType"] == "STRING"
    assert all(validate_node_input(offered, kind) for offered in ("STRING", "FLOAT", "FLOATS"))
    assert not validate_node_input("IMAGE", kind)


def test_wrong_schedule_is_refused_at_its_node() -> None:
    with pytest.raises(ValueError, match=r"'8:2'.*between 0 and 1.65"):
        dependency_noise(kl_schedule="0:0.1, 8:2")


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("kl", [0.0001, 0.003, 0.0075, 0.015])
def test_line_search_follows_kl_or_says_how_many_steps_it_takes(kl: float, divergence: str) -> None:
    options = {"kl": kl, "solver": "line_search", "divergence": divergence}
    with pytest.raises(ValueError, match=r"ends at about 0\.0\d+ in 15 .*bisection") as refused:
        dependency_noise(**options)
    enough = int(re.search(r"line_iterations to (\d+) or more", str(refused.value))[1])
    frames = dependency_noise(**options, line_iterations=enough).generate_noise(latent(4, 4, 64, 64))
    assert neighbour_kl(frames, divergence).tolist() == pytest.approx([kl] * 3, rel=0.25)


def test_line_search_refuses_a_schedule_that_it_cannot_follow() -> None:
    options = {"kl_schedule": "0:0.001, 1:0.1, 4:0.002", "solver": "line_search"}
    dependency_noise(**options).generate_noise(latent(4, 4, 8, 8))  # frame 0 has no frame before it
    with pytest.raises(ValueError, match=r"kl is 0\.002.*line_iterations to \d+ or more"):
        dependency_noise(**options).generate_noise(latent(5, 4, 8, 8))


@pytest.mark.parametrize("prior", ["iid", "mixed", "progressive"])
def test_prior_with_alpha_one_is_still_unless_independent(prior: str) -> None:
    frames = VideoNoisePrior.execute(1, prior, 1.0)[0].generate_noise(latent(4, 4, 16, 16))
    assert torch.equal(frames[3], frames[0]) == (prior != "iid")


def test_batch_index_of_the_latent_is_honoured() -> None:
    whole = dependency_noise().generate_noise(latent(9, 4, 16, 16))
    part = dependency_noise().generate_noise(latent(2, 4, 16, 16, batch_index=[7, 4]))
    assert torch.equal(part, whole[[7, 4]])


@pytest.mark.parametrize("numbers", [[0, 1, 2, 0, 1, 2], [0, 0, 1, 1, 2, 2]])
def test_frames_that_share_a_number_are_a_clip_of_their_own(numbers: list[int]) -> None:
    """As LatentBatch joins clips, and as LatentInterpolate and LatentBatch set frames between others."""
    noise, joined = dependency_noise(), latent(6, 4, 16, 16, batch_index=numbers)
    whole = noise.generate_noise(latent(6, 4, 16, 16))
    assert torch.equal(noise.generate_noise(joined), whole)
    frames = NoiseFrames.execute(noise, joined)[0]
    assert torch.equal(frames["samples"], whole)
    assert frames["batch_index"] == [*range(6)]


def test_frames_that_all_have_one_number_have_one_noise() -> None:
    """As LatentBatchSeedBehavior makes them, set to fixed."""
    fixed = dependency_noise().generate_noise(latent(3, 4, 16, 16, batch_index=[4, 4, 4]))
    assert torch.equal(fixed, dependency_noise().generate_noise(latent(5, 4, 16, 16))[[4, 4, 4]])


def test_sound_beside_the_clip_gets_plain_noise_whatever_the_clips_length() -> None:
    from comfy.nested_tensor import NestedTensor
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    def av(frames: int) -> dict:
        return {"samples": NestedTensor((torch.zeros(2, 8, frames, 8, 8), torch.zeros(2, 8, 5, 4)))}

    with torch.random.fork_rng(devices=[]):
        core = Noise_RandomNoise(3).generate_noise(av(1)).unbind()
    one, many = (dependency_noise().generate_noise(av(frames)).unbind() for frames in (1, 6))
    assert torch.equal(one[0], core[0])
    assert torch.equal(one[1], core[1])
    assert torch.equal(many[1], core[1])
    assert torch.equal(many[0][:, :, :1], core[0])
    assert 0.9 < torch.corrcoef(many[0][0, :, :2].movedim(1, 0).flatten(1))[0, 1] < 1


@pytest.mark.parametrize("family", ["sd15", "wan21"])
def test_noise_drives_the_custom_sampler(family: str, tiny_models: TinyModels) -> None:
    """A first frame as with RandomNoise, and a still clip at kl 0 where the model sees frames one by one."""
    from comfy_extras.nodes_custom_sampler import (
        CFGGuider,
        KSamplerSelect,
        RandomNoise,
        SamplerCustomAdvanced,
    )

    model = tiny_models.load(family)
    positive, negative = FAMILIES[family].conditioning()
    guider = CFGGuider.execute(model, positive, negative, 3.0)[0]
    sampler = KSamplerSelect.execute("euler")[0]
    sigmas = torch.tensor([1.0, 0.5, 0.0])

    def sample(noise, frames: int) -> torch.Tensor:
        shape = list(FAMILIES[family].latent_shape)
        shape[FAMILIES[family].frames_axis] = frames
        return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent(*shape))[0]["samples"]

    assert torch.equal(sample(dependency_noise(), 1), sample(RandomNoise.execute(3)[0], 1))
    still, moving = sample(dependency_noise(kl=0), 3), sample(dependency_noise(kl=0.1), 3)
    assert moving.isfinite().all()
    assert not torch.equal(moving, still)
    if family == "sd15":
        assert (still - still[:1]).abs().max() < 2e-3  # threads split a batch unevenly, kernels round by the split
        assert (moving[1] - moving[0]).abs().mean() > 0.05


def chart_and_report(noise, *shape: int) -> tuple[torch.Tensor, dict]:
    chart, report = NoiseCorrelation.execute(noise, latent(*shape)).args
    return chart, json.loads(report)


@pytest.mark.parametrize("shape", [(8, 4, 32, 32), (2, 4, 8, 32, 32)])
def test_report_tells_what_the_noise_was_made_with(shape: tuple[int, ...]) -> None:
    _, report = chart_and_report(dependency_noise(kl=0.1), *shape)
    assert report["frames"] == 8
    assert report["kl"] == pytest.approx([0.1] * 7, abs=1e-4)
    assert report["alpha"] == pytest.approx([(1 - 0.1 / 1.6487) ** 2] * 7, abs=0.02)
    matrix = np.array(report["correlation"])
    assert matrix.shape == (8, 8)
    assert np.allclose(matrix, matrix.T)
    assert np.allclose(matrix.diagonal(), 1)
    assert report["first_last_correlation"] == matrix[0, 7]
    assert report["neighbour_correlation"] == pytest.approx(matrix.diagonal(1).mean())
    assert max(map(abs, report["mean"])) < 0.1
    assert report["std"] == pytest.approx([1] * 8, abs=0.06)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_report_sets_what_was_achieved_beside_the_schedule(divergence: str) -> None:
    noise = dependency_noise(kl_schedule="1:0.01, 3:0.3, 6:0.05", divergence=divergence)
    _, report = chart_and_report(noise, 8, 4, 64, 64)
    schedule = report["schedule"]
    assert schedule["divergence"] == divergence
    assert schedule["kl"] == pytest.approx([0.01, 0.155, 0.3, 0.65 / 3, 0.4 / 3, 0.05, 0.05])
    assert schedule["achieved_kl"] == pytest.approx(schedule["kl"], abs=1e-4)
    assert report["alpha"] == pytest.approx(schedule["expected_alpha"], abs=0.05)


def test_schedule_of_a_continuing_clip_is_that_of_its_frames() -> None:
    settings = {"kl_schedule": "0:0.01, 12:0.3"}
    (whole,) = (chart_and_report(dependency_noise(**settings), 12, 4, 32, 32)[1],)
    previous = NoiseFrames.execute(dependency_noise(**settings), latent(7, 4, 32, 32))[0]
    _, rest = chart_and_report(dependency_noise(**settings, previous=previous), 5, 4, 32, 32)
    assert rest["schedule"]["kl"] == whole["schedule"]["kl"][7:]
    assert rest["kl"] == whole["kl"][7:]


@pytest.mark.parametrize("size", [(16, 16), (1, 16, 16)])
def test_pictures_of_one_frame_each_are_shown_as_a_clip(size: tuple[int, ...]) -> None:
    noise, whole = dependency_noise(kl=0.1), dependency_noise(kl=0.1).generate_noise(latent(8, 16, 16, 16))
    report = json.loads(NoiseCorrelation.execute(noise, latent(3, 16, *size, batch_index=[5, 6, 7]))[1])
    assert report["frames"] == 3
    assert report["kl"] == pytest.approx(neighbour_kl(whole[5:]).tolist())
    assert len(report["schedule"]["kl"]) == 2


def test_schedule_is_shown_where_frames_follow_one_another() -> None:
    for indices, shown in ([4, 5, 6], True), ([4, 6, 5], False):
        report = NoiseCorrelation.execute(
            dependency_noise(kl_schedule="4:0, 6:0.2"), latent(3, 4, 8, 8, batch_index=indices)
        )[1]
        assert ("schedule" in json.loads(report)) is shown
    assert "schedule" not in chart_and_report(VideoNoisePrior.execute(1, "iid", 0.5)[0], 3, 4, 8, 8)[1]


@pytest.mark.parametrize("kl_schedule", ["", "0:0.4, 2:0"])
def test_chart_shows_a_schedule_in_grey(kl_schedule: str) -> None:
    noise = dependency_noise(kl=0.5, kl_schedule=kl_schedule)
    ours, _ = chart_and_report(noise, 4, 4, 8, 8)
    bare, _ = chart_and_report(ClipNoise(noise.seed, noise.model), 4, 4, 8, 8)
    changed = (ours != bare).any(-1)[0]
    assert 0 < changed.float().mean() < 0.05
    assert not changed[:, :720].any(), "the correlations stay as they are"


@pytest.mark.slow
@pytest.mark.parametrize("frames", [2, 8, 16, 70])
def test_chart_is_an_image_that_shows_the_noise(frames: int) -> None:
    still, _ = chart_and_report(dependency_noise(kl=0), frames, 4, 8, 8)
    moving, _ = chart_and_report(dependency_noise(kl=0.5), frames, 4, 8, 8)
    assert still.dtype == torch.float32
    assert still.shape == moving.shape == (1, 768, 1440, 3)
    assert still.min() >= 0
    assert still.max() == 1
    assert (still != moving).any(-1).float().mean() > 0.1


def test_chart_is_drawn_without_global_state() -> None:
    import matplotlib

    settings = matplotlib.rcParams.copy()
    states = torch.get_rng_state(), random.getstate()
    chart_and_report(dependency_noise(), 4, 4, 8, 8)
    assert matplotlib.rcParams.copy() == settings
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_chart_takes_the_noise_of_other_nodes() -> None:
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    with torch.random.fork_rng(devices=[]):
        _, report = chart_and_report(Noise_RandomNoise(1), 6, 4, 64, 64)
    assert abs(report["neighbour_correlation"]) < 0.02
    assert report["kl"] == pytest.approx([report["kl_of_independent_frames"]] * 5, abs=0.1)


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 4, 8, 8), "Raise the batch size"), ((1, 64, 215), "the latent of a clip")]
)
def test_latent_without_a_clip_is_refused_with_a_cure(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chart_and_report(dependency_noise(), *shape)


def test_empty_noise_is_refused_with_its_frame() -> None:
    from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

    with pytest.raises(ValueError, match="Frame 0 of the noise is constant"):
        chart_and_report(Noise_EmptyNoise(), 4, 4, 8, 8)
