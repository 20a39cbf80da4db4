"""Prompts that tune a model through the server."""

from __future__ import annotations


def link(node, output=0):
    return [node, output]


def graph(steps=2, weights=None, inflate=None, **settings):
    """The demo model, inflated and tuned on a clip of noise; its weights saved."""
    tuning = {
        "steps": steps,
        "learning_rate": 1e-3,
        "batch_frames": 0,
        "gradient_checkpointing": False,
        "precision": "fp32",
        "seed": 0,
    }
    stam = {
        "position": "before_cross",
        "frame_attention": "fine_coarse",
        "pool": 2,
        "norm": "spectral",
        "strength": 1.0,
        "layers": "middle",
    }
    nodes = {
        "demo": ("CoherenceDemoModel", {}),
        "text": ("CLIPTextEncode", {"clip": link("demo", 1), "text": "a red star on a white background"}),
        "clip": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 2}),
        "inflate": ("STAMInflate", {"model": link("demo"), **stam, **(inflate or {}), **(weights or {})}),
        "tune": (
            "OneShotTune",
            {
                "model": link("inflate"),
                "positive": link("text"),
                "latent_image": link("clip"),
                **tuning,
                **settings,
            },
        ),
        "save": ("SaveSTAM", {"weights": link("tune"), "filename_prefix": "stam/test"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
