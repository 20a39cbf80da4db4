"""Draws workflows/assets/red_circle.mp4, a clip to try LoadVideo with: a red circle crosses a white background.

    python scripts/draw_clip.py

Run it with ComfyUI's Python. In a workflow the node CoherenceDemoClip draws the same frames, without a file.
"""

import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
CLIP = PACK / "workflows" / "assets" / "red_circle.mp4"
FPS = 8.0
sys.path.append(str(PACK))

from client.clip import write_mp4  # noqa: E402
from demo.clips import render_clip  # noqa: E402


def main(path: Path = CLIP) -> None:
    frames = render_clip("circle", "red", "white").frames
    write_mp4((frames * 255).round().byte().numpy(), FPS, path)


if __name__ == "__main__":
    main()
