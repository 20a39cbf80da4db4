"""Momentum through a real server: from run to run within a prompt, and by a file from one prompt to another."""

import io

import numpy as np
import pytest
from coherence.client.server import outputs
from PIL import Image

KEPT = "momentum/two_runs_00001_.momentum.safetensors"


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def noise(frames, previous=None):
    settings = {"noise_seed": 1, "kl": 0.1, "kl_schedule": "", "divergence": "generalised", "solver": "bisection"}
    given = {} if previous is None else {"previous": previous}
    return {
        f"noise{frames}": node("DependencyNoise", **settings, random_candidates=1, line_iterations=15, **given),
    }


def run(name, noise_name, frames, **momentum):
    """A clip's nodes, whose images are shown as ``name``."""
    settings = {"mu": 0.9, "mu_schedule": "0:0.9, 3:0.5", "layers": "*", "start_percent": 0.0, "end_percent": 1.0}
    return {
        f"{name}.model": node("TemporalMomentumAttention", model=["load", 0], **settings, **momentum),
        f"{name}.guider": node(
            "CFGGuider", model=[f"{name}.model", 0], positive=["positive", 0], negative=["negative", 0], cfg=4.0
        ),
        f"{name}.latent": node("EmptyLatentImage", width=128, height=128, batch_size=frames),
        f"{name}.run": node(
            "SamplerCustomAdvanced",
            noise=[noise_name, 0],
            guider=[f"{name}.guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=[f"{name}.latent", 0],
        ),
        f"{name}.decoded": node("VAEDecode", samples=[f"{name}.run", 0], vae=["load", 2]),
        name: node("SaveImage", images=[f"{name}.decoded", 0], filename_prefix=name),
    }


SHARED = {
    "load": node("CoherenceDemoModel", kind="image"),
    "positive": node("CLIPTextEncode", clip=["load", 1], text="a large star in the centre"),
    "negative": node("CLIPTextEncode", clip=["load", 1], text=""),
    "sampler": node("KSamplerSelect", sampler_name="dpmpp_2m"),
    "sigmas": node("BasicScheduler", model=["load", 0], scheduler="karras", steps=4, denoise=1.0),
    **noise("_first"),
    **noise("_second", ["frames", 0]),
    "first.latent": node("EmptyLatentImage", width=128, height=128, batch_size=3),
    "frames": node("NoiseFrames", noise=["noise_first", 0], latent_image=["first.latent", 0]),
}


def images(server, entry, name):
    files = outputs({"outputs": {name: entry["outputs"][name]}})
    return np.stack([np.array(Image.open(io.BytesIO(server.download(file)))) for file in files]).astype(int)


@pytest.mark.slow
def test_a_clip_goes_on_in_the_same_prompt_and_from_a_file_in_another(server):
    within = server.queue(
        {
            **SHARED,
            **run("first", "noise_first", 3, keep=True),
            "momentum": node("MomentumOfRun", model=["first.model", 0], latent=["first.run", 0]),
            "save": node("SaveMomentum", momentum=["momentum", 0], filename_prefix="momentum/two_runs"),
            **run("second", "noise_second", 3, previous=["momentum", 0]),
        }
    )
    assert within["outputs"]["save"]["momenta"][0]["filename"] == KEPT.partition("/")[2]
    server.post("/free", {"free_memory": True, "unload_models": True})
    later = server.queue(
        {
            **SHARED,
            "momentum": node("LoadMomentum", file=KEPT),
            **run("loaded", "noise_second", 3, previous=["momentum", 0]),
            **run("anew", "noise_second", 3),
            **run("whole", "noise_first", 6),
        }
    )
    first, second = images(server, within, "first"), images(server, within, "second")
    loaded, anew, whole = (images(server, later, name) for name in ("loaded", "anew", "whole"))
    np.testing.assert_array_equal(loaded, second)
    assert abs(np.concatenate([first, second]) - whole).max() <= 1
    assert abs(anew - whole[3:]).mean() > 1, "without the momentum it is another clip"
