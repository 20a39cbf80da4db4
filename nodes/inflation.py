"""STAMInflate and TuneAVideoInflate: an image model becomes one that sees a clip (EI²; Tune-A-Video)."""

from __future__ import annotations

import logging
from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.forms import TUNE_A_VIDEO, Form, FrameAttention, InflationWeights, find_inflation, inflated
from ..attention.inflation import Position
from ..techniques.stam import Norm
from .inputs import TUNING, Weights, pool_input
from .node import Node


def _model_input() -> io.Model.Input:
    return io.Model.Input("model", tooltip="An image model: SD1.5, SD2 or SDXL. It is cloned, not changed.")


def _weights_input(node: str) -> io.Input:
    return Weights.Input(
        "weights",
        optional=True,
        tooltip="Weights from OneShotTune with this node, or from LoadSTAM. Leave it empty to tune from the start: "
        f"of {node} only the attention among frames acts then.",
    )


def _layers_input() -> io.String.Input:
    return io.String.Input(
        "layers",
        default="*",
        tooltip="The transformer layers to inflate. '*' means all; otherwise names separated by commas: 'middle', "
        "'output.3-8'. Choose fewer to tune fewer weights in less memory.",
    )


def _put(model: ModelPatcher, form: Form, weights: InflationWeights | None, layers: str, strength: float, node: str):
    clone = inflated(model, form, weights, layers=layers, strength=strength, asked_by=node)
    record = find_inflation(clone)
    assert record
    places = ", ".join(layer.place for layer in record.layers)
    state = "untuned" if weights is None else f"tuned for {weights.steps} steps on {weights.frames} frames"
    logging.info("%s: %s, %d layers: %s", node, state, len(record.layers), places)
    return io.NodeOutput(clone)


class STAMInflate(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="STAMInflate",
            display_name="STAM Inflate (EI²)",
            category=TUNING,
            description="Adds EI²'s shift-restricted temporal attention (STAM) and fine-coarse frame attention to an "
            "image model, so that you can tune it on one clip and edit that clip. The latent's batch is the clip.",
            search_aliases=["ei2", "stam", "one-shot tuning", "temporal attention", "tune a video", "video editing"],
            inputs=[
                _model_input(),
                io.Combo.Input(
                    "position",
                    options=["before_cross", "after_cross"],
                    default="before_cross",
                    tooltip="Whether STAM comes before or after a layer's attention to the prompt. The paper finds "
                    "both equally good. Use the setting that the weights were tuned with.",
                ),
                io.Combo.Input(
                    "frame_attention",
                    options=["fine_coarse", "sparse_causal", "first", "self"],
                    default="fine_coarse",
                    tooltip="What a frame attends to. fine_coarse: itself, and all others at low resolution (EI²). "
                    "sparse_causal: the first and the previous frame (Tune-A-Video). first: the first frame. self: "
                    "only itself, the cheapest. Use the setting that the weights were tuned with.",
                ),
                pool_input(),
                io.Combo.Input(
                    "norm",
                    options=["spectral", "frobenius"],
                    default="spectral",
                    tooltip="The norm of STAM's weights that is kept at 1. frobenius weakens STAM, more so in wider "
                    "layers; for study only.",
                ),
                _weights_input("STAMInflate"),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of the tuned changes, 0 to 4. 0 leaves only frame_attention; 1 is as tuned. "
                    "Lower it if an edit keeps too much of the clip.",
                ),
                _layers_input(),
            ],
            outputs=[io.Model.Output(tooltip="The inflated model, to tune with OneShotTune or to sample.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        position: Position,
        frame_attention: FrameAttention,
        pool: int,
        norm: Norm,
        strength: float,
        layers: str,
        weights: InflationWeights | None = None,
    ) -> io.NodeOutput:
        form = Form("stam", position, frame_attention, pool, norm)
        return _put(model, form, weights, layers, strength, cls.node_name)


class TuneAVideoInflate(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TuneAVideoInflate",
            display_name="Tune-A-Video Inflate",
            category=TUNING,
            description="Adds Tune-A-Video's layers to an image model: sparse-causal attention, and plain temporal "
            "attention after the feed-forward. It is the baseline for STAM Inflate.",
            search_aliases=["tune-a-video", "one-shot tuning", "temporal attention", "sparse-causal attention"],
            inputs=[
                _model_input(),
                _weights_input("TuneAVideoInflate"),
                _layers_input(),
                io.Combo.Input(
                    "position",
                    options=["after_feed_forward", "before_cross", "after_cross"],
                    default="after_feed_forward",
                    optional=True,
                    advanced=True,
                    tooltip="Where temporal attention comes in a layer. after_feed_forward: as in Tune-A-Video. "
                    "before_cross, after_cross: where EI² has STAM, before or after the attention to the prompt; "
                    "choose one to compare the two modules in the same place. Use the setting that the weights were "
                    "tuned with.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The inflated model, to tune with OneShotTune or to sample.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        layers: str,
        weights: InflationWeights | None = None,
        position: Position = "after_feed_forward",
    ) -> io.NodeOutput:
        return _put(model, replace(TUNE_A_VIDEO, position=position), weights, layers, 1.0, cls.node_name)


NODES = [STAMInflate, TuneAVideoInflate]
