"""The GPU's benchmark at CPU sizes: every section is measured, a failure stops none, and time is kept."""

import json
import os
import sys
import threading

import pytest
import torch
from coherence.hosting.provision import PACK

sys.path.append(str(PACK / "benchmarks"))
import gpu
import ways

SDPA = "SDPA"


def run(folder, *words: str, monkeypatch) -> list[dict]:
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    argv = ["gpu", "--comfyui", os.environ["COMFYUI_PATH"], "--small", "--out", str(folder), "--threads", "1", *words]
    monkeypatch.setattr(sys, "argv", argv)
    gpu.main()
    return json.loads((folder / "figures.json").read_text("utf-8"))["rows"]


@pytest.mark.slow
def test_every_model_is_measured_and_a_way_that_fails_stops_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "compiled", lambda subject: subject)  # compiling takes minutes on a CPU
    few = (gpu.FEW[0], gpu.FEW[1], gpu.MEASURED[-1])
    monkeypatch.setattr(gpu, "MEASURED", few)
    monkeypatch.setattr(gpu, "FEW", few[:2])
    known = ways.ways

    def failing(subject):
        return known(subject) | {gpu.FEW[0]: lambda: torch.empty(2**58)}

    monkeypatch.setattr(gpu, "ways", failing)
    rows = run(tmp_path, "--minutes", "600", monkeypatch=monkeypatch)
    of = {(row["model"], row["way"]): row for row in rows if row["how"] == SDPA}
    assert {model for model, _ in of} == {*gpu.SIZES}
    for (model, way), row in of.items():
        if way == gpu.FEW[0]:
            assert "not enough memory" in row["reason"]
        elif (model, way) != ("flux", gpu.MEASURED[-1]):
            assert "seconds" in row, (model, way, row)
    assert "Use a model of another family" in of["flux", gpu.MEASURED[-1]]["reason"]
    assert ("wan", gpu.MEASURED[-1]) not in of, "its frames lie in the tokens"
    assert {row["way"] for row in rows if row["how"] == "torch.compile"} == {ways.PLAIN, gpu.FEW[1]}
    assert {row["reason"] for row in rows if row["how"] == "lowvram"} == {"needs a GPU"}
    shown = capsys.readouterr().out
    assert "| wan | fp32 | SDPA | guidance U−I (IE-Adapt) |" in shown
    assert json.loads(shown.splitlines()[-1])["chip"] == "CPU"


def test_without_time_every_row_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "SHORTEST", 1e9)
    rows = run(tmp_path, "--models", "sd15", monkeypatch=monkeypatch)
    assert {row["reason"] for row in rows} == {"no time was left for it"}


def test_what_still_runs_when_the_time_is_over_is_given_up(tmp_path, monkeypatch):
    ended, told = threading.Event(), []
    monkeypatch.setattr(gpu, "measure", lambda *_: ended.wait(300))
    monkeypatch.setattr(gpu.os, "_exit", lambda code: (told.append((tmp_path / "figures.json").exists()), ended.set()))
    run(tmp_path, "--models", "sd15", "--minutes", "0.001", monkeypatch=monkeypatch)
    assert told == [True], "the rows were written before"


def test_without_a_gpu_full_sizes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--comfyui", "DIR", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="finds no GPU here"):
        gpu.main()
