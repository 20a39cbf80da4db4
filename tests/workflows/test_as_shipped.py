"""Every workflow as its user meets it: opened in the page and run by its button; then what came out of the run."""

import io
import json
import math
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from coherence.client.clip import temporal_consistency
from coherence.client.server import outputs
from coherence.client.workflow import to_prompt
from coherence.hosting.provision import PACK
from coherence.metrics.similarity import psnr, ssim
from pages import (
    BLANK,
    COMPLAINTS,
    IN_VIEW,
    SET,
    fit_view,
    load_workflow,
    new_page,
    open_template,
    press_run,
    require_no_complaint,
    require_nodes_apart,
    require_prompt,
    require_readable,
)
from PIL import Image
from shipped import (
    AS_SHIPPED,
    CLIPS,
    FOR_CHECKPOINTS,
    LEFT_OUT,
    SHORTER,
    WORKFLOWS,
    ZS2,
    frames_of,
    inputs_of,
    runnable,
    small,
)

pytestmark = pytest.mark.slow


OPEN = []
"""The page, while tests look at it."""


@pytest.fixture(scope="module")
def page(browser_context, server):
    """One for all workflows, with the first of them, opened by its address: the others are loaded into it."""
    opened = new_page(browser_context)
    OPEN.append(opened)
    open_template(opened, server, ZS2.stem)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _leave_the_page(request):
    """Before the runs over the API, beside which it would take a sixth of a core to show clips to nobody."""
    while OPEN and "page" not in request.fixturenames:
        OPEN.pop().goto("about:blank")


@pytest.fixture(scope="module")
def finished(server, to_api):
    """The history entry of a workflow that runs as it ships: from the cache, where the page has just run it."""
    entries = {}

    def run(path: Path) -> dict:
        if path not in entries:
            prompt = to_api(path)
            for node in prompt.values():
                node["inputs"] |= {k: v for k, v in SHORTER.get(path.stem, {}).items() if k in node["inputs"]}
            entries[path] = server.queue(prompt)
        return entries[path]

    return run


