"""AttentionMapPreview: what a layer's attention map looks like (IE-Adapt, Fig. 3)."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..attention.maps import AttentionMap
from ..attention.sites import Site
from ..samplers.measure import Start, record_maps
from .charts import HEIGHT, INK, MUTED, WIDTH, new_figure, render, require_matplotlib
from .inputs import ATTENTION, start_inputs
from .node import Node


class AttentionMapPreview(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttentionMapPreview",
            display_name="Attention Map Preview (IE-Adapt)",
            category=ATTENTION,
            description="Shows the attention map of one layer at one step, averaged over its heads, next to the "
            "weights above a threshold. One picture per frame, 16 at most.",
            search_aliases=["attention visualization", "attention heatmap", "show attention", "ie-adapt"],
            inputs=[
                *start_inputs(),
                io.String.Input(
                    "layer",
                    default="middle",
                    tooltip="One attention layer, such as 'middle', 'input.4', 'blocks.10' or 'output.3.attn2'. The "
                    "error message lists the model's layers.",
                ),
                io.Int.Input(
                    "step",
                    default=0,
                    min=0,
                    max=9999,
                    tooltip="The step to show, counted from 0. Later steps show more of the picture's structure, but "
                    "all earlier steps must run first.",
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=10000.0,
                    step=0.1,
                    tooltip="Which weights the second picture shows: those larger than this multiple of uniform "
                    "attention (1 / number of keys). 1: above uniform. Raise it if too much is white.",
                ),
            ],
            outputs=[io.Image.Output("maps", tooltip="One labelled picture per frame: the map and its peaks.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: list,
        noise,
        sigmas: Tensor,
        latent_image: dict,
        layer: str,
        step: int,
        threshold: float,
    ) -> io.NodeOutput:
        require_matplotlib()
        start = Start(conditioning, noise, sigmas, latent_image)
        site, maps = record_maps(model, start, step, layer, threshold, cls.node_name)
        when = f"step {step} (σ = {sigmas[step]:.4g})"
        return io.NodeOutput(torch.cat([_draw(each, site, when, threshold) for each in maps]))


def _draw(map_: AttentionMap, site: Site, when: str, threshold: float) -> Tensor:
    """IMAGE (1, HEIGHT, WIDTH, 3): the map at the left, its weights above the threshold at the right."""
    title = f"What does {site.name} attend to?"
    subtitle = f"{site.kind} attention, {when}, {map_.label}, {map_.tokens} × {map_.keys} weights."
    figure = new_figure(title, subtitle, WIDTH, HEIGHT)
    extent = (-0.5, map_.keys - 0.5, map_.tokens - 0.5, -0.5)
    uniform = 1 / map_.keys
    panels = (
        (map_.plain, "Map", "Weight", map_.plain.max().item(), "magma"),
        (map_.above, f"Above {threshold:g} × even attention ({threshold * uniform:.3g})", "Share above", 1.0, "gray"),
    )
    for number, (values, name, label, high, colours) in enumerate(panels):
        axes = figure.add_axes((0.07 + 0.49 * number, 0.1, 0.37, 0.69))
        picture = axes.imshow(
            values.numpy(),
            cmap=colours,
            vmin=0,
            vmax=high,
            extent=extent,
            aspect="auto",
            interpolation="nearest" if max(values.shape) < 256 else "antialiased",
        )
        axes.set_title(name, loc="left", fontsize=11, color=INK, parse_math=False)
        unit = "frame" if site.kind == "temporal" else "token"
        axes.set_xlabel(f"Key {unit}", fontsize=10, color=INK)
        axes.set_ylabel(f"Query {unit}", fontsize=10, color=INK)
        axes.tick_params(colors=MUTED, labelsize=9, length=0)
        bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
        bar.set_label(label, fontsize=10, color=INK)
        bar.ax.tick_params(colors=MUTED, labelsize=9, length=0)
    return render(figure)


NODES = [AttentionMapPreview]
