"""The browser that page tests drive: an installed one, playwright's own, or Debian's package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ..client.pythons import works
from .errors import HostError
from .provision import Host
from .tools import apt_install, is_debian_root, say

_NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "msedge",
)
_MAC_APPS = ("Google Chrome", "Chromium", "Microsoft Edge")
_WINDOWS_PROGRAMS = ("Google/Chrome/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""For a headless browser that opens nothing but our own server."""
_PLAYWRIGHT_PATH = """
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
"""


def find_browser() -> Path | None:
    """An installed Chromium, Chrome or Edge; COHERENCE_BROWSER comes first."""
    if named := os.environ.get("COHERENCE_BROWSER"):
        if not Path(named).is_file():
            raise HostError(f"COHERENCE_BROWSER is {named!r}, not a file: expected a Chromium, Chrome or Edge.")
        return Path(named)
    candidates = [Path(path) for path in map(shutil.which, _NAMES) if path]
    if sys.platform == "darwin":
        candidates += [Path(f"/Applications/{name}.app/Contents/MacOS/{name}") for name in _MAC_APPS]
    if sys.platform == "win32":
        roots = [os.environ.get(name) for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")]
        candidates += [Path(root, name) for root in roots if root for name in _WINDOWS_PROGRAMS]
    return next((path for path in candidates if path.is_file() and _starts(path)), None)


def _starts(browser: Path) -> bool:
    # Elsewhere than on Linux libraries do not go missing, and Windows browsers open a window for --version.
    return sys.platform != "linux" or works([browser, "--version"])


def require_browser(host: Host) -> Path:
    """``find_browser``, else one is installed.

    Raises:
        HostError: none is there and none can be installed.
    """
    if browser := find_browser() or _playwrights_own(host):
        return browser
    say("no browser found: installing playwright's Chromium")
    install: list[str | Path] = [host.python, "-m", "playwright", "install", "chromium"]
    result = subprocess.run(
        install, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if browser := _playwrights_own(host):
        return browser
    say(f"playwright could not install it: {(result.stdout.strip().splitlines() or ['no reason given'])[0]}")
    if is_debian_root():
        say("installing the Debian package chromium")
        apt_install("chromium", "fonts-dejavu-core")
        if browser := find_browser():
            return browser
    raise HostError(
        "The page tests need a browser: none of Chromium, Chrome and Edge is installed, playwright could not "
        "get its own, and this is not Debian with root rights, where one could be installed. Install a browser, name "
        "it in COHERENCE_BROWSER, or leave the page tests out with --no-browser."
    )


def _playwrights_own(host: Host) -> Path | None:
    command: list[str | Path] = [host.python, "-c", _PLAYWRIGHT_PATH]
    path = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or os.devnull)
    return path if path.is_file() and _starts(path) else None
