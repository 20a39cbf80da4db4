"""Small random models of every family, as files that ComfyUI's stock loaders take; nothing heavy at import.

>>> family = FAMILIES["sd15"]
>>> model = tiny_models.load("sd15")          # the session's fixture; a fresh ModelPatcher every time
>>> latents = sample(model, family, steps=2)  # or: family.latent(), family.conditioning(), your own call
"""

from .families import FAMILIES, Family
from .folder import TinyModels, sample
from .relatives import RELATIVES

__all__ = ["FAMILIES", "RELATIVES", "Family", "TinyModels", "sample"]
