"""The command line of host.py: any Python finds or prepares a host, and that host's Python goes on."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..client.pythons import default_cache, go_on
from .browser import require_browser
from .errors import HostError
from .find import find_host, require_test_packages
from .provision import NEWEST, PACK, PACK_NAME, RECIPES, Host
from .report import add_options as add_report_options
from .report import report
from .tools import say

_FOUND = "COHERENCE_HOST"
"""In the environment of the host's Python: the host that was found."""
DEMO_WORKFLOW = PACK / "workflows" / "zs2_text_to_video.json"
# What the command `pytest` does. `python -m pytest` would put the pack's folders before ComfyUI's modules of the
# same name.
PYTEST = "import sys; sys.path = [p for p in sys.path if p]; import pytest; sys.exit(pytest.main())"
# A file's tests stay together, for they share models, and files keep their order: xdist would begin with those of
# many tests, and end with one process at the slowest few. What the user gives comes later and wins.
_SHARE_OUT = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
_MOST_WORKERS = 4
_BYTES_OF_A_WORKER = 3_500_000_000  # with the server that it may start
_FIND = (
    "ComfyUI is looked for at --comfyui, then COMFYUI_PATH, then where this pack lies (custom_nodes/..). "
    "Without one, a pinned ComfyUI is prepared once in the cache folder. Either way the server gets a data "
    "folder of its own, so nothing is written into a ComfyUI of yours. A GPU is used where there is one."
)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 65535, got {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The arguments of host.py."""
    top = argparse.ArgumentParser("host.py", description=f"Run {PACK_NAME} in a real ComfyUI. {_FIND}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--comfyui", metavar="DIR", help="a ComfyUI of yours (the folder that holds main.py)")
    common.add_argument("--python", metavar="EXE", help="the Python of that ComfyUI, if it is not found beside it")
    common.add_argument("--cache", metavar="DIR", type=Path, help="where ComfyUI is prepared (or set COHERENCE_CACHE)")
    version_help = f"prepare and use this ComfyUI, whatever others there are: {', '.join(RECIPES)} (default: {NEWEST})"
    common.add_argument("--comfyui-version", metavar="V", choices=RECIPES, help=version_help)
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument("--port", type=_port, help="port to listen on, 1 to 65535 (default: a free one)")
    commands = top.add_subparsers(dest="command", required=True, metavar="demo|test|report|serve")

    demo = commands.add_parser("demo", parents=[common, server], help="turn a prompt into a coherent clip")
    demo.add_argument("--workflow", metavar="FILE", type=Path, default=DEMO_WORKFLOW, help="a UI workflow to run")
    demo.add_argument("--prompt", metavar="TEXT", help="what the clip shows (default: the workflow's)")
    demo.add_argument("--seed", type=int, metavar="N", help="seed of the noise (default: the workflow's)")
    demo.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("coherence-demo"), help="default: ./coherence-demo"
    )

    description = (
        "Run pytest in that host, a process for each core up to four; arguments that host.py does not know go to "
        "pytest: -n 0 runs all in one process, in which prints and breakpoints reach you (with -s)."
    )
    # An abbreviation of an option of ours may be one of pytest's, such as --co.
    test = commands.add_parser(
        "test", parents=[common], help="run the tests", description=description, allow_abbrev=False
    )
    test.add_argument("--quick", action="store_true", help="leave out the slow ones")
    test.add_argument("--no-browser", action="store_true", help="leave out the tests that drive a browser")

    description = "Measure what the papers claim and what it costs, on the pack's own models, and write a page of it."
    measured = commands.add_parser("report", parents=[common], help="measure the claims", description=description)
    add_report_options(measured)

    serve = commands.add_parser("serve", parents=[common, server], help="start ComfyUI with the pack, for your browser")
    serve.set_defaults(workflow=DEMO_WORKFLOW)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run host.py; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments, others = parser().parse_known_args(argv)
    if others and arguments.command != "test":
        parser().error(f"unknown arguments: {' '.join(others)}")
    # A polite kill ends like Ctrl-C, so that servers stop and half-made folders go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        arguments.cache = (arguments.cache or default_cache()).absolute()
        _keep_bytecode(arguments.cache)
        if found := os.environ.pop(_FOUND, None):
            return _in_the_host(Host.from_json(found), arguments)
        host = find_host(arguments.comfyui, arguments.python, arguments.cache, arguments.comfyui_version)
        if arguments.command == "test":
            return test(host, arguments, others)
        if arguments.command == "report":
            return report(host, arguments)
        return go_on([host.python, PACK / "host.py", *argv], os.environ | {_FOUND: host.to_json()})
    except HostError as error:
        print(f"host.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("host.py: stopped", file=sys.stderr)
        return 130


def _keep_bytecode(cache: Path) -> None:
    """Where Python may not write bytecode, as in many containers, keep it in the cache, beside no source.

    Else every process compiles ComfyUI and PyTorch again, which is more than half of its start.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ["PYTHONPYCACHEPREFIX"] = os.environ.get("PYTHONPYCACHEPREFIX") or str(cache / "bytecode")


def _in_the_host(host: Host, arguments: argparse.Namespace) -> int:
    """The commands that use packages, which ComfyUI requires."""
    if arguments.command == "demo":
        from .demo import demo

        return demo(host, arguments)
    from .serve import serve

    return serve(host, arguments)


def test(host: Host, arguments: argparse.Namespace, pytest_arguments: Sequence[str]) -> int:
    """Run pytest in the host."""
    require_test_packages(host, arguments.cache)
    env = os.environ | {"COMFYUI_PATH": str(host.comfyui)}
    if arguments.no_browser:
        say("--no-browser: THE TESTS THAT DRIVE A BROWSER ARE LEFT OUT")
        env["COHERENCE_BROWSER"] = "none"
    elif not arguments.quick:  # what drives a browser is slow
        env["COHERENCE_BROWSER"] = str(require_browser(host))
    chosen = ("-m", "not slow") if arguments.quick else ()
    workers = _workers()
    env["PYTEST_XDIST_AUTO_NUM_WORKERS"] = str(workers if workers > 1 else 0)
    env.setdefault("OMP_NUM_THREADS", str(_usable_cores() // workers))  # PyTorch's in each: all would take all cores
    return go_on([host.python, "-c", PYTEST, *_SHARE_OUT, *chosen, *pytest_arguments], env, PACK)


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _workers() -> int:
    """How many processes may run tests at once."""
    workers = min(_usable_cores(), _MOST_WORKERS)
    if sys.platform != "win32":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        workers = min(workers, memory // _BYTES_OF_A_WORKER)
    return max(workers, 1)
