"""AlignPrompts: which words of an edit's prompts belong together, for Prompt-to-Prompt and FateZero."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..samplers.aligning import align_prompts
from .inputs import EDITING, PromptAlignment
from .node import Node


class AlignPrompts(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AlignPrompts",
            display_name="Align Prompts (Prompt-to-Prompt)",
            category=EDITING,
            description="Encodes the two prompts of an edit and aligns their words, so that Entropy-Guided Edit can "
            "insert, replace, remove and re-weight words. Use it in place of two CLIPTextEncode nodes.",
            search_aliases=["prompt-to-prompt", "p2p", "fatezero", "word swap", "prompt weights", "refine prompt"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder of the model that edits. Edits by words need a model with "
                    "cross-attention, such as SD1.5, SDXL, Wan or LTXV.",
                ),
                io.String.Input(
                    "source_text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="A prompt that describes the clip as it is. Mark a word as (word:1) to let blend edit "
                    "where it applies, too. Other weights are rejected here.",
                ),
                io.String.Input(
                    "target_text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The source prompt with words inserted, replaced or removed. (word:1.5) gives a word more "
                    "attention than in the source, (word:0.5) less; change in steps of 0.5 if the edit is too weak or "
                    "too strong.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("source", tooltip="The source prompt. Connect it to source of the edit."),
                io.Conditioning.Output(
                    "target", tooltip="The target prompt, encoded without weights. Connect it to target of the edit."
                ),
                PromptAlignment.Output(
                    "alignment", tooltip="Which words belong together. Connect it to alignment of the edit."
                ),
                io.String.Output(
                    "report", tooltip="What happens to every word, and where blend edits. Show it with PreviewAny."
                ),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, source_text: str, target_text: str) -> io.NodeOutput:
        return io.NodeOutput(*align_prompts(clip, source_text, target_text))


NODES = [AlignPrompts]
