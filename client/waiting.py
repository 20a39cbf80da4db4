"""Coroutines for code that is not asynchronous."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import wait
from typing import Any


class Waiting:
    """Runs coroutines on an event loop in a thread of its own, and waits for what they return.

    Not ``asyncio.run``: the caller's thread may have a loop of its own, such as a browser test's.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            while not wait([future], 1.0).done:  # a wait without an end would not see Ctrl-C on Windows
                pass
            return future.result()
        except BaseException:  # Ctrl-C, too: nothing may go on that nobody waits for
            future.cancel()
            raise
