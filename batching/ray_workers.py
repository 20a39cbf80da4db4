"""Workers on the machines of a Ray cluster, each with a ComfyUI server of its own. Needs Ray."""

import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..client.errors import ComfyError, PromptError, ServerGone
from ..client.process import ServerProcess, free_port
from ..client.pythons import python_of
from ..client.server import Json, RunningServer
from .cli import LOCAL
from .workers import OnFraction, Result, SavedFile, ServerWorker

_LOOK_AGAIN = 0.5  # seconds
_ANSWER_SECONDS = 60.0
_START_SECONDS = 600.0


class OwnedServer:
    """Lives in a process of Ray and owns one ComfyUI: the one at ``url``, or one that it starts from ``comfyui``.

    It takes and returns plain values alone, for the pack need not be installed where it lives.
    """

    def __init__(
        self,
        url: str | None,
        comfyui: str | None,
        python: str | None,
        arguments: Sequence[str],
        beside_others: bool = False,
    ) -> None:
        self._beside_others = beside_others
        self._url, self._comfyui, self._python, self._arguments = url, comfyui, python, tuple(arguments)
        self._server: RunningServer | None = RunningServer(url) if url else None
        self._folder = tempfile.TemporaryDirectory(prefix="coherence-", ignore_cleanup_errors=True)
        self._fraction = 0.0

    def start(self) -> str | None:
        """Get the server ready; returns what is wrong with it."""
        if self._comfyui is None:
            is_there = self._server is not None and self._server.is_there()
            return None if is_there else f"No ComfyUI answers at {self._url}."
        if isinstance(self._server, ServerProcess):
            if self._server.process.poll() is None and self._server.is_there():
                return None
            self._server.stop()
        main = Path(self._comfyui) / "main.py"
        if not main.is_file():
            return f"{self._comfyui} is not a ComfyUI on this machine: it holds no main.py."
        folder = Path(self._folder.name)
        python = Path(self._python) if self._python else python_of(Path(self._comfyui))
        # What it makes is fetched; its own folders and its database stay as they are.
        database = (folder / "comfyui.db").as_posix()
        own = ["--output-directory", str(folder / "output"), "--temp-directory", str(folder)]
        own += ["--database-url", f"sqlite:///{database}", *self._arguments]
        server = ServerProcess(Path(self._comfyui), python, free_port(), folder / "server.log", own)
        self._server = server
        try:
            server.wait_until_ready()
        except ComfyError as error:
            server.stop()
            return str(error)
        return None

    def about(self) -> dict[str, Any]:
        """Address and process id of the server (None for one that it does not start)."""
        assert self._server is not None
        process = self._server.process.pid if isinstance(self._server, ServerProcess) else None
        return {"url": self._server.url, "pid": process}

    def object_info(self) -> Json:
        """The server's ``/object_info``."""
        assert self._server is not None
        return self._server.object_info()

    def run(self, prompt: Json, prompt_id: str) -> dict[str, Any]:
        """Run a prompt; returns what it made or why it did not."""
        assert self._server is not None
        self._fraction = 0.0
        try:
            result = ServerWorker(self._server, self._beside_others).run(prompt, prompt_id, self._take_fraction)
        except PromptError as error:
            return {"failed": str(error)}
        except ServerGone as error:
            return {"gone": str(error)}
        files = [(file.node, file.filename, file.kind, file.data) for file in result.files]
        return {"files": files, "texts": result.texts, "seconds": result.seconds}

    def _take_fraction(self, fraction: float) -> None:
        self._fraction = fraction

    def fraction(self) -> float:
        """How much of the present prompt is done; answered while ``run`` works."""
        return self._fraction

    def knows(self, prompt_id: str) -> bool:
        """Whether the server has this prompt, or had it."""
        return self._server is not None and ServerWorker(self._server).knows(prompt_id)

    def withdraw(self, prompt_id: str) -> None:
        """Stop a prompt."""
        if self._server is not None:
            self._server.withdraw(prompt_id)

    def close(self) -> None:
        """Stop a server that it started."""
        if isinstance(self._server, ServerProcess):
            self._server.stop()
        self._folder.cleanup()


