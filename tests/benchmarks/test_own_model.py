"""The report of a user's own model: every part on files as stock loaders take them, what goes wrong, and the page."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from coherence.hosting.browser import CHROMIUM_FLAGS, find_browser
from coherence.hosting.provision import PACK
from coherence.hosting.report import MODEL_OPTIONS

sys.path.append(str(PACK / "benchmarks"))
import own_model
import own_parts
import report
import ways
from claims import Cost, Table
from reporting import own, writing
from reporting.assembling import assemble
from reporting.running import Outcome, failure
from users_model import UnusableError, is_out_of_memory, reason_of, size_of

pytestmark = pytest.mark.slow

SMALL = ("--frames", "2", "--size", "64x64", "--steps", "1", "--seeds", "1", "--rounds", "1", "--device", "cpu")
VIDEO = PACK / "workflows" / "assets" / "red_circle.mp4"


def measure(part: str, folder, *words: object, small=SMALL) -> list[dict]:
    """The records of one part, measured as its script does."""
    out = folder / part
    argv = [own_model.__name__, "--comfyui", os.environ["COMFYUI_PATH"], "--out", out, "--part", part, *small, *words]
    before, sys.argv = sys.argv, [*map(str, argv)]
    try:
        own_model.main()
    finally:
        sys.argv = before
    return [json.loads(line) for line in (out / "records.jsonl").read_text("utf-8").splitlines()]


def page_of(folder, *words: object, reasons: dict[str, str] | None = None):
    """The report of what lies in ``folder``."""
    asked = report.parser().parse_args(["--comfyui", "DIR", *map(str, words)])
    parts = own.experiments(asked, "quick")
    outcomes = [Outcome(each.name, (reasons or {}).get(each.name, ""), 1.0, 1.0, []) for each in parts]
    return assemble(parts, outcomes, folder, "quick", {"ComfyUI": "0.30.0"}, own.about(asked, "quick"))


@pytest.fixture(scope="module")
def of_sd15(tiny_models, tmp_path_factory):
    """Folder and words of a random checkpoint's report; of costs a single row."""
    folder, words = tmp_path_factory.mktemp("own"), ("--checkpoint", tiny_models.path("sd15"))
    with pytest.MonkeyPatch.context() as patch:
        for part in own_parts.PARTS:
            measure(part, folder, *words, *(("--minutes", "0") if part == "costs" else ()))
            if part == "model":
                patch.setattr(own_parts, "UsersModel", partial(once, own_parts.UsersModel, {}))
    return folder, words


def once(load, loaded: dict, asked):
    """One model for all parts: loading it takes longer than measuring it."""
    if not loaded:
        loaded["model"] = load(asked)
    return loaded["model"]


def test_a_checkpoint_is_measured_in_every_part(of_sd15):
    folder, words = of_sd15
    made = page_of(folder, *words)
    by = {part.experiment.name: part for part in made.parts}
    assert [part.reason for part in made.parts] == [""] * 6
    assert ("family", "UNets (SD1.5, SD2, SDXL, SVD, AnimateDiff)") in by["model"].tables[0].rows
    layers = [row[0] for row in by["register"].tables[0].rows]
    assert "middle.0.attn1" in layers
    assert not any("attn2" in name for name in layers), "words' maps cannot be compared with these"
    (cost,) = [each for each in by["costs"].findings if isinstance(each, Cost)]
    assert cost.what == "dependency noise (ZS²), of plain sampling"
    ways_of = {name: [row[0] for row in by[name].tables[0].rows] for name in ("zs2", "guidance", "edit")}
    assert ways_of["zs2"][0] == ways.PLAIN
    assert ways_of["guidance"] == ["plain CFG", "U−I, scale 1", "U−I, scale 2", "U−I, scale 4"]
    assert ways_of["edit"] == ["source", "target prompt alone", "edit, maps of the lowest 50%"]
    assert {name for name, part in by.items() if part.pictures} == {"register", "zs2", "guidance", "edit"}
    shown = writing.html(made)
    for each in ("What to use when", "Temporal Momentum Attention", "dependency noise alone", "middle.0.attn1"):
        assert each in shown
    assert "Four papers" not in shown
    assert str(folder) not in shown


def test_a_run_that_goes_on_keeps_what_it_has(of_sd15):
    folder, words = of_sd15
    path = folder / "zs2" / "records.jsonl"
    before = path.read_text("utf-8")
    lines = before.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + json.dumps({"key": json.loads(lines[-1])["key"], "reason": "no"}) + "\n")
    measure("zs2", folder, *words)
    after = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [each["key"] for each in after] == [json.loads(line)["key"] for line in lines]
    assert after[:-1] == [json.loads(line) for line in lines[:-1]]
    assert "reason" not in after[-1]


@pytest.fixture(scope="module")
def wan(tiny_models):
    names = (
        "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors",
        "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "vae/wan_2.1_vae.safetensors",
    )
    model, text, vae = map(tiny_models.stand_in, names)
    return {"model": ("--loader", "unet", "--checkpoint", model), "text": ("--clip", text), "vae": ("--vae", vae)}


