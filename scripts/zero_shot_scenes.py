"""The help pictures of the zero-shot editing methods."""

from __future__ import annotations

from help_scenes import Scene, Server, strips


def pix2video_guidance(server: Server) -> None:
    scene = Scene("a large star in the centre")  # the colours are left to the noise
    scene.clip("without")
    both = scene.add("CrossFrameAttention", model=scene.model, keys="first_and_previous", layers="*",
                     start_percent=0.0, end_percent=1.0, pool=2, seed=0)[0]  # fmt: skip
    scene.clip("Cross-Frame\nAttention alone", model=both)
    for scale in (20.0, 50.0, 100.0):
        model = scene.add("Pix2VideoGuidance", model=both, scale=scale, end_percent=0.5)[0]
        scene.clip(f"both\nscale {scale:g}", model=model)
    strips("Pix2VideoGuidance", scene.run(server))


def rave_grid(server: Server) -> None:
    """A clip redrawn from a part of the noise, which takes the place of a ControlNet."""
    scene = Scene("a large orange circle on a white background", cfg=3.0)
    clip = scene.demo_clip("the clip", "circle", "red", "white", "slide", 0)
    latent = scene.add("VAEEncode", pixels=clip[0], vae=scene.vae)[0]
    part = scene.add("BasicScheduler", model=scene.model, scheduler="karras", steps=10, denoise=0.6)[0]
    scene.clip("without", latent=latent, sigmas=part)
    model = scene.add("RAVEGrid", model=scene.model, grid=2, seed=0)[0]
    scene.clip("grid 2", model=model, latent=latent, sigmas=part)
    strips("RAVEGrid", scene.run(server))
