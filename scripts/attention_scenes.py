"""The help pictures of the nodes that look at attention, and of edits by words."""

from __future__ import annotations

from help_scenes import Scene, Server, chart, strips


def registers(server: Server) -> None:
    scene = Scene("a large red circle in the middle on a blue background", frames=1, steps=20, seed=7)
    start = {"model": scene.model, "conditioning": scene.positive, "noise": scene.noise, "sigmas": scene.sigmas}
    start |= {"latent_image": scene.latent}
    register = scene.add(
        "EntropyRegister", kind="all", select="lowest", count=0, percent=50.0, measure_steps="0, 5, 10, 15",
        precision="exact", **start,
    )  # fmt: skip
    other = scene.add(
        "ReselectAttentionLayers", registry=register[0], kind="all", select="highest", count=1, percent=50.0
    )
    maps = scene.add("AttentionMapPreview", layer="output.0.attn1", step=10, threshold=2.0, **start)
    scene.show("EntropyRegister", register[1])
    scene.show("ReselectAttentionLayers", other[1])
    scene.show("AttentionMapPreview", maps[0])
    for name, pictures in scene.run(server).items():
        chart(name, pictures[0])


def layer_sweep(server: Server) -> None:
    scene = Scene("a large yellow triangle on the right on a blue background", frames=2, steps=8, seed=3)
    swept = scene.add(
        "LayerSweep", model=scene.model, positive=scene.positive, negative=scene.negative,
        noise=scene.dependency_noise(0.02, seed=3), sampler=scene.add("KSamplerSelect", sampler_name="dpmpp_2m")[0],
        sigmas=scene.sigmas, latent_image=scene.latent, vae=scene.vae, perturbation="identity", score="change",
        kind="all",
    )  # fmt: skip
    scene.show("chart", swept[1])
    chart("LayerSweep", scene.run(server)["chart"][0])


def select_layers(server: Server) -> None:
    scene = Scene("a large yellow triangle on the right on a blue background", seed=3)
    scene.clip("plain")
    for layers in ("middle", "output.2", "output", "*"):
        registry = scene.add("SelectAttentionLayers", model=scene.model, layers=layers)[0]
        model = scene.add("PerturbAttention", model=scene.model, registry=registry, matrix="uniform", alpha=0.5,
                          start_percent=0.0, end_percent=1.0)[0]  # fmt: skip
        scene.clip(f"layers {layers}", model=model)
    strips("SelectAttentionLayers", scene.run(server))


def word_edits(server: Server) -> None:
    """As in the template edit_words: a word replaced and one inserted."""
    scene = Scene("", steps=16)
    model = scene.add(
        "TemporalMomentumAttention", model=scene.model, mu=0.98, mu_schedule="", layers="*", start_percent=0.0,
        end_percent=1.0, frames_per_batch=0,
    )[0]  # fmt: skip
    prompts = scene.add(
        "AlignPrompts", clip=scene.text_encoder, source_text="a yellow star in the middle, blue background",
        target_text="a large white star in the middle, blue background",
    )  # fmt: skip
    shared = {"model": model, "noise": scene.dependency_noise(0.05, seed=6), "sigmas": scene.sigmas}
    shared["latent_image"] = scene.latent
    registry = scene.add(
        "EntropyRegister", **shared, conditioning=prompts[0], kind="all", select="lowest", count=0, percent=50.0,
        measure_steps="0", precision="exact",
    )[0]  # fmt: skip
    edit = scene.add(
        "EntropyGuidedEdit", **shared, source=prompts[0], target=prompts[1], negative=scene.negative,
        registry=registry, sampler=scene.add("KSamplerSelect", sampler_name="euler")[0], cfg=4.0, source_cfg=4.0,
        replace="blend", start_percent=0.0, end_percent=1.0, alignment=prompts[2],
    )  # fmt: skip
    scene.decode("the source", edit[1])
    scene.decode("yellow → white,\n+ large,\nblend", edit[0])
    strips("AlignPrompts", scene.run(server))


def null_text(server: Server) -> None:
    scene = Scene("a small red circle in the centre on a white background", frames=4, steps=8)
    clip = scene.demo_clip("the clip", "circle", "red", "white", "slide", 0, 4)
    latent = scene.add("VAEEncode", pixels=clip[0], vae=scene.vae)[0]
    found = scene.add(
        "NullTextInvert", model=scene.model, positive=scene.positive, negative=scene.negative, cfg=5.0,
        latent_image=latent, sigmas=scene.sigmas, inner_steps=6, learning_rate=0.1, early_stop=1e-5,
        refine_iterations=2, precision="fp32",
    )  # fmt: skip
    again = {"noise": scene.add("DisableNoise")[0], "sampler": "euler", "latent": found[1]}
    scene.clip("with the empty\nnegative prompt", **again)
    scene.clip("with that of\neach step", negative=found[0], **again)
    strips("NullTextInvert", scene.run(server))


def word_maps(server: Server) -> None:
    scene = Scene("a small red circle in the centre on a white background", frames=4)
    clip = scene.demo_clip("the clip", "circle", "red", "white", "slide", 0, 4)
    noise = scene.invert(scene.add("VAEEncode", pixels=clip[0], vae=scene.vae)[0])
    maps = scene.add(
        "WordMaps", model=scene.model, conditioning=scene.positive, clip=scene.text_encoder, words="circle",
        latent_image=noise, noise=scene.add("DisableNoise")[0], sigmas=scene.sigmas, measure_steps="6-11",
        layers="output.2", threshold=0.3,
    )  # fmt: skip
    scene.show("maps", maps[0])
    chart("WordMaps", scene.run(server)["maps"][0])
