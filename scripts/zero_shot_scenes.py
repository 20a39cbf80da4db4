"""The help pictures of the zero-shot editing methods."""

from __future__ import annotations

from itertools import pairwise

from help_scenes import SIDE, Frames, Scene, Server, strips
from PIL import ImageDraw


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


def vidtome(server: Server) -> None:
    scene = Scene("a large star in the centre")
    scene.clip("without")
    for local, among in ((0.9, 0.0), (0.9, 0.8), (0.5, 0.5)):
        model = scene.add("VidToMe", model=scene.model, chunk=4, local_ratio=local, global_ratio=among, seed=1,
                          layers="*", start_percent=0.0, end_percent=1.0)[0]  # fmt: skip
        scene.clip(f"local_ratio {local:g}\nglobal_ratio {among:g}", model=model)
    strips("VidToMe", scene.run(server))


def edits_of_a_clip(server: Server) -> None:
    """A clip and its edits, by Plug-and-Play and TokenFlow."""
    scene = Scene("a large red circle in the middle, white background", steps=6, cfg=4.0)
    clip = scene.demo_clip("the clip", "circle", "red", "white", "slide", 0)
    noise = scene.invert(scene.add("VAEEncode", pixels=clip[0], vae=scene.vae)[0])
    quiet, euler = scene.add("DisableNoise")[0], scene.add("KSamplerSelect", sampler_name="euler")[0]
    target = scene.encode("a large blue square in the middle, white background")
    registry = scene.add("SelectAttentionLayers", model=scene.model, layers="middle")[0]
    when = {"start_percent": 0.0, "end_percent": 1.0}
    plugged = scene.add("PlugAndPlay", model=scene.model, features=True, layers="output", **when)[0]
    flowing = scene.add("TokenFlow", model=plugged, chunk=4, seed=1, layers="*", **when)[0]
    for name, model in (("plain edit", scene.model), ("Plug-and-Play", plugged), ("and TokenFlow", flowing)):
        edit = scene.add(
            "EntropyGuidedEdit", model=model, source=scene.positive, target=target, negative=scene.negative,
            registry=registry, noise=quiet, sampler=euler, sigmas=scene.sigmas, latent_image=noise, cfg=4.0,
            source_cfg=1.0, replace="map", **when,
        )  # fmt: skip
        scene.decode(name, edit[0])
    rows = scene.run(server)
    flow = {name: rows[name] for name in ("the clip", "Plug-and-Play", "and TokenFlow")}
    rows.pop("and TokenFlow")
    strips("PlugAndPlay", rows)
    strips("TokenFlow", flow)


def flow_attention(server: Server) -> None:
    scene = Scene("", frames=1)
    scene.demo_clip("the clip", "circle", "red", "white", "slide", 0)
    strips("FlowAttention", with_paths(scene.run(server)["the clip"]))


def with_paths(clip: Frames, side: int = 16) -> dict[str, Frames]:
    """The clip, and in frames of ``side`` × ``side`` patches where some paths are, each in a colour of its own."""
    import torch
    from coherence.frames.trajectories import paths
    from coherence.metrics.flow import optical_flow

    pixels = torch.stack([torch.frombuffer(bytearray(frame.tobytes()), dtype=torch.uint8) for frame in clip])
    pixels = pixels.reshape(len(clip), clip[0].height, clip[0].width, 3) / 255
    flow = torch.cat([optical_flow(one[None], other[None]) for one, other in pairwise(pixels)]).movedim(-1, 1)
    table = paths(flow / torch.tensor([clip[0].width, clip[0].height])[None, :, None, None], (side, side))
    moving = (table >= 0).all(1) & (table[:, 0] != table[:, -1])
    shown = [table[moving][:: max(int(moving.sum()) // 6, 1)][:6], table[[side * 2 + 2, side * 13 + 13]]]
    colours = ["#1d4ed8", "#15803d", "#a21caf", "#0e7490", "#b45309", "#111827", "#6b7280", "#6b7280"]
    drawn = [frame.resize((SIDE, SIDE)) for frame in clip]
    for number, frame in enumerate(drawn):
        pen = ImageDraw.Draw(frame)
        for colour, path in zip(colours, torch.cat(shown).tolist(), strict=False):
            x, y = (place * SIDE / side for place in (path[number] % side, path[number] // side))
            if path[number] >= 0:
                pen.rectangle((x, y, x + SIDE / side, y + SIDE / side), fill=colour, outline="white")
    return {"images": clip, "patches on\neight paths": drawn}
