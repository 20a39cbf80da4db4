"""Draws the pictures of the help pages with the demo model: charts of the nodes, and clips frame by frame.

    python scripts/help_pictures.py --comfyui DIR [NAME ...]

Run it with the Python of that ComfyUI, after a change of a node or of the demo model; it takes minutes. The pages'
captions say what each picture shows: change both together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attention_scenes import layer_sweep, null_text, registers, select_layers, word_edits, word_maps
from help_scenes import COLUMNS, Link, Scene, Server, chart, start, strips
from zero_shot_scenes import edits_of_a_clip, flow_attention, pix2video_guidance, rave_grid, vidtome

FISH = "a yellow fish on a blue background"  # size and place are left to the noise
ANY_COLOURS = "a large rabbit in the centre"
THINGS = {"kind": "image", "cfg": 3.0}


def dependency_noise(server: Server) -> None:
    scene = Scene(FISH, **THINGS)
    for kl in (0.01, 0.05, 0.1, 0.25, 1.65):
        scene.clip(f"kl {kl:g}", noise=scene.dependency_noise(kl))
    strips("DependencyNoise", scene.run(server))


def video_noise_prior(server: Server) -> None:
    scene = Scene(FISH, **THINGS)
    for prior, alpha in (("iid", 0.5), ("mixed", 0.5), ("progressive", 0.5), ("mixed", 0.9), ("progressive", 0.9)):
        noise = scene.add("VideoNoisePrior", noise_seed=1, prior=prior, alpha=alpha)[0]
        scene.clip(prior if prior == "iid" else f"{prior}\nalpha {alpha:g}", noise=noise)
    strips("VideoNoisePrior", scene.run(server))


def noise_correlation(server: Server) -> None:
    scene = Scene(FISH, frames=12, **THINGS)
    noise = scene.dependency_noise(0.01, kl_schedule="0:0.02, 5:0.02, 8:0.3, 11:0.02")
    scene.show("chart", scene.add("NoiseCorrelation", noise=noise, latent_image=scene.latent)[0])
    chart("NoiseCorrelation", scene.run(server)["chart"][0])


def noise_frames(server: Server) -> None:
    scene = Scene(FISH, **THINGS)
    first = scene.dependency_noise(0.1)
    frames = scene.add("NoiseFrames", noise=first, latent_image=scene.latent)[0]
    scene.clip("first run", noise=first)
    scene.clip("second run,\nwith previous", noise=scene.dependency_noise(0.1, previous=frames))
    scene.clip("second run,\nwithout, seed 2", noise=scene.dependency_noise(0.1, seed=2))
    strips("NoiseFrames", scene.run(server))


def coherent_sampler(server: Server) -> None:
    scene = Scene(FISH, **THINGS)
    noise = scene.dependency_noise(0.05)
    for name in ("lcm", "euler_ancestral"):
        scene.clip(name, noise=noise, sampler=name)
        select = scene.add("KSamplerSelect", sampler_name=name)[0]
        led = scene.add("CoherentSampler", sampler=select, noise=noise)[0]
        scene.clip(f"{name} with\nCoherent Sampler", noise=noise, sampler=led)
    strips("CoherentSampler", scene.run(server))


def keyframe_noise(server: Server) -> None:
    scene = Scene(FISH, frames=12, **THINGS)
    one = scene.add("EmptyLatentImage", width=128, height=128, batch_size=2)[0]
    given = scene.add("RandomNoise", noise_seed=7)[0]
    keys = scene.add("NoiseFrames", noise=given, latent_image=one)[0]
    noise = scene.add("KeyframeNoise", noise=scene.dependency_noise(0.05), keyframes=keys, frames="0, 8")[0]
    scene.show("chart", scene.add("NoiseCorrelation", noise=noise, latent_image=scene.latent)[0])
    chart("KeyframeNoise", scene.run(server)["chart"][0])


def motion_field_noise(server: Server) -> None:
    scene = Scene("a small white plane on a purple background", steps=20, seed=4, **THINGS)
    model = scene.add("CrossFrameAttention", model=scene.model, keys="first", layers="*", start_percent=0.0,
                      end_percent=1.0)[0]  # fmt: skip
    quiet = scene.add("DisableNoise")[0]
    for x, y in ((0, 0), (8, 0), (0, -8), (-8, 8)):
        field = scene.add(
            "MotionFieldNoise", model=model, positive=scene.positive, negative=scene.negative, cfg=3.0, noise_seed=4,
            latent_image=scene.latent, sigmas=scene.sigmas, delta_x=float(x), delta_y=float(y), t0=0.3, t1=0.4,
        )  # fmt: skip
        scene.clip(
            f"delta_x {x}\ndelta_y {y}", model=model, noise=quiet, latent=field[0], sigmas=field[1], sampler="euler"
        )
    strips("MotionFieldNoise", scene.run(server))


def momentum_attention(server: Server) -> None:
    scene = Scene(ANY_COLOURS, **THINGS)
    for mu in (0.0, 0.5, 0.98, 1.0):
        model = scene.add(
            "TemporalMomentumAttention", model=scene.model, mu=mu, mu_schedule="", layers="*", start_percent=0.0,
            end_percent=1.0, frames_per_batch=0,
        )[0]  # fmt: skip
        scene.clip(f"mu {mu:g}", model=model)
    strips("TemporalMomentumAttention", scene.run(server))


def momentum_of_run(server: Server) -> None:
    scene = Scene(ANY_COLOURS, **THINGS)
    settings = {"mu": 0.98, "mu_schedule": "", "layers": "*", "start_percent": 0.0, "end_percent": 1.0}

    def remembering(**inputs: Any) -> Link:
        return scene.add("TemporalMomentumAttention", model=scene.model, **settings, frames_per_batch=0, **inputs)[0]

    noise, kept = scene.dependency_noise(1.65), remembering(keep=True)
    first = scene.sample(model=kept, noise=noise)
    scene.decode("first run", first)
    frames = scene.add("NoiseFrames", noise=noise, latent_image=scene.latent)[0]
    momentum = scene.add("MomentumOfRun", model=kept, latent=first)[0]
    for name, model in (("with", remembering(previous=momentum)), ("without", remembering())):
        scene.clip(f"second run,\n{name} momentum", model=model, noise=scene.dependency_noise(1.65, previous=frames))
    strips("MomentumOfRun", scene.run(server))


def cross_frame_attention(server: Server) -> None:
    scene = Scene(ANY_COLOURS, **THINGS)
    scene.clip("without")
    for keys in ("first", "previous", "first_and_previous", "fine_coarse", "all", "random"):
        model = scene.add("CrossFrameAttention", model=scene.model, keys=keys, layers="*", start_percent=0.0,
                          end_percent=1.0, pool=2, seed=0)[0]  # fmt: skip
        scene.clip(keys.replace("_and_", "_and_\n"), model=model)
    strips("CrossFrameAttention", scene.run(server))


def inversions(server: Server) -> None:
    """A clip through all ways to its noise and back."""
    scene = Scene("a small red circle in the centre on a white background", cfg=1.0)
    clip = scene.demo_clip("the clip", "circle", "red", "white", "slide", 0)
    latent = scene.add("VAEEncode", pixels=clip[0], vae=scene.vae)[0]
    quiet = scene.add("DisableNoise")[0]
    again = {"noise": quiet, "sampler": "euler"}
    plain = scene.invert(latent)
    scene.clip("none", latent=plain, **again)
    scene.clip("latent_spatial\nsigma_intensity\n0.2", **again,
               latent=scene.invert(latent, mode="latent_spatial", sigma_intensity=0.2))  # fmt: skip
    scene.clip("latent_spatial", latent=scene.invert(latent, mode="latent_spatial"), **again)
    scene.clip("feature_temporal", latent=scene.invert(latent, mode="feature_temporal"), **again)

    walk = scene.add(
        "SamplerBilateralDDIMInvert", mode="none", kernel_size=5, sigma_spatial=1.0, sigma_intensity=1.0,
        filter_until=0.5, restandardise=True, refine_iterations=2,
    )[0]  # fmt: skip
    guider = scene.add("BasicGuider", model=scene.model, conditioning=scene.positive)[0]
    flipped = scene.add("FlipSigmas", sigmas=scene.sigmas)[0]
    noise = scene.add("SamplerCustomAdvanced", noise=quiet, guider=guider, sampler=walk, sigmas=flipped,
                      latent_image=latent)[0]  # fmt: skip
    scene.decode("its noise", noise)
    scene.clip("drawn again", latent=noise, **again)

    given = scene.add("NoiseFromLatent", latent=plain, model=scene.model)[0]
    scene.clip("drawn from it", noise=given, sampler="euler")
    other = scene.encode("a small blue circle in the centre on a white background")
    scene.clip("another prompt", noise=given, sampler="euler", positive=other, cfg=3.0)
    rows = scene.run(server)
    source = {"the clip": rows.pop("the clip")}
    names = list(rows)
    for name, part in (
        ("BilateralDDIMInvert", names[:4]), ("SamplerBilateralDDIMInvert", names[4:6]), ("NoiseFromLatent", names[6:])
    ):  # fmt: skip
        strips(name, source | {row: rows[row] for row in part})


def demo_clips(server: Server) -> None:
    scene = Scene(FISH, **THINGS)
    for shape, colour, background, motion in (
        ("circle", "red", "white", "slide"), ("cat", "blue", "yellow", "turn"), ("star", "green", "black", "grow"),
        ("rocket", "purple", "orange", "all"),
    ):  # fmt: skip
        clip = scene.demo_clip(motion, shape, colour, background, motion, 1)
    scene.show("mask of the last", scene.add("MaskToImage", mask=clip[1])[0])
    strips("CoherenceDemoClip", scene.run(server))


def demo_models(server: Server) -> None:
    rows = {}
    for text in ("a small red rocket at\nthe top left on a green\nbackground", "a red cat on a\nblue background"):
        scene = Scene(text.replace("\n", " "), steps=25, **THINGS)
        scene.clip(text)
        rows |= scene.run(server)
    for text in ("a large blue heart\nin the centre on a yellow\nbackground, shrinking",
                 "a large orange car\nat the bottom on a blue\nbackground, moving right"):  # fmt: skip
        scene = Scene(text.replace("\n", " "), frames=16, steps=16, seed=7, cfg=3.0, kind="video")
        scene.clip(text)
        rows |= {name: frames[::2] for name, frames in scene.run(server).items()}
    strips("CoherenceDemoModel", rows, 176)


def consistency(server: Server) -> None:
    scene = Scene("a blue star on a yellow background", steps=20)
    clip = scene.demo_clip("source", "star", "blue", "yellow", "slide", 3)
    latent = scene.add("VAEEncode", pixels=clip[0], vae=scene.vae)[0]
    half = scene.add("BasicScheduler", model=scene.model, scheduler="karras", steps=20, denoise=0.5)[0]
    drawn = scene.clip("drawn", latent=latent, sigmas=half)
    scene.show("chart", scene.add("TemporalConsistency", images=drawn, reference=clip[0])[1])
    chart("TemporalConsistency", scene.run(server)["chart"][0])


def colours(server: Server) -> None:
    """Three runs that fade, and the later ones matched to the first."""
    scene = Scene(FISH)
    clip = scene.add(
        "CoherenceDemoClip",
        shape="star",
        colour="yellow",
        background="purple",
        motion="slide",
        frames=9,
        size=128,
        seed=1,
    )
    runs = [scene.add("ImageFromBatch", image=clip[0], batch_index=3 * run, length=3)[0] for run in range(3)]
    grey = scene.add("EmptyImage", width=128, height=128, batch_size=3, color=0xB09A80)[0]
    faded = [
        scene.add("ImageBlend", image1=run, image2=grey, blend_factor=share, blend_mode="normal")[0]
        for run, share in zip(runs[1:], (0.15, 0.3), strict=True)
    ]
    how = {"momentum": 0.9, "strength": 1.0}

    def show(name: str, later: list) -> None:
        joined = scene.add("ImageBatch", image1=runs[0], image2=later[0])[0]
        whole = scene.add("ImageBatch", image1=joined, image2=later[1])[0]
        scene.show(name, scene.add("ImageFromBatch", image=whole, batch_index=1, length=COLUMNS)[0])

    show("three runs", faded)
    ways = {method: how | {"method": method} for method in ("mean_std", "covariance", "histogram")}
    ways["mean_std,\nstrength 0.5"] = how | {"method": "mean_std", "strength": 0.5}
    for name, settings in ways.items():
        show(name, [scene.add("MatchClipColour", images=run, reference=runs[0], **settings)[0] for run in faded])

    whole = scene.demo_clip("first run", "star", "yellow", "purple", "slide", 1)[0]
    grey = scene.add("EmptyImage", width=128, height=128, batch_size=COLUMNS, color=0xB09A80)[0]
    later = scene.add("ImageBlend", image1=whole, image2=grey, blend_factor=0.3, blend_mode="normal")[0]
    scene.show("later run", later)
    latents = [scene.add("VAEEncode", pixels=each, vae=scene.vae)[0] for each in (later, whole)]
    for method in ("mean_std", "covariance"):
        held = scene.add("MatchLatentColour", latent=latents[0], reference=latents[1], method=method, **how)[0]
        scene.decode(f"{method}, as\nlatents", held)
    rows = scene.run(server)
    strips("MatchClipColour", {name: rows.pop(name) for name in ("three runs", *ways)})
    strips("MatchLatentColour", rows)


def tuning(server: Server) -> None:
    """One clip: EI² and Tune-A-Video tuned on it, and edits with the weights that come with the pack."""
    scene = Scene("a red star on a white background", steps=16, cfg=3.0)
    clip = scene.demo_clip("the clip", "star", "red", "white", "slide", 3)
    latent = scene.add("VAEEncode", pixels=clip[0], vae=scene.vae)[0]
    other = scene.encode("a blue star on a yellow background")
    quiet = scene.add("DisableNoise")[0]
    tuned = {}
    stam = {"position": "before_cross", "frame_attention": "fine_coarse", "pool": 2, "norm": "spectral"}
    stam |= {"strength": 1.0, "layers": "*"}
    for node, inputs in (("STAMInflate", stam), ("TuneAVideoInflate", {"layers": "*"})):
        inflated = scene.add(node, model=scene.model, **inputs)[0]
        tuned[node] = scene.add(
            "OneShotTune", model=inflated, positive=scene.positive, latent_image=latent, steps=100, learning_rate=1e-3,
            batch_frames=0, gradient_checkpointing=False, precision="auto", seed=0,
        )  # fmt: skip
    example = scene.add("LoadSTAM", file="(example) red_star.stam.safetensors")[0]
    models = {
        "the model,\nnot tuned": scene.model,
        "with the loaded\nweights": scene.add("STAMInflate", model=scene.model, weights=example, **stam)[0],
        "Tune-A-Video": scene.add(
            "TuneAVideoInflate", model=scene.model, layers="*", weights=tuned["TuneAVideoInflate"][0]
        )[0],
    }
    for name, model in models.items():
        noise = scene.invert(latent, model=model)
        scene.clip(name, model=model, latent=noise, noise=quiet, positive=other, sampler="euler")
    scene.show("chart", tuned["STAMInflate"][1])
    rows = scene.run(server)
    chart("OneShotTune", rows.pop("chart")[0])
    last = {name: rows.pop(name) for name in list(rows)[3:]}
    strips("LoadSTAM", rows)
    strips("TuneAVideoInflate", {name: rows[name] for name in list(rows)[:2]} | last)


def adapters(server: Server) -> None:
    scene = Scene("a large red circle in the middle on a white background", seed=4, cfg=4.0)
    adapter = scene.add("LoadGEAdapter", file="(example) three_clips.ge_adapter.safetensors")[0]
    noise = scene.dependency_noise(0.05, seed=4)
    scene.clip("without", noise=noise)
    for strength, end in ((0.5, 0.1), (0.5, 0.5), (1.0, 1.0)):
        model = scene.add("GEAdapterApply", model=scene.model, adapter=adapter, strength=strength, start_percent=0.0,
                          end_percent=end)[0]  # fmt: skip
        scene.clip(f"strength {strength:g}\nend_percent {end:g}", model=model, noise=noise)
    texts = {
        name: scene.add("GEAdapterTokens", conditioning=getattr(scene, name), adapter=adapter)[0]
        for name in ("positive", "negative")
    }
    scene.clip("with the shared\ntokens", noise=noise, **texts)
    rows = scene.run(server)
    tokens = {name: rows.pop(name) for name in list(rows)[4:]}
    strips("GEAdapterApply", rows)
    strips("GEAdapterTokens", {"without": rows["without"]} | tokens)


PAINTERS: dict[str, Callable[[Server], None]] = {
    painter.__name__: painter
    for painter in (
        dependency_noise, video_noise_prior, noise_correlation, noise_frames, keyframe_noise, coherent_sampler,
        motion_field_noise, momentum_attention, momentum_of_run, cross_frame_attention, flow_attention,
        pix2video_guidance, rave_grid, vidtome, registers, layer_sweep, select_layers, inversions, null_text,
        word_edits, word_maps, edits_of_a_clip, demo_clips, demo_models, consistency, colours, tuning, adapters,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to draw, else all: {', '.join(PAINTERS)}")
    options = parser.parse_args()
    with start(options.comfyui) as server:
        for name in options.names or PAINTERS:
            print(name, flush=True)
            PAINTERS[name](server)


if __name__ == "__main__":
    main()
