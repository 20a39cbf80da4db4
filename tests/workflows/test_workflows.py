"""The workflows that ship with the pack, and the stock nodes beside ours, run through a real server."""

import io
import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from coherence.client.errors import ComfyError, PromptError
from coherence.client.server import outputs
from coherence.client.workflow import to_prompt
from coherence.hosting.provision import PACK, PACK_NAME
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.nodes.momentum import TemporalMomentumAttention
from PIL import Image
from shipped import (
    ANIMATEDIFF,
    FOR_CHECKPOINTS,
    FRAMES,
    LEFT_OUT,
    MODEL_FILES,
    TAKING_VIDEOS,
    WORKFLOWS,
    ZS2,
    frames_of,
    inputs_of,
    small,
)
from tiny_models import FAMILIES, sample
from tiny_models.stand_ins import STAND_INS


@pytest.mark.slow
def test_the_same_seed_gives_the_same_frames_and_another_seed_others(server, to_api, tmp_path):
    def draw(seed: int) -> np.ndarray:
        server.post("/free", {"free_memory": True})  # else the second run is the first, remembered
        prompt = to_api(ZS2)
        for node in prompt.values():
            limits = {"width": 64, "height": 64, "batch_size": 3, "steps": 3, "noise_seed": seed, "lossless": True}
            node["inputs"] |= {name: value for name, value in limits.items() if name in node["inputs"]}
        return frames_of(server, server.queue(prompt), tmp_path)

    first, again, other = draw(1), draw(1), draw(2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_template_is_listed_and_served_with_its_thumbnail(server, path):
    assert path.stem in server.get("/workflow_templates")[PACK_NAME]
    assert server.get(f"/api/workflow_templates/{PACK_NAME}/{path.stem}.json") == json.loads(path.read_text("utf-8"))
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size < 200_000
    with Image.open(thumbnail) as picture:
        assert min(picture.size) >= 300


# Workflows for models that users have --------------------------------------------------------------------------


WITHOUT = {
    "zs2_controlnet": ("ControlNetApplyAdvanced", {"strength": 0.0}),
    "zs2_pose_schedule": ("ControlNetApplyAdvanced", {"strength": 0.0}),
    "animatediff_guidance": ("IEGuidanceCFG", {"scale": 0.0}),
    "animatediff_lightning_edit": ("EntropyGuidedEdit", {"start_percent": 0.4}),
    "zs2_lora": ("LoraLoader", {"strength_model": 0.0}),
    "zs2_instruct_pix2pix": ("CoherenceDemoClip", {"colour": "green"}),
    "zs2_flux": ("TemporalMomentumAttention", {"mu": 0.0}),
    "edit_video_with_image_editor": ("CoherenceDemoClip", {"colour": "green"}),
    "ie_guidance_video_transformer": ("IEGuidanceCFG", {"scale": 0.0}),
    "edit_flow": ("FlowEdit", {"target_cfg": 1.0}),
    "edit_two_experts": ("EntropyGuidedEdit", {"start_percent": 1.0}),
    "rave_controlnet": ("RAVEGrid", {"grid": 1}),
}
"""How each is run without what it adds to its checkpoint, or on another video: a class of nodes, and their inputs."""
SHOWING = {"zs2_flux": [1], "ie_guidance_video_transformer": [0], "edit_two_experts": [2, 3]}
"""Frames that must differ, where not all do: momentum keeps the first, a small random VAE of videos saturates, and the
maps of two prompts are much alike in random models."""
TELLING = ("TemporalMomentumAttention", "FlowEdit", "EntropyGuidedEdit")
"""The nodes whose help pages say which models these workflows load."""


@pytest.fixture(scope="module")
def drawn_small(server, to_api, stand_ins, tmp_path_factory):
    """Frames of a workflow on small random models: (workflow's name, a class of nodes, their inputs) → as it ships but
    for the size, or with these inputs of these nodes."""

    def draw(name: str, class_type: str = "", inputs: dict | None = None) -> np.ndarray:
        path = PACK / "workflows" / f"{name}.json"
        prompt = to_api(path)
        for node in prompt.values():
            node["inputs"] |= {key: value for key, value in small(path).items() if key in node["inputs"]}
            if node["class_type"] == class_type:
                node["inputs"] |= inputs or {}
        return frames_of(server, server.queue(prompt), tmp_path_factory.mktemp(name))

    return draw


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in FOR_CHECKPOINTS])
def test_what_a_workflow_adds_to_its_checkpoint_shows_in_the_clip(drawn_small, name):
    ours, other = (drawn_small(name, *change)[:, :, -64:].astype(int) for change in ((), WITHOUT[name]))
    assert ours.shape[1:] == (64, 64, 3)
    assert len(ours) % FRAMES.get(name, 2) == 0, "one clip, or two beside each other"
    assert ours.std() > 10
    changed = abs(ours - other).mean(axis=(1, 2, 3))[SHOWING.get(name, slice(None))]
    assert (changed > 1).all(), "every frame is drawn under it"


