"""OneShotTune, SaveSTAM and LoadSTAM: tune an inflated model on one clip, and keep what it learned."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.forms import NAMES, InflationWeights
from ..files import weights_file
from ..files.saved import SavedFiles
from ..training.memory import gibibytes
from ..training.one_shot import Settings, Tuned, tune
from ..training.sampler import Precision
from .charts import drawn
from .inputs import TUNING, Weights, precision_input, seed_input
from .node import Node
from .saved_files import LoadingNode, SavingNode
from .training import Progress, draw_losses, time_text

SAVED = SavedFiles(weights_file, "saved weights", "SaveSTAM")


class OneShotTune(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneShotTune",
            display_name="One-Shot Tune (EI², Tune-A-Video)",
            category=TUNING,
            description="Tunes an inflated image model on one clip, so that it can draw the clip's motion with other "
            "content. Your model is not changed; the node outputs weights.",
            search_aliases=["train", "fine-tune", "one-shot", "tune-a-video", "ei2", "video training"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model from STAMInflate or TuneAVideoInflate. If it has weights, tuning continues from "
                    "them. It is copied, not changed.",
                ),
                io.Conditioning.Input("positive", tooltip="A prompt that describes the clip and its motion."),
                io.Latent.Input("latent_image", tooltip="The clip's frames, encoded by VAE Encode. 8 to 32 are usual."),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=100_000,
                    tooltip="Number of training steps, 1 to 100000. 500 is the papers' choice. Fewer leave the model "
                    "more freedom; more copy the clip more closely.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=3e-5,
                    min=1e-7,
                    max=1e-1,
                    step=1e-6,
                    round=1e-8,
                    tooltip="Step size of the optimiser, 1e-7 to 0.1. 3e-5 is the papers' choice for SD1.5; small "
                    "models need more. Lower it if the loss jumps.",
                ),
                io.Int.Input(
                    "batch_frames",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Number of neighbouring frames per step. 0: the whole clip. 2 or more: a random stretch "
                    "of that length. Lower it if memory runs out.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    tooltip="Recomputes parts of the model in the backward pass instead of storing them: a seventh to "
                    "a third of the memory, half to three quarters more time. Turn it on if memory runs out.",
                ),
                precision_input("The dtype of the computation; the tuned weights are always fp32"),
                seed_input(
                    "Seeds the noise, noise levels and initial weights. The same seed gives the same weights.",
                    control_after_generate=False,
                ),
            ],
            outputs=[
                Weights.Output("weights", tooltip="The tuned weights, for the inflation node or SaveSTAM."),
                io.Image.Output("loss_chart", tooltip="The loss of every step and its moving average."),
                io.String.Output("report", tooltip="What was tuned, and the time and memory it took."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        latent_image: dict,
        steps: int,
        learning_rate: float,
        batch_frames: int,
        gradient_checkpointing: bool,
        precision: Precision,
        seed: int,
    ) -> io.NodeOutput:
        settings = Settings(steps, learning_rate, batch_frames, gradient_checkpointing, precision, seed)
        tuned = tune(model, positive, latent_image, settings, Progress(steps, cls.hidden.unique_id))
        chart = drawn(draw_losses, tuned.history, f"One-shot tuning of {NAMES[tuned.weights.form.module]}")
        return io.NodeOutput(tuned.weights, chart, _report(tuned, settings))


def _report(tuned: Tuned, settings: Settings) -> str:
    weights, (first, last) = tuned.weights, tuned.history.ends()
    seconds = tuned.history.seconds
    earlier = weights.steps - len(seconds)
    return "\n".join(
        [
            f"{NAMES[weights.form.module]} in {len(weights.places)} layers of {weights.base}, "
            f"frame attention {weights.form.frame_attention}",
            f"{tuned.parameters:,} parameters, {weights.frames} frames, "
            f"{min(settings.batch_frames or weights.frames, weights.frames)} at a time",
            f"{len(seconds)} steps{f' after {earlier} earlier ones' if earlier else ''} in "
            f"{time_text(sum(seconds))} ({sum(seconds) / len(seconds):.2f} s a step), {tuned.dtype}",
            f"mean loss of the first tenth {first:.5f}, of the last {last:.5f}",
            f"memory estimated before the first step, beside the model: {gibibytes(tuned.needed)}",
        ]
    )


class SaveSTAM(SavingNode):
    files, listed_as = SAVED, "weights"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveSTAM",
            display_name="Save STAM Weights",
            category=TUNING,
            description="Saves the weights that OneShotTune tuned as a safetensors file in the output folder.",
            search_aliases=["export weights", "one-shot tuning", "ei2"],
            is_output_node=True,
            inputs=[
                Weights.Input(
                    "weights", tooltip="The weights that OneShotTune tuned. They are saved exactly, in their own dtype."
                ),
                cls.prefix_input("stam/clip", "Name it after the clip."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, weights: InflationWeights, filename_prefix: str) -> io.NodeOutput:
        return cls.save(weights, filename_prefix)


class LoadSTAM(LoadingNode):
    files = SAVED

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadSTAM",
            display_name="Load STAM Weights",
            category=TUNING,
            description="Loads weights that SaveSTAM saved, for STAMInflate or TuneAVideoInflate.",
            search_aliases=["import weights", "one-shot tuning", "ei2"],
            inputs=[cls.file_input()],
            outputs=[
                Weights.Output("weights", tooltip="The tuned weights, with the node settings they were tuned with.")
            ],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(cls.files.load(file))


NODES = [OneShotTune, SaveSTAM, LoadSTAM]
