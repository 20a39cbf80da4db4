"""WordMaps: where each word of a prompt applies, as pictures and as a mask for an edit (Prompt-to-Prompt, IE-Adapt)."""

from __future__ import annotations

import math
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..samplers.measure import Start, parse_steps
from ..samplers.word_maps import WordMaps as Maps
from ..samplers.word_maps import measure_words, parse_phrases, texts_before, tokens_of_prompt
from .charts import INK, new_figure, render, require_matplotlib
from .inputs import ATTENTION
from .node import Node

SHOWN = 16
"""Frames in a picture; of a longer clip, evenly spaced ones."""


class WordMaps(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WordMaps",
            display_name="Word Maps (Prompt-to-Prompt)",
            category=ATTENTION,
            description="Shows where each word of a prompt applies in a clip, from the model's attention to the text, "
            "and makes a mask of those places, so that an edit leaves the rest unchanged.",
            search_aliases=[
                "cross-attention maps",
                "attention heatmap",
                "daam",
                "word heat map",
                "automatic mask",
                "prompt-to-prompt",
                "ie-adapt",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to measure. It is not changed."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt, straight from CLIP Text Encode. It is used alone, without a negative prompt "
                    "or cfg.",
                ),
                io.Clip.Input(
                    "clip", tooltip="The text encoder that made conditioning. It tells which token is which word."
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words of the prompt, separated by commas, such as 'circle, white background'. Each gets a "
                    "map; the mask covers all of them. The error message lists the prompt's words.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The latent that goes into the sampler: an empty one for a generated clip, the inverted "
                    "one for a real clip.",
                ),
                io.Noise.Input(
                    "noise",
                    tooltip="The noise that goes into the sampler: RandomNoise for a generated clip, DisableNoise "
                    "after an inversion.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The noise levels that go into the sampler, from a scheduler node. Step 0 is the first.",
                ),
                io.String.Input(
                    "measure_steps",
                    default="all",
                    tooltip="The steps whose maps are averaged, counted from 0: 'all', '0', or '4-9, 12'. Early steps "
                    "show rough places, late ones outlines. The run ends after the last of them.",
                ),
                io.String.Input(
                    "layers",
                    default="*",
                    tooltip="The layers whose maps are averaged: '*' for all that attend to the text, or names "
                    "separated by commas, such as 'middle, output.0-5' or 'blocks.10-20'. Leave out layers whose maps "
                    "are noise.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Where the mask is white: above this share of the word's largest value in the clip, 0 to "
                    "1. 0.3 is FateZero's choice. Raise it if the mask covers too much.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="The text of conditioning. Fill it in only if another node creates that text while the "
                    "workflow runs; text typed into the nodes before conditioning is found automatically.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "maps", tooltip="A labelled picture for each word: its map in every frame, and the mask's edge."
                ),
                io.Mask.Output(
                    "masks",
                    tooltip="One mask per latent frame, in the latent's size, white where any of the words applies: "
                    "for mask of EntropyGuidedEdit, or a noise mask.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: list,
        clip: Any,
        words: str,
        latent_image: dict,
        noise,
        sigmas: Tensor,
        measure_steps: str,
        layers: str,
        threshold: float,
        prompt: str = "",
    ) -> io.NodeOutput:
        require_matplotlib()
        phrases = parse_phrases(words)
        start = Start(conditioning, noise, sigmas, latent_image)
        steps = parse_steps(measure_steps, start.steps)
        hidden = cls.hidden
        texts = [prompt] if prompt else texts_before(hidden.prompt, hidden.unique_id, "conditioning") if hidden else []
        tokens = tokens_of_prompt(clip, conditioning, texts)
        measured = measure_words(model, start, tokens, phrases, steps, layers, cls.node_name)
        masks = measured.masks(threshold)
        when = f"step {steps[0]}" if len(steps) == 1 else f"mean of {len(steps)} steps"
        pictures = [_draw(measured, number, threshold, when) for number in range(len(phrases))]
        return io.NodeOutput(torch.cat(pictures), masks)


def _draw(measured: Maps, number: int, threshold: float, when: str) -> Tensor:
    """IMAGE (1, height, width, 3): the map of one word, a panel for each frame."""
    maps, layers = measured.maps[:, number], measured.layers
    where = "cross-attention" if measured.kind == "cross" else "joint attention"
    of_layers = layers[0] if len(layers) == 1 else f"{len(layers)} layers"
    figure = new_figure(
        f"Where does “{measured.phrases[number]}” apply?",
        f"Share of its largest value; {where} of {of_layers}, {when}. The white line is the threshold {threshold:g}.",
    )
    frames = torch.linspace(0, len(maps) - 1, min(SHOWN, len(maps))).round().int().tolist()
    columns = min(len(frames), 4 if len(frames) > 3 else 3)
    rows = math.ceil(len(frames) / columns)
    left, bottom, width, height = 0.02, 0.03, 0.88, 0.8
    for place, frame in enumerate(frames):
        row, column = divmod(place, columns)
        corner = left + width * column / columns, bottom + height * (1 - (row + 1) / rows)
        axes = figure.add_axes((*corner, 0.96 * width / columns, 0.86 * height / rows))
        values = maps[frame].numpy()
        picture = axes.imshow(values, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        if min(values.shape) > 1 and values.min() < threshold < values.max():
            axes.contour(values, levels=[threshold], colors="white", linewidths=1.5)
        axes.set_title(f"frame {frame}", fontsize=10, color=INK, loc="left", pad=3)
        axes.set_axis_off()
    bar = figure.colorbar(picture, cax=figure.add_axes((0.92, 0.1, 0.015, 0.66)))
    bar.set_label("share of the largest value", fontsize=10, color=INK)
    bar.outline.set_visible(False)
    return render(figure)


NODES = [WordMaps]