def test_the_models_that_workflows_load_are_told_on_a_help_page_and_stood_in_for(to_api):
    loaded = {
        f"{MODEL_FILES[key]}/{file}"
        for path in FOR_CHECKPOINTS
        for node in to_api(path).values()
        for key, file in node["inputs"].items()
        if key in MODEL_FILES
    }
    assert loaded == STAND_INS.keys()
    pages = "".join((PACK / "web" / "docs" / f"{node}.md").read_text("utf-8") for node in TELLING)
    assert not [name for name in loaded if f"`{name.split('/')[1]}` ({name.split('/')[0]})" not in pages]


@pytest.mark.parametrize("name", [name for name, nodes in LEFT_OUT.items() if ANIMATEDIFF in nodes])
def test_a_workflow_whose_pack_is_missing_is_refused_by_name_and_its_note_says_where_it_is(object_info, name):
    workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text("utf-8"))
    with pytest.raises(ComfyError, match=f"nodes that this ComfyUI does not know: {ANIMATEDIFF}"):
        to_prompt(workflow, object_info)
    notes = "".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert "**It needs the pack ComfyUI-AnimateDiff-Evolved**" in notes
    assert "https://github.com/Kosinkadink/ComfyUI-AnimateDiff-Evolved" in notes


# Videos of the user ---------------------------------------------------------------------------------------------


def write_video(path: Path, frames: int, size: int, fps: int) -> None:
    """A gradient that slides, as H.264."""
    ramp = np.arange(size, dtype=np.uint8) * (256 // size)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width = stream.height = size
        for index in range(frames):
            picture = np.repeat(np.tile(np.roll(ramp, 4 * index), (size, 1))[..., None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def with_own_video(workflow: dict, name: str) -> dict:
    """The workflow as its note says: a video chosen, and its frames drawn to where the demo clip's went."""
    (clip,) = (node for node in workflow["nodes"] if node["type"] == "CoherenceDemoClip")
    (load,) = (node for node in workflow["nodes"] if node["type"] == "LoadVideo")
    (last,) = (node for node in workflow["nodes"] if node.get("title") == "As large as the model draws")
    load["widgets_values"][0] = name
    for link in workflow["links"]:
        if link[1:3] == [clip["id"], 0]:
            link[1:3] = [last["id"], 0]
    return workflow


@pytest.mark.slow
@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("path", TAKING_VIDEOS, ids=lambda path: path.stem)
def test_a_users_video_takes_the_demo_clips_place_as_the_note_says(server, object_info, path):
    """It is longer and larger than the workflow draws; where a clip comes out, it is a video again."""
    write_video(server.base / "input" / "mine.mp4", frames=24, size=128, fps=12)
    workflow = with_own_video(json.loads(path.read_text("utf-8")), "mine.mp4")
    prompt = to_prompt(workflow, object_info)
    for node in prompt.values():
        node["inputs"] |= {key: value for key, value in small(path).items() if key in node["inputs"]}
    entry = server.queue(prompt)
    assert entry["status"]["status_str"] == "success"
    videos = [file for file in outputs(entry) if file["filename"].endswith(".mp4")]
    assert len(videos) == ("SaveVideo" in {node["class_type"] for node in prompt.values()})
    for video in videos:
        with av.open(io.BytesIO(server.download(video))) as container:
            assert len(list(container.decode(video=0))) == small(path)["length"]


# Stock nodes ---------------------------------------------------------------------------------------------------


def offer(server, path: Path, kind: str) -> str:
    """Put a model file where the server finds it; returns the name that its loader takes."""
    folder = server.base / "models" / kind
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder)
    return path.name


@pytest.fixture(scope="module")
def checkpoint(server, tiny_models) -> str:
    """A random SD1.5 checkpoint, by the name that its loader takes."""
    return offer(server, tiny_models.path("sd15"), "checkpoints")


def stock_prompt(checkpoint: str, patch: dict | None) -> dict:
    """Load Checkpoint → (a patch) → KSampler → a lossless clip of three frames."""
    nodes = {
        "load": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint}),
        "positive": ("CLIPTextEncode", {"clip": ["load", 1], "text": "a cat"}),
        "negative": ("CLIPTextEncode", {"clip": ["load", 1], "text": "blurry"}),
        "latent": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 3}),
        "sample": (
            "KSampler",
            {
                "model": ["patch" if patch else "load", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                "seed": 1,
                "steps": 2,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        ),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["load", 2]}),
        "save": (
            "SaveAnimatedWEBP",
            {
                "images": ["decode", 0],
                "filename_prefix": "stock",
                "fps": 8.0,
                "lossless": True,
                "quality": 80,
                "method": "fastest",
            },
        ),
    }
    if patch:
        nodes["patch"] = (patch["class_type"], {"model": ["load", 0], **patch["inputs"]})
    return {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in nodes.items()}


