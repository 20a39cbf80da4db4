"""The families of models whose attention is known.

A family is one function that walks a diffusion model and yields its attention sites in the order they run, and one
line in the ``FAMILIES`` of its file. Techniques know nothing of families.
"""

from ...techniques.site import Kind, Site
from . import pictures, unets, videos
from .family import Family
from .videos import REFUSED

__all__ = ["FAMILIES", "REFUSED", "Family", "Kind", "Site"]

FAMILIES: tuple[Family, ...] = (*unets.FAMILIES, *pictures.FAMILIES, *videos.FAMILIES)
