"""GE-Adapter's training: what each part of the loss moves, the same seed is the same adapter, the model stays."""

from dataclasses import replace

import comfy.clip_vision
import pytest
import torch
from adapter_runs import FRAMES, QUICK, WIDTH, clips, weights
from coherence.demo.model import load_clip, load_model
from coherence.nodes.ge_adapter_train import GEAdapterTrain, _lines, _steering
from coherence.samplers.lora_steps import with_lora
from coherence.training import ge_adapter_training as training
from coherence.training import memory
from coherence.training.ge_adapter_training import Settings, Steering, train_adapter
from coherence.training.loop import TrainingError
from comfy.model_management import InterruptProcessingException
from guided_runs import guided_run
from inflation_runs import put, random_weights
from random_controlnet import controlnet
from random_lora import lora_for
from tuning_runs import EI2, tuned

from nodes import ControlNetApplyAdvanced


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def trained(unet):
    return train_adapter(unet, clips(), QUICK)


def ups(adapter):
    return torch.cat([x.flatten() for name, x in adapter.lora.items() if name.endswith("lora_up.weight")])


def moved(adapter, unet, settings, given):
    """How far training led each part of ``adapter`` from its start."""
    start = training._start(unet, given, settings, None)
    before, after = weights(start), weights(adapter)
    parts = {"B": ".lora_up", "A": ".lora_down", "alpha": ".alpha", "shared": "shared"}
    far = {
        part: max((after[name] - before[name]).abs().max().item() for name in after if key in str(name))
        for part, key in parts.items()
    }
    if adapter.projection is not None:
        far["projection"] = max((after[n] - before[n]).abs().max().item() for n in (0, 1))
    return far


# What is learned ----------------------------------------------------------------------------------------------------


def test_every_part_learns_and_the_result_says_from_what(unet, trained):
    far = moved(trained.adapter, unet, QUICK, clips())
    assert far.pop("alpha") == 0
    assert all(1e-4 < each < 1e-2 for each in far.values()), far
    assert trained.adapter.parameters() == {"lora": 6400, "shared tokens": 2 * WIDTH, "projection": 17 * WIDTH}
    told = trained.adapter.training
    assert (told.base, told.layers, told.frames, told.steps) == ("BaseModel", "down", FRAMES, 2)
    assert told.options["seed"] == 5
    assert told.options["clips"] == 2
    assert len(trained.history.losses) == len(trained.diffusion) == 2
    assert 2**20 < trained.needed < 2**28


def test_the_loss_falls(unet):
    """Beside the same clip, noises and levels untrained: of the losses themselves most depends on the level."""
    settings = replace(QUICK, steps=8, learning_rate=1e-2, layers="all", rank=4)
    losses, untrained = (
        torch.tensor(train_adapter(unet, clips(1, vision=False), each).diffusion)
        for each in (settings, replace(settings, learning_rate=1e-12))
    )
    ratios = losses / untrained
    assert ratios[0] == pytest.approx(1, abs=1e-4)
    assert ratios[-4:].mean() < 0.95


@pytest.mark.slow
def test_the_temporal_loss_alone_moves_the_lora_and_lowers_itself(unet):
    """The published code's cosine over an axis of length 1 has no gradient: nothing would move."""
    alone = {"diffusion_weight": 0.0, "temporal_weight": 1.0, "shared_tokens": 0, "temporal_range_start": 0.5}
    settings = replace(QUICK, steps=8, learning_rate=1e-2, seed=1, **alone)
    trained, untrained = (
        train_adapter(unet, clips(1, vision=False, size=16), each)
        for each in (settings, replace(settings, learning_rate=1e-12))
    )
    assert ups(trained.adapter).abs().max() > 1e-2
    ratios = torch.tensor(trained.temporal) / torch.tensor(untrained.temporal)
    assert ratios[0] == pytest.approx(1, abs=1e-3)
    assert ratios[-3:].mean() < 0.85


def test_the_lora_and_its_loss_act_on_the_noisy_part_alone(unet):
    """Without tokens every noise level is drawn from that part; with them the others train the tokens."""
    bare = replace(QUICK, shared_tokens=0, temporal_range_start=0.8)
    assert len(train_adapter(unet, clips(vision=False), bare).temporal) == bare.steps
    late = replace(QUICK, temporal_range_start=0.95, steps=2)
    trained = train_adapter(unet, clips(), late)
    assert trained.temporal == []
    far = moved(trained.adapter, unet, late, clips())
    assert far["B"] == 0
    assert far["shared"] > 1e-4
    assert train_adapter(unet, clips(), replace(QUICK, steps=1, temporal_weight=0.0)).temporal == []