def momentum(**inputs) -> dict:
    defaults = {"mu": 0.98, "mu_schedule": "", "layers": "*", "start_percent": 0.0, "end_percent": 1.0}
    return {"class_type": "TemporalMomentumAttention", "inputs": defaults | inputs}


@pytest.mark.slow
def test_a_stock_sd15_checkpoint_runs_with_momentum_attention(server, checkpoint, tmp_path):
    plain, idle, ours = (
        frames_of(server, server.queue(stock_prompt(checkpoint, patch)), tmp_path).astype(int)
        for patch in (None, momentum(mu=0.0), momentum())
    )
    assert abs(idle - plain).max() <= 1, "mu 0 is the plain model, but for rounding"
    assert abs(ours[0] - plain[0]).max() <= 1, "the first frame remembers nothing"
    assert (abs(ours[1:] - plain[1:]).mean(axis=(1, 2, 3)) > 0.5).all(), "the later frames do"


@pytest.mark.slow
def test_an_sdxl_model_runs_with_momentum_attention(tiny_models):
    model, family = tiny_models.load("sdxl"), FAMILIES["sdxl"]
    plain = sample(model, family)
    patched = {mu: sample(TemporalMomentumAttention.execute(model, mu).args[0], family) for mu in (0.0, 0.98, 1.0)}
    first_frame = sample(CrossFrameAttention.execute(model, "first").args[0], family)
    effect = (patched[0.98] - plain)[1:].abs().mean().item()
    assert effect > 1e-3
    tolerance = effect / 100
    torch.testing.assert_close(patched[0.0], plain, atol=tolerance, rtol=0)
    torch.testing.assert_close(patched[0.98][0], plain[0], atol=tolerance, rtol=0)
    torch.testing.assert_close(patched[1.0], first_frame, atol=tolerance, rtol=0)


# Mistakes of users ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"layers": "inputs.4"}, r"'inputs\.4' matches no spatial attention layer.*It has: input\."),
        ({"layers": " "}, "layers is empty"),
        ({"mu_schedule": "0:0.9, 8=0.5"}, r"Schedule piece '8=0\.5': expected frame:value"),
        ({"start_percent": 0.8, "end_percent": 0.2}, r"start_percent is 0\.8 and end_percent 0\.2"),
    ],
)
def test_a_mistake_at_momentum_attention_is_explained_there(server, to_api, inputs, complaint):
    prompt = to_api(ZS2)
    inputs_of(prompt, "TemporalMomentumAttention").update(inputs)
    with pytest.raises(PromptError, match=rf"(?s)\(TemporalMomentumAttention\).*{complaint}"):
        server.queue(prompt)


@pytest.mark.parametrize(
    ("schedule", "complaint"),
    [("0:0.01, x", "Schedule piece 'x': expected frame:value"), ("0:3", r"between 0 and 1\.65")],
)
def test_a_mistake_at_dependency_noise_is_explained_there(server, to_api, schedule, complaint):
    prompt = to_api(ZS2)
    inputs_of(prompt, "DependencyNoise")["kl_schedule"] = schedule
    with pytest.raises(PromptError, match=rf"\(DependencyNoise\): .*InputError: kl_schedule: .*{complaint}"):
        server.queue(prompt)


def test_a_number_from_another_node_is_a_schedule(server, to_api):
    prompt = to_api(ZS2)
    prompt["number"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 3.0}}
    inputs_of(prompt, "DependencyNoise")["kl_schedule"] = ["number", 0]
    with pytest.raises(PromptError, match=r"\(DependencyNoise\): .*InputError: kl_schedule: Schedule piece '0:3.0'"):
        server.queue(prompt)


def test_a_model_that_attends_across_frames_is_refused_with_what_would_do(server, to_api, tiny_models):
    name = offer(server, tiny_models.path("wan21"), "diffusion_models")
    prompt = to_api(ZS2)
    prompt["wan"] = {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}
    inputs_of(prompt, "TemporalMomentumAttention")["model"] = ["wan", 0]
    with pytest.raises(PromptError, match=r"\(TemporalMomentumAttention\).*Expected an image model.*Use one of these"):
        server.queue(prompt)


def test_a_clip_of_one_frame_is_refused_by_the_chart_with_a_cure(server, to_api):
    prompt = to_api(ZS2)
    for node in prompt.values():
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"]["batch_size"] = 1
    with pytest.raises(PromptError, match=r"\(NoiseCorrelation\).*Raise the batch size"):
        server.queue(prompt)
