"""In a fork of a Python that has imported others' modules: be ``python main.py``. Imports nothing of ours."""

import io
import os
import runpy
import sys
from collections.abc import Mapping, Sequence


def run(command: Sequence[str], folder: str, env: Mapping[str, str], log: str) -> None:
    """Run a script with its arguments in its folder; what it prints goes to the file ``log``."""
    os.setsid()
    printed, nothing = os.open(log, os.O_WRONLY | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for file, standard in ((nothing, 0), (printed, 1), (printed, 2)):
        os.dup2(file, standard)
    # As a Python that starts has them; under the second names they live on when ComfyUI wraps them.
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.FileIO(1, "w"), "utf-8", write_through=True)
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(io.FileIO(2, "w"), "utf-8", write_through=True)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    pythons = (sys.prefix, sys.base_prefix)  # what the tests added stays out
    sys.path[:] = [folder, *(path for path in sys.path if path.startswith(pythons))]
    sys.argv = list(command)
    runpy.run_path(os.path.join(folder, command[0]), run_name="__main__")
