"""ComfyUI-Coherence: temporally coherent video from diffusion models, and a look into their attention."""

import re

WEB_DIRECTORY = "./web"
OLDEST_COMFYUI = "0.27.0"


async def comfy_entrypoint():
    """Called by ComfyUI once, when it loads custom nodes."""
    from comfyui_version import __version__

    require_comfyui(__version__)
    from .nodes import CoherenceExtension

    return CoherenceExtension()


def require_comfyui(version: str) -> None:
    """Raise RuntimeError, which ComfyUI puts into its log, if this version of it lacks what the nodes are built on."""
    found, oldest = ([int(number) for number in re.findall(r"\d+", text)[:3]] for text in (version, OLDEST_COMFYUI))
    if found < oldest:
        raise RuntimeError(f"ComfyUI-Coherence needs ComfyUI >= {OLDEST_COMFYUI}, this is {version}: update ComfyUI")
