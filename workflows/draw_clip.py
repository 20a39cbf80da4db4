"""Draws assets/red_circle.mp4, the clip for those who try LoadVideo: a red circle that crosses a white background.

    python workflows/draw_clip.py

Run it with ComfyUI's Python. In a workflow the node CoherenceDemoClip draws the same frames, without a file.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CLIP = FOLDER / "assets" / "red_circle.mp4"
FPS = 8.0
sys.path.append(str(FOLDER.parent))

from client.clip import write_mp4  # noqa: E402
from demo.clips import render_clip  # noqa: E402


def main(path: Path = CLIP) -> None:
    frames = render_clip("circle", "red", "white").frames
    write_mp4((frames * 255).round().byte().numpy(), FPS, path)


if __name__ == "__main__":
    main()
