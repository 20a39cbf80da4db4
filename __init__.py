"""ComfyUI-Coherence: temporally coherent video from diffusion models, and a look into their attention."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI once, when it loads custom nodes."""
    from .nodes import CoherenceExtension

    return CoherenceExtension()
