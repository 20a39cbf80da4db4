"""Nodes that exist on the canvas alone, of ComfyUI and of packs that many workflows use: no server knows them."""

NOTES = {
    *("Note", "MarkdownNote", "Note Plus (mtb)"),
    *(f"{name} (rgthree)" for name in ("Bookmark", "Fast Actions Button", "Label", "Node Collector")),
    # They set what the saved nodes have as their mode.
    *(f"{name} (rgthree)" for name in ("Fast Bypasser", "Fast Muter", "Fast Groups Bypasser", "Fast Groups Muter")),
    *(f"Mute / Bypass {name} (rgthree)" for name in ("Relay", "Repeater")),
}
"""They give nothing to other nodes."""
GETTERS = {"GetNode": "SetNode", "easy getNode": "easy setNode"}
"""Node → the one of the same name, in its first widget, whose input it gives."""
PASSING = {"Reroute", "Reroute (rgthree)", *GETTERS.values()}
"""They give what their first input gets."""
PRIMITIVE = "PrimitiveNode"
"""It gives its value."""
ALONE = {*NOTES, *PASSING, *GETTERS, PRIMITIVE}
BROADCASTS = ("Anything Everywhere", "Prompts Everywhere", "Seed Everywhere")
"""How the names of nodes begin that the server knows, but whose links the page alone draws."""
EXPORT = "open the workflow in ComfyUI, export it as API (menu, File, Export (API)), and give that file"
"""What helps with any of them."""