def test_a_video_transformer_without_fitting_techniques_says_so_and_edits_a_clip_of_a_file(wan, tmp_path):
    words = [word for each in wan.values() for word in each]
    small = ("--frames", "5", "--size", "64x64", "--steps", "1", "--seeds", "1", "--rounds", "1", "--device", "cpu")
    rows = measure("zs2", tmp_path, *words, small=small)
    assert [row.get("reason", "") for row in rows][:2] == ["", ""]
    assert all("frames" in row["reason"] or "layer" in row["reason"] for row in rows[2:]), "momentum is of pictures"
    edited = measure("edit", tmp_path, *words, "--video", VIDEO, small=small)
    assert [row["way"] for row in edited] == [own_parts.SOURCE, own_parts.TARGET, own_parts.EDIT]
    assert all(0 < row["kept"] <= 1 for row in edited[1:])
    made = page_of(tmp_path, *words, "--video", VIDEO, reasons={"costs": "it was stopped"})
    shown = writing.html(made)
    assert "red_circle.mp4, inverted" in shown
    assert "not measured: " in shown
    assert str(PACK) not in shown


def test_what_is_missing_or_wrong_is_told_with_its_cure(wan, tmp_path):
    small = ("--frames", "5", "--size", "64x64", "--steps", "1", "--seeds", "1", "--device", "cpu")
    model = wan["model"]
    with pytest.raises(UnusableError, match=r"holds no VAE, which pictures need\. Name it with --vae FILE"):
        measure("zs2", tmp_path, *model, *wan["text"], small=small)
    with pytest.raises(UnusableError, match=r"holds no text encoder, .* Name it with --clip FILE"):
        measure("model", tmp_path, *model, small=small)
    wrong = tmp_path / "notes.safetensors"
    wrong.write_text("no model")
    for words, told in (
        (("--checkpoint", wrong), "the checkpoint loader cannot read notes.safetensors.*try --loader unet"),
        (("--checkpoint", tmp_path / "gone"), "gone is not a file"),
        ((*model, "--vae", wrong), "--vae: notes.safetensors cannot be read as a VAE"),
        ((*model, "--clip", wrong), "--clip: notes.safetensors cannot be read as text encoder of type wan"),
        ((*model, "--clip-vision", wrong), "--clip-vision: notes.safetensors cannot be read"),
        ((*model, *wan["text"], *wan["vae"], "--video", wrong), "--video: notes.safetensors cannot be read as a video"),
        ((*model, *wan["text"], *wan["vae"], "--size", "big"), "--size: 'big' is not a size"),
    ):
        with pytest.raises(UnusableError, match=told):
            measure("edit", tmp_path / "wrong", *words, small=small[:2] + small[4:])
        if (tmp_path / "wrong").exists():
            for path in (tmp_path / "wrong" / "edit").iterdir():
                path.unlink()


def test_a_clip_for_which_memory_does_not_suffice_is_named_and_the_others_go_on(monkeypatch):
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**58)
    assert is_out_of_memory(raised.value)
    assert "GiB free). Lower --frames or --size" in reason_of(raised.value)
    found = own_model.guarded(lambda: torch.empty(2**58))
    assert found["reason"].startswith("not enough memory")
    assert own_model.guarded(lambda: {"value": 1}) == {"value": 1}
    (table,) = own_model.told_costs([{"key": "edit", **found}])
    assert isinstance(table, Table)
    assert table.rows[0][1].startswith("not measured: not enough memory")


def test_a_process_that_ended_is_told_in_words():
    assert failure(1, "loading\n--vae: it is no VAE. Name one.\n") == "--vae: it is no VAE. Name one"
    assert failure(1, "Traceback (most recent call last):\n ValueError: no").startswith("it failed with exit code 1")
    assert "memory runs out" in failure(-9, "loading")


def test_the_host_passes_on_every_option_of_a_model():
    from coherence.hosting import report as hosts
    from coherence.hosting.cli import parser

    given = {"frames": 3, "steps": 4, "seeds": 5, "cfg": 2.5, "clip": ["a", "b"], "loader": "unet", "device": "cpu"}
    given = {name: given.get(name, f"{name}.x") for name in MODEL_OPTIONS}
    words = [
        word
        for name, value in given.items()
        for word in (f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)]))
    ]
    passed = hosts._of_model(parser().parse_args(["report", *words]))
    asked = report.parser().parse_args(["--comfyui", "DIR", *passed])
    assert {name: getattr(asked, name) for name in MODEL_OPTIONS} == given
    assert size_of("832x480") == (480, 832)


@pytest.mark.slow
def test_the_host_reports_on_a_model_and_writes_nowhere_else(comfyui_path, tmp_path):
    output, home = tmp_path / "output", tmp_path / "home"
    home.mkdir()
    command = [sys.executable, PACK / "host.py", "report", "--comfyui", comfyui_path, "--python", sys.executable]
    command += ["--checkpoint", "demo", "--only", "register", "--output", output, "--minutes", "4000"]
    command += ["--steps", "1", "--frames", "2", "--device", "cpu"]
    env = os.environ | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=env, cwd=home, check=False)
    assert result.returncode == 0, result.stderr
    shown = (output / "index.html").read_text("utf-8")
    assert "middle.0.attn1" in shown
    assert "demo, measured" in (output / "REPORT.md").read_text("utf-8")
    assert not [*home.rglob("*")]


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_fits_the_window_and_shows_its_pictures(of_sd15, tmp_path, artefacts):
    from playwright.sync_api import sync_playwright

    folder, words = of_sd15
    reasons = {"edit": "not enough memory (0.1 of 8.0 GiB free). Lower --frames or --size"}
    (tmp_path / "index.html").write_text(writing.html(page_of(folder, *words, reasons=reasons)), "utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(CHROMIUM_FLAGS))
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto((tmp_path / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 1100
        widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) == 4, "what a part had drawn before it failed is shown, too"
        assert min(widths) > 100
        assert page.get_by_text("Lower --frames or --size").count() >= 1
        page.screenshot(path=artefacts / "report_of_a_model.png", full_page=True)
        browser.close()