def entry_of(server, prompt_id: str, seconds: float = 10.0) -> dict:
    """A prompt's entry of the history, where it comes shortly after the message of its success."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if entry := server.get(f"/history/{prompt_id}").get(prompt_id):
            return entry
        time.sleep(0.1)
    raise TimeoutError(f"{prompt_id} does not come into the history")


PRESSED = [
    PACK / "workflows" / f"{name}.json"
    for name in (
        "zs2_text_to_video",
        "zs2_flux",
        "demo_video",
        "match_clip_colour",
        "entropy_register",
        "ie_guidance",
        "edit_real_clip",
        "ge_adapter_train",
    )
]
"""Workflows run in the page: between them they have every node that shows something. The others run over the API."""


@pytest.mark.usefixtures("stand_ins")
def test_every_workflow_opens_whole_readable_and_as_the_prompt_that_to_prompt_makes_of_it(page, object_info):
    wrong = {}
    for path in [path for path in WORKFLOWS if path.stem not in LEFT_OUT]:
        load_workflow(page, json.loads(path.read_text("utf-8")))
        try:
            require_no_complaint(page)
            require_nodes_apart(page)
            require_readable(page)
            require_prompt(page, to_prompt(runnable(path), object_info))
        except AssertionError as error:
            wrong[path.stem] = str(error)
    assert not wrong


@pytest.mark.usefixtures("stand_ins")
def test_a_workflow_opens_readably_without_its_pack_or_model_and_the_page_marks_these(page, artefacts, object_info):
    for path in [path for path in WORKFLOWS if path.stem in LEFT_OUT]:
        load_workflow(page, json.loads(path.read_text("utf-8")))
        page.screenshot(path=artefacts / f"{path.stem}_opened.png")
        complaints = page.evaluate(COMPLAINTS)
        marked = {*complaints["missing nodes"], *complaints["nodes in red"]}
        assert marked
        assert marked <= LEFT_OUT[path.stem]
        assert not complaints["links to nowhere"]
        require_nodes_apart(page)
        require_readable(page)
        load_workflow(page, runnable(path))
        require_prompt(page, to_prompt(runnable(path), object_info))


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("path", PRESSED, ids=lambda path: path.stem)
def test_a_workflow_opens_runs_by_the_button_and_shows_what_it_made(page, server, artefacts, finished, path):
    load_workflow(page, json.loads(path.read_text("utf-8")))
    fit_view(page)
    require_no_complaint(page)
    require_nodes_apart(page)
    assert page.evaluate("app.canvas.ds.scale") > 0.572, "at a smaller scale the canvas draws no text"
    assert page.evaluate(IN_VIEW)
    if path in FOR_CHECKPOINTS:
        page.evaluate(SET, small(path))
    page.evaluate(SET, SHORTER.get(path.stem, {}))
    prompt_id = press_run(page)
    try:
        page.wait_for_function(f"() => ({BLANK})().length === 0")
    finally:
        page.screenshot(path=artefacts / f"{path.stem}_finished.png")
        blank = page.evaluate(BLANK)
    assert not blank
    require_no_complaint(page)
    require_nodes_apart(page)
    entry = entry_of(server, prompt_id)
    assert entry["status"]["status_str"] == "success"
    if path in AS_SHIPPED:
        again, first = (sorted(file["filename"] for file in outputs(one)) for one in (finished(path), entry))
        assert again == first, "over the API it is the same prompt: nothing runs again"


@pytest.mark.parametrize("path", AS_SHIPPED, ids=lambda path: path.stem)
def test_a_workflow_runs_as_it_ships(finished, path):
    entry = finished(path)
    assert entry["status"]["status_str"] == "success"
    assert outputs(entry) + outputs(entry, "temp")


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_the_clip_of_a_workflow_moves_coherently(server, finished, path, tmp_path):
    entry = finished(path)
    frames = frames_of(server, entry, tmp_path)
    assert len(frames) >= 8
    assert (frames[0] != frames[-1]).any(), "the clip stands still"
    assert frames.std() > 10, "the clip shows nothing"
    assert temporal_consistency(frames) > 0.7, "the clip flickers"


def test_a_trained_adapter_shows_and_is_a_lora_for_the_stock_loader(server, finished, tmp_path):
    finished(PACK / "workflows" / "ge_adapter_train.json")
    frames = frames_of(server, finished(PACK / "workflows" / "ge_adapter_apply.json"), tmp_path).astype(float)
    without, applied = frames[:, :, :128], frames[:, :, -128:]
    assert abs(without - applied).mean() > 0.5
    prompt = {
        "model": {"class_type": "CoherenceDemoModel", "inputs": {"kind": "shapes"}},
        "lora": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {
                "model": ["model", 0],
                "lora_name": "ge_adapter_demo_00001_.ge_adapter.safetensors",
                "strength_model": 1.0,
            },
        },
        "sigmas": {
            "class_type": "BasicScheduler",
            "inputs": {"model": ["lora", 0], "scheduler": "normal", "steps": 1, "denoise": 1.0},
        },
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["sigmas", 0]}},
    }
    assert server.queue(prompt)["status"]["status_str"] == "success"


def test_the_mp4_holds_the_frames_of_the_animated_webp(server, finished, tmp_path):
    entry = finished(ZS2)
    frames = frames_of(server, entry, tmp_path)
    (file,) = (file for file in outputs(entry) if file["filename"].endswith(".mp4"))
    with av.open(io.BytesIO(server.download(file))) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == frames.shape
    error = (decoded.astype(float) - frames.astype(float)).std()
    assert error < 8, "H.264 and WEBP both lose a little, but show the same"


def test_the_noise_chart_and_its_figures_stand_beside_the_clip(server, finished, to_api):
    entry = finished(ZS2)
    (chart,) = outputs(entry, "temp")
    with Image.open(io.BytesIO(server.download(chart))) as picture:
        assert min(picture.size) > 400
    kl = inputs_of(to_api(ZS2), "DependencyNoise")["kl"]
    (text,) = (node["text"][0] for node in entry["outputs"].values() if "text" in node)
    report = json.loads(text)
    assert report["kl"] == pytest.approx([kl] * (report["frames"] - 1), abs=2e-4)
    assert report["neighbour_correlation"] == pytest.approx(1 - kl / math.sqrt(math.e), abs=0.01)


def test_a_clip_begins_with_its_picture(server, finished):
    """Its preview shows picture and frame 0, side by side."""
    (file,) = outputs(finished(PACK / "workflows" / "zs2_from_picture.json"), "temp")
    with Image.open(io.BytesIO(server.download(file))) as image:
        both = torch.from_numpy(np.array(image.convert("RGB")))[None] / 255
    picture, first = both.chunk(2, dim=2)
    assert psnr(first, picture).item() >= 25


def test_the_last_frame_of_a_loop_is_as_like_the_first_as_neighbours_are(server, finished, tmp_path):
    frames = frames_of(server, finished(PACK / "workflows" / "zs2_loop.json"), tmp_path)
    clip = torch.from_numpy(frames)[:, ::4, ::4] / 255
    *neighbours, closing = ssim(clip.roll(-1, 0), clip).tolist()
    assert closing >= min(neighbours)


def test_the_inversion_workflow_gives_the_clip_back(server, finished):
    """Its previews show source, copy without a filter and copy with one, side by side."""
    entry = finished(PACK / "workflows" / "bilateral_inversion.json")
    pictures = [Image.open(io.BytesIO(server.download(file))) for file in outputs(entry, "temp")]
    frames = torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures]) / 255
    source, plain, filtered = frames.chunk(3, dim=2)
    assert psnr(plain, source).mean() > 30
    assert 20 < psnr(filtered, source).mean() < psnr(plain, source).mean()
    (text,) = (node["text"][0] for node in entry["outputs"].values() if "text" in node)
    assert json.loads(text)["norm"][-1] == pytest.approx(1, abs=0.1)