def test_features_are_what_every_adapted_projection_gives(unet, monkeypatch):
    seen = []
    monkeypatch.setattr(
        training,
        "temporal_loss_of_layers",
        lambda taken, frames: seen.append([tuple(x.shape) for x in taken]) or sum(x.mean() for x in taken) * 0,
    )
    train_adapter(unet, clips(), replace(QUICK, steps=1, layers="all"))
    step = seen[-1]
    assert len(step) == 4 * 2 * 7, "four projections of self- and cross-attention in seven transformer layers"
    assert {shape[0] for shape in step} == {FRAMES}
    assert {shape[1] for shape in step} == {64, 16, 2 + 3 + 8}, "latent positions, or shared, per-frame and text"


def test_up_blocks_alone_get_a_lora(unet):
    start = training._start(unet, clips(), replace(QUICK, layers="up"), None)
    places = {name.partition("_attentions")[0] for name in start.lora}
    assert places
    assert all(place.startswith("lora_unet_up_blocks") for place in places)
    down, every = (training._start(unet, clips(), replace(QUICK, layers=each), None) for each in ("down", "all"))
    assert not start.lora.keys() & down.lora.keys()
    assert start.lora.keys() | down.lora.keys() < every.lora.keys()


# A ControlNet -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steering():
    images = torch.rand(2 * FRAMES, 32, 32, 3, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():  # as its node loads it
        return Steering(controlnet(), images.clone(), 3.0)


def test_a_controlnet_steers_the_loss_as_it_does_when_sampling(unet, steering):
    """One Euler step to 0 is the model's prediction."""
    given = replace(clips(vision=False), steering=steering)
    bare = replace(QUICK, steps=1, shared_tokens=0, temporal_weight=0.0)
    steered, plain = (train_adapter(unet, each, bare).diffusion[0] for each in (given, clips(vision=False)))
    generator = torch.Generator().manual_seed(QUICK.seed)
    clip, share = int(torch.randint(2, (), generator=generator)), float(torch.rand((), generator=generator))
    clean = given.latent["samples"].split(FRAMES)[clip]
    noise = torch.randn(clean.shape, generator=generator)
    sigma = float(unet.get_model_object("model_sampling").percent_to_sigma(share))
    how = (given.captions[clip], given.captions[clip], steering.control_net, steering.images.split(FRAMES)[clip])
    prompts = ControlNetApplyAdvanced().apply_controlnet(*how, steering.strength, 0, 1)
    predicted = guided_run(unet, prompts, 1.0, noise, torch.tensor([sigma, 0.0]), start=clean)
    scaled = unet.get_model_object("latent_format").process_in(predicted - clean)
    assert steered == pytest.approx((scaled / sigma).square().mean().item(), rel=1e-4)
    assert abs(steered / plain - 1) > 1e-2


def test_what_is_steered_learns_and_the_controlnet_stays(unet, steering):
    before = {name: x.clone() for name, x in steering.control_net.control_model.state_dict().items()}
    first, again = (train_adapter(unet, replace(clips(), steering=steering), QUICK).adapter for _ in range(2))
    assert all(torch.equal(x, weights(again)[name]) for name, x in weights(first).items())
    far = moved(first, unet, QUICK, clips())
    assert far.pop("alpha") == 0
    assert all(1e-4 < each < 1e-2 for each in far.values()), far
    after = steering.control_net.control_model.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert steering.control_net.cond_hint_original is None


def test_a_controlnet_that_cannot_steer_is_refused_with_the_reason(unet, steering):
    for wrong, words in (
        (replace(steering, images=steering.images[1:]), "control_images: expected one for each of the 6 frames, got 5"),
        (replace(steering, control_net=object()), "control_net: object needs a VAE"),
    ):
        with pytest.raises(TrainingError, match=words):
            train_adapter(unet, replace(clips(), steering=wrong), QUICK)
    for given, words in (
        ((steering.control_net, None), "control_images is not connected, but control_net is"),
        ((None, steering.images), "control_net is not connected, but control_images is"),
    ):
        with pytest.raises(TrainingError, match=words):
            _steering(*given, 1.0)


# The same seed, going on, and the model -----------------------------------------------------------------------------


def test_the_same_seed_is_the_same_adapter_to_the_bit_and_the_model_stays(unet, trained):
    before = {name: x.clone() for name, x in unet.model.state_dict().items()}
    options = repr(unet.model_options)
    again, other = (train_adapter(unet, clips(), replace(QUICK, seed=seed)).adapter for seed in (5, 6))
    assert all(torch.equal(x, weights(again)[name]) for name, x in weights(trained.adapter).items())
    assert not torch.equal(ups(again), ups(other))
    after = unet.model.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert repr(unet.model_options) == options
    assert not any(module._forward_hooks for module in unet.model.modules())


@pytest.mark.parametrize("error", [InterruptProcessingException(), RuntimeError("disk on fire")])
def test_cancel_and_errors_come_through_and_leave_nothing(unet, trained, error):
    def stop(history):
        raise error

    before = {name: x.clone() for name, x in unet.model.state_dict().items()}
    with pytest.raises(type(error)):
        train_adapter(unet, clips(), QUICK, after_step=stop)
    assert all(torch.equal(x, before[name]) for name, x in unet.model.state_dict().items())
    again = train_adapter(unet, clips(), QUICK).adapter
    assert torch.equal(ups(again), ups(trained.adapter))


def test_training_goes_on_from_an_adapter_in_inference_mode_too(unet, trained):
    """Nodes run there, and what LoadGEAdapter gives was made there."""
    with torch.inference_mode():
        start = replace(trained.adapter, shared_tokens=trained.adapter.shared_tokens.clone())
        longer = train_adapter(unet, clips(), replace(QUICK, steps=1, seed=9), start)
    assert longer.adapter.training.steps == 3
    step = (ups(longer.adapter) - ups(trained.adapter)).abs().max()
    assert 0 < step < 2e-3, "one step from where it was"
    assert not ups(longer.adapter).is_inference()


def test_weights_that_nodes_made_are_trained_through(unet):
    """In inference mode, as all that they load."""
    with torch.inference_mode():
        inflated = put(unet, EI2, random_weights(unet, EI2))
        adapted = with_lora(unet, lora_for(unet, "up"), 0.1, 0.0, 1.0, "test")
    assert ups(train_adapter(inflated, clips(1, vision=False), QUICK).adapter).any()
    assert ups(train_adapter(adapted, clips(1, vision=False), QUICK).adapter).any()
    assert tuned(put(adapted, EI2)).weights.steps == 2


def test_blocks_are_computed_twice_where_memory_is_short(unet, trained, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "is_free", lambda needed: asked.append(needed) or False)
    less = train_adapter(unet, clips(), QUICK)
    assert less.checkpointed
    assert less.needed < 0.7 * asked[0] == 0.7 * trained.needed
    difference = (ups(less.adapter) - ups(trained.adapter)).abs().max()
    assert difference < 1e-5


# What is refused ----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(unet, trained, monkeypatch):
    good = clips()
    for wrong, reason in [
        (replace(good, frames=4), "whole clips of frames_per_clip = 4 frames.*got 6 × 4 × 8 × 8"),
        (replace(good, frames=2), "3 or more each"),
        (replace(good, captions=good.captions[:1]), "captions: expected 2 lines, one for each clip of 3 frames, got 1"),
        (replace(good, hidden=good.hidden[:3]), "expected hidden states of all 6 frames, got 3 × 6 × 16"),
        (replace(good, latent={"samples": torch.zeros(1, 4, 6, 16, 16)}), "got 1 × 4 × 6 × 16 × 16"),
    ]:
        with pytest.raises(TrainingError, match=reason):
            train_adapter(unet, wrong, QUICK)
    with pytest.raises(
        TrainingError, match="rank 2, not 4; shared_tokens 2, not 8; width of clip_vision_output 16, no"
    ):
        train_adapter(unet, clips(vision=False), Settings(), trained.adapter)
    monkeypatch.setattr(memory, "is_free", lambda needed: False)
    monkeypatch.setattr(training, "is_free", lambda needed: False)
    with pytest.raises(
        TrainingError, match=r"Training on clips of 3 frames needs about .* To make it fit: take smaller"
    ):
        train_adapter(unet, good, QUICK)


def test_a_model_without_a_unet_is_refused(tiny_models):
    given = clips(vision=False)
    with pytest.raises(ValueError, match="down blocks of a UNet"):
        train_adapter(tiny_models.load("wan21"), given, QUICK)


# The node -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("captions", "lines"),
    [
        ("a\n b \r\nc", ["a", "b", "c"]),
        ("\na\nb", ["", "a", "b"]),
        ("a\n\nb\n\n \n", ["a", "", "b"]),
        ("a\nb\n", ["a", "b", ""]),
        ("\n\n", ["", "", ""]),
        ("\na\nb\nc\n", ["", "a", "b", "c"]),
        ("", [""]),
    ],
)
def test_any_line_of_the_captions_may_be_empty(captions, lines):
    assert _lines(captions, 3) == lines


def test_the_node_trains_charts_and_reports(unet):
    node = GEAdapterTrain.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    pictures = comfy.clip_vision.Output()
    pictures.last_hidden_state = clips().hidden
    with torch.inference_mode():
        adapter, chart, report = node.execute(
            unet,
            load_clip(),
            clips().latent,
            FRAMES,
            "\na blue square\n",
            clip_vision_output=pictures,
            rank=4,
            layers="down",
            shared_tokens=8,
            temporal_weight=0.01,
            diffusion_weight=1.0,
            temporal_range_start=0.5,
            steps=2,
            learning_rate=1e-3,
            warmup_steps=500,
            gradient_accumulation=2,
            seed=0,
        ).args
    assert adapter.parameters() == {"lora": 12_800, "shared tokens": 8 * WIDTH, "projection": 17 * WIDTH}
    assert chart.ndim == 4
    assert chart.std() > 0.05
    assert "16,000 parameters: 12,800 lora, 1,024 shared tokens, 2,176 projection" in report
    assert "2 clips of 3 frames" in report
    assert "The rate never reached learning_rate: 2 steps, 500 to warm up" in report
