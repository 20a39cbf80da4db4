"""A soak: a server under random prompts, for as long as you like. ``run.py`` runs it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # for the tables
