"""ComfyUI with the pack for the user's browser. Runs in the host's Python."""

import argparse

from ..client.locking import lock
from .errors import HostError
from .provision import PACK_NAME, Host
from .server import Server
from .tools import say


def serve(host: Host, arguments: argparse.Namespace) -> int:
    """Start the server and leave it running until Ctrl-C."""
    data = arguments.cache / "data"

    def refuse() -> None:
        raise HostError(f"Another `host.py serve` uses {data}: stop it, or name another folder with --cache.")

    say("starting ComfyUI (Ctrl-C stops it)")
    with lock(arguments.cache / "data.lock", on_wait=refuse), Server(host, data, arguments.port) as server:
        print(f"ComfyUI with {PACK_NAME}:  {server.url}")
        print(f"Its models, pictures and workflows:  {data}")
        print(f"The example:  {server.url}/?template={arguments.workflow.stem}&source={PACK_NAME}", flush=True)
        server.wait()
    return 0
