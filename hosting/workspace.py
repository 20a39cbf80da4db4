"""A data folder for one ComfyUI server, with the pack linked into it: no folder of the user is touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

from .errors import HostError
from .provision import PACK, PACK_NAME, Host


def link_folder(link: Path, target: Path) -> None:
    """Make ``link`` lead to the folder ``target``: a symlink, on Windows a junction (needs no rights)."""
    if link.exists() and os.path.samefile(link, target):
        return
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise HostError(f"{link} is in the way: expected a link to {target}. Move it elsewhere and try again.")
    if sys.platform == "win32":
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, capture_output=True)
    else:
        link.symlink_to(target, target_is_directory=True)


def prepare(base: Path, host: Host) -> list[str]:
    """Lay out the data folder ``base``; returns the arguments that make ComfyUI use it.

    A user's own ComfyUI keeps its models: they are read from there, and all that is written goes to ``base``.
    """
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(base / "custom_nodes" / PACK_NAME, PACK)
    # ComfyUI keeps its database in its own folder unless told otherwise.
    database = (base / "user" / "comfyui.db").as_posix()
    arguments = ["--base-directory", str(base), "--database-url", f"sqlite:///{database}"]
    models = host.comfyui / "models"
    if not host.is_ours and models.is_dir():
        config = base / "users_models.yaml"
        folders = {path.name: f"{path.name}/" for path in models.iterdir() if path.is_dir()}
        # JSON is YAML.
        config.write_text(json.dumps({"users_models": {"base_path": str(models), **folders}}, indent=1), "utf-8")
        arguments += ["--extra-model-paths-config", str(config)]
    return arguments