class RayWorker:
    """Stands for an ``OwnedServer`` somewhere in the cluster; makes another when that one's machine is lost."""

    def __init__(self, ray: Any, name: str, arguments: Sequence[Any]) -> None:
        self._ray, self.name, self._arguments = ray, name, arguments
        self._actor: Any = None

    def start(self) -> str | None:
        """Get the server ready, wherever there is room; returns what is wrong."""
        starts_one = self._arguments[0] is None
        gpus = 1 if starts_one and self._ray.cluster_resources().get("GPU") else 0
        # A thread for the run, others for questions in the meantime.
        options = {"num_cpus": int(starts_one), "num_gpus": gpus, "max_concurrency": 4}
        if self._actor is None:
            self._actor = self._ray.remote(**options)(OwnedServer).remote(*self._arguments)
        try:
            return self._ray.get(self._actor.start.remote(), timeout=_START_SECONDS)
        except self._ray.exceptions.GetTimeoutError:
            self._drop()
            return "The Ray cluster found no place for it in time: is there a free CPU (and GPU) for each worker?"
        except self._ray.exceptions.RayError as error:
            self._drop()
            return f"Its Ray worker died: {error}"

    def _drop(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor)
        self._actor = None

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self._actor is None:
            raise ServerGone(f"{self.name} has no Ray worker.")
        try:
            return self._ray.get(getattr(self._actor, method).remote(*arguments), timeout=_ANSWER_SECONDS)
        except self._ray.exceptions.RayError as error:
            raise ServerGone(f"{self.name} does not answer: {error}") from error

    def about(self) -> dict[str, Any]:
        """Address and process id of its server."""
        return self._ask("about")

    def object_info(self) -> Json:
        """The server's ``/object_info``."""
        return self._ask("object_info")

    def run(self, prompt: Json, prompt_id: str, on_fraction: OnFraction) -> Result:
        if self._actor is None:
            raise ServerGone(f"{self.name} has no Ray worker.")
        answer = self._actor.run.remote(prompt, prompt_id)
        try:
            while not self._ray.wait([answer], timeout=_LOOK_AGAIN)[0]:
                on_fraction(self._ask("fraction"))
            made = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            self._drop()
            raise ServerGone(f"The Ray worker {self.name} was lost: {error}") from error
        if "failed" in made:
            raise PromptError(made["failed"])
        if "gone" in made:
            raise ServerGone(made["gone"])
        return Result([SavedFile(*file) for file in made["files"]], made["texts"], made["seconds"])

    def knows(self, prompt_id: str) -> bool:
        try:
            return self._ask("knows", prompt_id)
        except ServerGone:
            return False

    def is_back(self) -> bool:
        return self.start() is None

    def withdraw(self, prompt_id: str) -> None:
        self._ask("withdraw", prompt_id)

    def close(self) -> None:
        """Stop what it started."""
        with suppress(ServerGone):  # it is closed, then
            self._ask("close")
        self._drop()


def connect(address: str) -> Any:
    """The module ``ray``, connected to the cluster at ``address``, or to one on this machine (``local``)."""
    # Ray starts its workers as background work, and what they start would be so, too.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError as error:
        raise ComfyError(
            "--ray needs Ray, and this Python lacks it: run  pip install 'ray>=2.40'  for it, or install the pack "
            "with its extra: pip install '.[ray]'."
        ) from error
    # The workers get the code with their orders: they need Python and Ray, not the pack.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__.partition(".")[0]])
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    options |= {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        ray.init(**options)
    except Exception as error:  # of a busy machine, where a process of its own starts too late, Ray raises a bare one
        raise ComfyError(f"No Ray cluster at {address!r}: {error}. Start one with  ray start --head .") from error
    return ray


def ray_workers(
    ray: Any, urls: Sequence[str], comfyui: str | None, python: str | None, arguments: Sequence[str], count: int
) -> list[RayWorker]:
    """A worker for each address, or ``count`` that start a ComfyUI each; all are ready.

    Raises:
        ComfyError: one of them does not get ready; it says which and why.
    """
    if comfyui:
        workers = [
            RayWorker(ray, f"worker {place}", (None, comfyui, python, arguments)) for place in range(1, count + 1)
        ]
    else:
        workers = [RayWorker(ray, url, (url, None, None, (), len(urls) > 1)) for url in urls]
    with ThreadPoolExecutor(len(workers)) as at_once:
        complaints = list(at_once.map(RayWorker.start, workers))
    for worker, complaint in zip(workers, complaints, strict=True):
        if complaint:
            for each in workers:
                each.close()
            raise ComfyError(f"{worker.name}: {complaint}")
    return workers
