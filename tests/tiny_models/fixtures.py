"""Pytest fixtures of the tiny models; conftest.py imports them."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .folder import TinyModels


@pytest.fixture(scope="session")
def tiny_models() -> Iterator[TinyModels]:
    """The session's tiny models. The folder goes with the session: pytest's own would keep three of them."""
    with TemporaryDirectory(prefix="tiny_models_") as folder:
        yield TinyModels(Path(folder))
