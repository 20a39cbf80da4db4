"""Trainings of the world's models can be stopped anywhere, and go on as if they had not been."""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import learning_together
import pytest
import torch
from coherence.demo.training import decoder, flux, image, state, transformer, video
from coherence.demo.training.diffusion import Clock, Schedule
from coherence.demo.training.optimizer import Muon, orthogonal
from coherence.demo.training.pictures import Pictures
from coherence.demo.training.state import Training, write_curve, write_weights

TRAINERS = {
    "world_decoder": decoder.train_decoder,
    "world_image": image.train_image,
    "world_transformer": transformer.train_transformer,
    "world_video": video.train_video,
    "world_flux": flux.train_flux,
}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints go here; of the repository's weights only the text encoder's are there: other parts begin anew."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for file in state.WEIGHTS.glob("world_text.*"):
        shutil.copy(file, weights)
    monkeypatch.setattr(state, "WEIGHTS", weights)
    monkeypatch.setattr(state, "STATE", tmp_path / "state")
    monkeypatch.setattr("comfy.model_management.in_training", False)
    return tmp_path


def arguments(**given) -> argparse.Namespace:
    defaults = {"device": "cpu", "seed": 0, "batch": 2, "rate": None, "seconds": float("inf"), "fall": 0, "plan": None}
    return argparse.Namespace(**{**defaults, **given})


def small() -> tuple[torch.nn.Module, Training]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2))
    return module, Training("small", module, Muon(module.named_parameters(), ends=r"^1\."), decay=0.9)


def learn(module: torch.nn.Module, training: Training, steps: int) -> None:
    for _ in range(steps):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(training.step))
        training.descend(module(inputs).square().mean(), rate=0.01, seen=4)


def test_a_stopped_training_goes_on_as_if_it_had_not_been():
    module, training = small()
    learn(module, training, 3)
    training.save()
    learn(module, training, 3)
    again, resumed = small()
    assert (resumed.step, resumed.seen) == (3, 12)
    learn(again, resumed, 3)
    torch.testing.assert_close(resumed.average, training.average)
    torch.testing.assert_close(again.state_dict(), module.state_dict())


def test_a_new_machine_goes_on_from_the_shipped_weights_and_warms_up_again(folders, monkeypatch):
    monkeypatch.setattr(state, "WEIGHTS", folders)
    shipped = {name: torch.full_like(each, 0.25) for name, each in small()[0].state_dict().items()}
    write_weights(shipped, folders / "small.safetensors")
    write_curve([{"step": 7, "seen": 900}], folders / "small.json")
    module, training = small()
    torch.testing.assert_close(module.state_dict(), shipped)
    assert (training.step, training.seen, training.fresh) == (7, 900, 0)
    assert Clock(training, Schedule(1.0, warm_up=10, plan=(1000, 2000)), arguments()).rate == pytest.approx(0.1)


def test_a_training_beside_another_one_that_logged_nothing_goes_on_from_its_shipped_weights(folders, monkeypatch):
    monkeypatch.setattr(state, "WEIGHTS", folders)
    shipped = {name: torch.full_like(each, 0.25) for name, each in small()[0].state_dict().items()}
    write_weights(shipped, folders / "small.safetensors")
    write_curve([], folders / "small.json")
    module, training = small()
    torch.testing.assert_close(module.state_dict(), shipped)
    assert training.fresh == 0


@pytest.mark.slow
def test_two_processes_learn_as_one_does_from_the_pictures_of_both(tmp_path, comfyui_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, learning_together.__file__, comfyui_path, tmp_path]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    together = torch.load(tmp_path / "small.pt", weights_only=True)
    module, training = small()
    for _ in range(3):
        training.descend(module(learning_together.INPUTS).square().mean(), rate=0.01, seen=9)
    assert (together["step"], together["seen"]) == (3, 27)
    torch.testing.assert_close(together["module"], dict(module.state_dict()))


def test_the_rate_rises_stays_and_falls_by_what_was_seen():
    _, training = small()
    clock, rates = Clock(training, Schedule(1.0, warm_up=2, plan=(40, 80)), arguments()), []
    for seen in (0, 10, 40, 60, 80, 90):
        training.seen = seen
        training.fresh = seen // 10
        rates.append(clock.rate)
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0, 0.0])
    assert not clock.tick(loss=1.0)
    assert (state.STATE / "small.pt").is_file()


def test_a_lent_machine_ends_with_a_falling_rate():
    clock = Clock(small()[1], Schedule(1.0, warm_up=1, plan=(40, 80)), arguments(seconds=60, fall=120))
    assert 0.4 < clock.rate <= 0.5


def test_time_that_is_up_ends_a_training():
    _, training = small()
    clock = Clock(training, Schedule(1.0, warm_up=1, plan=(40, 80)), arguments(seconds=0.01))
    time.sleep(0.02)
    assert not clock.tick(loss=1.0)


def test_a_matrix_moves_alike_in_every_direction():
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 50)
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert 0.6 < values.min() <= values.max() < 1.3
    torch.testing.assert_close(orthogonal(matrix.T), orthogonal(matrix).T, rtol=1e-3, atol=1e-3)


def test_steps_minimise_a_loss():
    module, training = small()
    learn(module, training, 1)
    before = module(torch.ones(1, 6)).square().mean().item()
    learn(module, training, 60)
    assert module(torch.ones(1, 6)).square().mean().item() < before / 4


def test_every_step_has_its_own_pictures_whoever_paints_them():
    first, second, other = Pictures(3, seed=1)[5], Pictures(3, seed=1)[5], Pictures(3, seed=1)[6]
    assert torch.equal(first.latents, second.latents)
    assert torch.equal(first.tokens, second.tokens)
    assert not torch.equal(first.latents, other.latents)
    assert 0.02 < first.outlines.mean() < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("part", TRAINERS)
def test_every_part_learns_and_leaves_weights_behind(part, monkeypatch):
    """Two steps, the second of them resumed; what is left is finite, and no longer what it began with."""
    if part in ("world_video", "world_transformer", "world_flux"):  # they need a picture model
        torch.manual_seed(0)
        unet = video.unet_module(torch.float32, "cpu", video.comfy.ops.disable_weight_init).diffusion_model
        image.initialise(unet)
        write_weights(unet.state_dict(), state.STATE / "world_image.safetensors")
    TRAINERS[part](arguments(plan=(1, 2)))
    first = torch.load(state.STATE / f"{part}.pt", weights_only=True)
    TRAINERS[part](arguments(plan=(3, 4)))
    second = torch.load(state.STATE / f"{part}.pt", weights_only=True)
    assert (first["step"], second["step"], first["seen"]) == (1, 2, 2)
    assert second["seen"] in (4, 2 + 2 * transformer.MORE)
    assert all(each.isfinite().all() for each in second["module"].values())
    assert any(not torch.equal(first["module"][name], each) for name, each in second["module"].items())
    assert (state.STATE / f"{part}.safetensors").is_file()
