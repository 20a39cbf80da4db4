"""Makes the pack importable as ``coherence`` for its command lines, whatever its folder is called.

Its modules import each other relatively. As ``coherence.client`` they do so without a folder of the pack, ``nodes`` or
``metrics``, in the way of another module of that name. pytest imports a clone under its folder's name, so a module that
was called ``pack`` was hidden by a clone called ``pack``: hence the underscore.
"""

import importlib.util
import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NAME = "coherence"


def enter() -> None:
    """Name the pack, take its folder off the path, and set what every command line needs set."""
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT]
    _print_every_letter()
    # PyTorch's threads would wait for their next work by spinning, against whatever else runs: five times slower where
    # one of two cores is busy, and no faster where none is. What a command line starts inherits this.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _print_every_letter() -> None:
    """Print letters that the terminal's encoding lacks as escapes, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
