"""The tests run inside a real ComfyUI: COMFYUI_PATH names it, the pack is importable as ``coherence``."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tiny_models import TinyModels

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = os.environ.get("COMFYUI_PATH")


def _enter_comfyui() -> None:
    if not COMFYUI or not (Path(COMFYUI) / "main.py").is_file():
        raise pytest.UsageError(
            f"COMFYUI_PATH is {COMFYUI!r}, expected the folder of a ComfyUI. "
            "Run `python3 host.py test`, which gets one."
        )
    sys.path.insert(0, str(COMFYUI))
    import comfy.options  # noqa: F401  (argument parsing stays off: pytest owns sys.argv)
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def _load_pack(name: str = "coherence") -> None:
    """ComfyUI names a pack's module by its path; here it gets a name that tests can import."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


LONGEST = "test_as_shipped.py"
"""The file of tests that takes longest: ten minutes, mostly of its server."""
MODELS = "COHERENCE_TINY_MODELS"
"""In the environment of the processes that run tests: the folder of the tiny models that they share."""
NO_BROWSER = os.environ.get("COHERENCE_BROWSER") == "none"


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a polite kill stops the server, too
    settings.register_profile("fuzz", max_examples=10_000, deadline=10_000, print_blob=True)
    settings.register_profile("untimed", deadline=None)  # a busy machine breaks any deadline
    if settings.get_current_profile_name() == "default":
        settings.load_profile("untimed")
    if not hasattr(config, "workerinput"):  # the process that hands out tests, before it starts those that run them
        folder = TemporaryDirectory(prefix="tiny_models_")
        config.add_cleanup(folder.cleanup)
        os.environ[MODELS] = folder.name
    config.addinivalue_line("markers", "slow: takes long (left out by `host.py test --quick`)")
    config.addinivalue_line("markers", "browser: drives a browser (left out by `host.py test --no-browser`)")


def pytest_collection() -> None:
    """Not at import: a process that hands its tests to workers collects none, and needs no ComfyUI."""
    _enter_comfyui()
    _load_pack()
    sys.path += [str(ROOT / "tests" / "support"), str(ROOT / "tests")]  # helpers, and the soak


def pytest_collection_finish() -> None:
    """What is imported by now stays: ComfyUI, which collects garbage whenever a model is gone, need not look at it."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whatever uses a page drives a browser, and is slow; only --no-browser and --quick leave it out.

    Files that take long come first: begun last, they would leave the other processes without work at the end. They
    are known by the share of their tests that are slow.
    """
    for item in items:
        if "browser_context" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
            item.add_marker("slow")
    left_out = [item for item in items if NO_BROWSER and item.get_closest_marker("browser")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    every = Counter(item.path for item in items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.name != LONGEST, -slow[item.path] / every[item.path]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if NO_BROWSER:
        terminalreporter.section("--no-browser: THE TESTS THAT DRIVE A BROWSER WERE LEFT OUT", sep="!", red=True)


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The folder of the ComfyUI that the tests run in."""
    return Path(COMFYUI)


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """A folder for what a test wants to be looked at; git ignores it."""
    folder = ROOT / "test-artifacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_models() -> TinyModels:
    """The tiny models. Their folder goes with the session: pytest's own would keep three of them."""
    from tiny_models import TinyModels

    return TinyModels(Path(os.environ[MODELS]))


@pytest.fixture(scope="session")
def server(comfyui_path: Path):
    """A real ComfyUI server with this pack, in a temporary data folder; one for each process that runs tests."""
    from forked import ForkedServer, host_of

    with ForkedServer(host_of(comfyui_path)) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server) -> dict:
    """What the server says of its nodes."""
    return server.object_info()


@pytest.fixture(scope="session")
def to_api(object_info):
    """A workflow's file as a prompt for the server."""
    from coherence.client.workflow import to_prompt
    from shipped import runnable

    return lambda path: to_prompt(runnable(path), object_info)


@pytest.fixture(scope="session")
def stand_ins(server, tiny_models):
    """The server has small random models under the names of the known ones that workflows load."""
    from tiny_models.stand_ins import STAND_INS

    for name in STAND_INS:
        path = server.base / "models" / name
        path.parent.mkdir(exist_ok=True)
        path.hardlink_to(tiny_models.stand_in(name))


@pytest.fixture
def output(tmp_path, monkeypatch):
    """The output folder; its loras are among ComfyUI's, as the server has it."""
    import folder_paths

    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    places = ([str(folder / "loras")], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", places)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


@pytest.fixture(scope="module")
def browser_context(server):
    """A browser for a file's tests: from the second page on it has the frontend's code.

    Not for longer: while one runs, its event loop keeps other tests from ``asyncio.run``.
    """
    from pages import browser_for

    with browser_for(server) as browser:
        yield browser.new_context(reduced_motion="reduce")


@pytest.fixture
def blank_page(browser_context, server):
    """An empty page, to be driven by playwright's synchronous interface; what pages before it have stored is gone."""
    from pages import forget, new_page

    page = new_page(browser_context)
    forget(page, server)
    yield page
    page.close()
