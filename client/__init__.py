"""Talks to a ComfyUI that runs, or starts one: what host.py and batch.py share. What runs before ComfyUI's Python does
needs no package: errors, locking and pythons."""
