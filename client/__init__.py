"""Talks to a ComfyUI that runs, or starts one: what host.py and batch.py share. Of packages only clip.py needs any."""
