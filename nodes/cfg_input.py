"""The input for the strength of classifier-free guidance, with ComfyUI's range and steps."""

from comfy_api.latest import io


def cfg_input(default: float, tooltip: str, name: str = "cfg") -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)
