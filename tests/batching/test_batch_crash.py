"""Servers and batches that are killed in the middle: every run is made, and recorded once."""

import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from batch_prompts import lines, slow, start, write
from coherence.client.process import free_port
from coherence.hosting.server import Server
from coherence.hosting.workspace import prepare
from forked import ForkedServer
from PIL import Image

pytestmark = pytest.mark.slow

COLOURS = [0x100000 * number + 0x20 for number in range(1, 7)]
TABLE = {"list": {"Colour.color": COLOURS}}


class Mortal:
    """A second server, which tests kill; it comes back at the same address when it is asked for."""

    def __init__(self, host) -> None:
        self._host, self._port, self._running = host, free_port(), ExitStack()
        self.server: Server | None = None

    def alive(self) -> Server:
        if self.server is None or self.server.process.poll() is not None:
            self._running.close()
            self.server = self._running.enter_context(ForkedServer(self._host, port=self._port))
        return self.server

    def kill(self) -> None:
        assert self.server is not None
        self.server.process.kill()
        self.server.process.wait()

    def close(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def mortal(server):
    second = Mortal(server.host)
    yield second
    second.close()


def wait_for(batch, condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert batch.poll() is None, f"the batch ended too early: {batch.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_work(folder, server: str) -> bool:
    """Whether a server has had a run and has the next."""
    ended = {line["prompt_id"] for line in lines(folder)}
    begun = [line["prompt_id"] in ended for line in lines(folder, "begun") if line["server"] == server]
    return len(begun) > 1 and not begun[-1]


def finish(batch) -> str:
    told, _ = batch.communicate(timeout=240)
    assert batch.returncode == 0, told
    return told


def require_all_once(folder, count: int = len(COLOURS)) -> None:
    """Every run is recorded once, and its picture has its colour."""
    records = lines(folder)
    assert Counter(record["run"] for record in records) == Counter(range(1, count + 1))
    assert len({record["key"] for record in records}) == count
    for record in records:
        (file,) = record["files"]
        with Image.open(folder / "out" / file["path"]) as picture:
            red, green, blue = picture.getpixel((16, 16))
        assert red << 16 | green << 8 | blue == record["values"]["Colour.color"]


def test_a_batch_waits_for_its_only_server_to_come_back(mortal, tmp_path):
    url = mortal.alive().url
    batch = start(*write(tmp_path, slow(), {"list": {"Colour.color": COLOURS[:3]}}), "--server", url)
    wait_for(batch, lambda: at_work(tmp_path, url))
    mortal.kill()
    mortal.alive()
    assert f"{url} answers" in finish(batch)
    require_all_once(tmp_path, 3)


def test_a_killed_batch_goes_on_and_repeats_nothing(server, mortal, tmp_path):
    servers = [mortal.alive(), server]
    command = [*write(tmp_path, slow(), TABLE), "--server", *(each.url for each in servers)]
    before = {prompt_id for each in servers for prompt_id in each.get("/history")}
    batch = start(*command)
    wait_for(batch, lambda: at_work(tmp_path, server.url) and len(lines(tmp_path)) >= 2)
    batch.kill()
    batch.communicate()
    finished = {line["key"] for line in lines(tmp_path)}
    told = finish(start(*command))
    assert f"{len(finished)} of 6 runs are finished already" in told
    require_all_once(tmp_path)
    made = {prompt_id for each in servers for prompt_id in each.get("/history")} - before
    assert len(made) == len(COLOURS), "what ran while the batch was dead was waited for, not repeated"
    assert made == {record["prompt_id"] for record in lines(tmp_path)}


def test_workers_of_ray_use_the_servers_that_are_named(server, mortal, tmp_path):
    urls = [mortal.alive().url, server.url]
    finish(start(*write(tmp_path, slow(), {"list": {"Colour.color": COLOURS[:4]}}), "--server", *urls, "--ray"))
    require_all_once(tmp_path, 4)
    assert {record["server"] for record in lines(tmp_path)} == set(urls)


def test_a_killed_servers_run_is_made_elsewhere_and_nothing_is_lost(server, mortal, tmp_path):
    urls = [mortal.alive().url, server.url]
    batch = start(*write(tmp_path, slow(), TABLE), "--server", *urls, "--wait", "1")
    wait_for(batch, lambda: at_work(tmp_path, urls[0]))
    mortal.kill()
    told = finish(batch)
    require_all_once(tmp_path)
    retried = [record for record in lines(tmp_path) if record["attempts"] == 2]
    assert [record["server"] for record in retried] == [server.url]
    assert {record["server"] for record in lines(tmp_path)} == set(urls), "both had a share"
    assert f"{urls[0]} did not come back" in told
    assert re.search(r"\[\d/6\] color = \d+: .* left\)", told), "it says how long the rest takes"


def test_a_stopped_batch_tells_its_server_to_stop_and_goes_on_later(server, tmp_path):
    command = [*write(tmp_path, slow(), {"list": {"Colour.color": COLOURS[:3]}}), "--server", server.url]
    batch = start(*command)
    wait_for(batch, lambda: at_work(tmp_path, server.url))
    batch.send_signal(signal.SIGINT)
    told, _ = batch.communicate(timeout=60)
    assert batch.returncode == 130, told
    assert "stopped; the same command goes on from here" in told
    finish(start(*command))
    assert Counter(record["status"] for record in lines(tmp_path)) == {"done": 3}


def test_a_killed_servers_run_is_made_by_another_worker_of_ray_and_nothing_is_lost(server, tmp_path):
    """Two workers, each with a ComfyUI that it started; the killed one is started again."""
    data = [f"'{argument}'" for argument in prepare(tmp_path / "base", server.host)]
    comfyui = ["--comfyui", str(server.host.comfyui), "--python", sys.executable]
    batch = start(*write(tmp_path, slow(), TABLE), *comfyui, f"--comfyui-arguments={' '.join(data)}", "--ray")
    told = ""
    while not (processes := re.findall(r"worker \d of Ray has http://\S+, process (\d+)", told))[1:]:
        line = batch.stdout.readline()
        assert line, told
        told += line
    wait_for(batch, lambda: at_work(tmp_path, "worker 1"))
    os.kill(int(processes[0]), signal.SIGKILL)
    finish(batch)
    require_all_once(tmp_path)
    assert {record["server"] for record in lines(tmp_path)} == {"worker 1", "worker 2"}
    assert [record["attempts"] for record in lines(tmp_path)].count(2) == 1
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)
