"""Draws the thumbnails of the workflows that make a clip, for ComfyUI's template browser: four of its frames.

    python workflows/thumbnails.py --comfyui DIR

Run it with the Python of that ComfyUI, after a change of a workflow or of the demo model.
"""

import argparse
import io
import json
import sys
from pathlib import Path

from PIL import Image, ImageOps, ImageSequence

FOLDER = Path(__file__).resolve().parent
SIDE, GAP = 256, 4
sys.path.append(str(FOLDER.parent))

from hosting.provision import Host  # noqa: E402
from hosting.server import Server, outputs  # noqa: E402
from hosting.workflow import to_prompt  # noqa: E402


def thumbnail(clip: Image.Image) -> Image.Image:
    """Four frames, evenly spaced from the first to the last, two by two."""
    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
    picture = Image.new("RGB", (2 * SIDE + GAP, 2 * SIDE + GAP), "white")
    for place in range(4):
        frame = ImageOps.fit(frames[round(place * (len(frames) - 1) / 3)], (SIDE, SIDE))
        picture.paste(frame, (place % 2 * (SIDE + GAP), place // 2 * (SIDE + GAP)))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    comfyui = parser.parse_args().comfyui.resolve()
    with Server(Host(comfyui, Path(sys.executable), is_ours=False)) as server:
        object_info = server.object_info()
        for path in sorted(FOLDER.glob("*.json")):
            prompt = to_prompt(json.loads(path.read_text("utf-8")), object_info)
            if not any(node["class_type"] == "SaveAnimatedWEBP" for node in prompt.values()):
                continue
            entry = server.queue(prompt)
            clip = next(file for file in outputs(entry) if file["filename"].endswith(".webp"))
            with Image.open(io.BytesIO(server.download(clip))) as image:
                thumbnail(image).save(path.with_suffix(".jpg"), quality=85, optimize=True)
            print(path.with_suffix(".jpg"))


if __name__ == "__main__":
    main()
