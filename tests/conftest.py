"""The tests run inside a real ComfyUI: COMFYUI_PATH names it, the pack is importable as ``coherence``."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = os.environ.get("COMFYUI_PATH")


def _enter_comfyui() -> None:
    if not COMFYUI or not (Path(COMFYUI) / "main.py").is_file():
        raise RuntimeError(
            f"COMFYUI_PATH is {COMFYUI!r}, expected the folder of a ComfyUI. Run `python3 host.py test`, which gets one."
        )
    sys.path.insert(0, str(COMFYUI))
    import torch

    import comfy.options  # noqa: F401  (argument parsing stays off: pytest owns sys.argv)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def _load_pack(name: str = "coherence") -> None:
    """ComfyUI names a pack's module by its path; here it gets a name that tests can import."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_enter_comfyui()
_load_pack()

sys.path.append(str(ROOT / "tests"))
from tiny_models.fixtures import tiny_models  # noqa: E402, F401  (a fixture for every test)
