"""Keys of this pack in ``transformer_options``: identifiers, as some models splat these as keyword arguments."""

from typing import Final

OVERRIDE: Final = "optimized_attention_override"
"""ComfyUI's own: what takes the place of its attention."""

TECHNIQUES: Final = "coherence_techniques"
"""What :func:`.tap.tap` put on a model: a tuple of :class:`.run.Tapped`."""
RUN: Final = "coherence_run"
"""The :class:`.run.Run`, during it."""
OPEN_TAP: Final = "coherence_open_tap"
"""The :class:`.open_tap.OpenTap`, during a model call."""
ROWS: Final = "coherence_rows"
"""The rows of one branch, during a run."""
THEIRS: Final = "coherence_theirs"
"""The ``optimized_attention_override`` that another pack put in the place of ours during a model call."""
SITES: Final = "coherence_sites"
"""In an attention module's copy: the names of its sites that are still to come."""
REPLACED: Final = "coherence_replaced_"
"""In a transformer block's copy, followed by ``attn1`` or ``attn2``: the name of that attention's site."""
HOLD: Final = "coherence_hold"
"""An ExitStack that takes over what a model call would undo at its end."""

INSERTED: Final = "coherence_inserted"
"""What :mod:`.inflation` puts between a model's layers."""
INFLATED_BLOCKS: Final = "coherence_inflated_blocks"
INFLATED_PLACE: Final = "coherence_inflated_place"
INFLATED_FEATURES: Final = "coherence_inflated_features"

LORAS: Final = "coherence_loras"
"""What :mod:`..samplers.lora_steps` puts on a model."""
LORA_RUN: Final = "coherence_lora_run"
"""What that knows of the run, during it."""
