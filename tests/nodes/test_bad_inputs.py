"""Whatever a node is given: it refuses with the input's name and what to do, or what comes of it is right.

Over a real server, validation and execution. ``--hypothesis-profile=fuzz`` tries thousands.
"""

import asyncio
import json
import re
import time
import urllib.error
from pathlib import Path

import pytest
from bad_inputs import inputs_of, prompt, valid, wrong
from clear_errors import CLEAR, NEVER
from coherence.hosting.provision import PACK_NAME
from coherence.hosting.server import Server
from coherence.hosting.workspace import link_folder
from coherence.nodes import CoherenceExtension
from forked import ForkedServer, host_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

NODES = [node.GET_SCHEMA().node_id for node in asyncio.run(CoherenceExtension().get_node_list())]
VALUES = Path(__file__).resolve().parents[1] / "support" / "given_values"
TRIES = 8 if settings().max_examples <= 100 else settings().max_examples
AS_COMFYUI = {("IEGuider", "positive", "another model's"), ("IEGuider", "negative", "another model's")}
"""Its guider fails as ComfyUI's CFGGuider does on a prompt that is another model's, with ComfyUI's words."""
WITHOUT_A_FILE = ("LoadAttentionRegistry", "LoadMomentum")
"""Loaders without an example: there is nothing that they could load yet."""
TYPES = {error.__name__ for error in NEVER} | {"KeyError", "IndexError", "ZeroDivisionError", "RuntimeError"}


@pytest.fixture(scope="module")
def tried(comfyui_path, tmp_path_factory):
    """A server that has nodes which give any value: ``tried(prompt)`` is what came of it."""
    base = tmp_path_factory.mktemp("bad_inputs")
    (base / "custom_nodes").mkdir()
    link_folder(base / "custom_nodes" / VALUES.name, VALUES)
    with ForkedServer(host_of(comfyui_path), base) as server:
        yield Tried(server)


class Tried:
    """What becomes of prompts on a server."""

    def __init__(self, server: Server) -> None:
        self._server, self.info = server, server.object_info()

    def __call__(self, prompt: dict) -> tuple[str, str]:
        """What was complained of, "" where nothing was; and what is wrong with that, or with what came out."""
        try:
            answer = self._server.post("/prompt", {"prompt": prompt})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            return _refused(json.loads(error.read()))
        if answer["node_errors"]:
            self._server.withdraw(answer["prompt_id"])
            return _refused(answer)
        pause = 0.01  # to ask without one keeps a core busy
        while not (history := self._server.get(f"/history/{answer['prompt_id']}")):
            self._server.require_alive()
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        (entry,) = history.values()
        messages = dict(entry["status"]["messages"])
        if failed := messages.get("execution_error"):
            return _failed(failed)
        told = [each for node in entry["outputs"].values() for each in node.get("tensors", ())]
        bad = [shape for shape, is_good in told if not is_good]
        return "", f"what came out is empty or not finite: {bad}" if bad else ""


def _refused(answer: dict) -> tuple[str, str]:
    errors = [error for node in answer["node_errors"].values() for error in node["errors"]]
    text = "; ".join(f"{error['message']}: {error['details']}" for error in errors) or answer["error"]["message"]
    crashed = any(error["type"].startswith("exception_during") for error in errors)
    return text, "the validation crashed" if crashed else ""


def _failed(failed: dict) -> tuple[str, str]:
    text, kind = failed["exception_message"].strip(), failed["exception_type"].rpartition(".")[2]
    frames = [line for line in failed["traceback"] if line.lstrip().startswith("File ")]
    ours = PACK_NAME in frames[-1].replace("\\", "/")
    if ours and kind not in TYPES and CLEAR.search(text):
        return text, ""
    return text, f"{kind} from {frames[-1].strip()}"


def test_what_nodes_are_asked_to_take_they_take(tried):
    """Else the others would prove nothing."""
    for name in NODES:
        if name not in WITHOUT_A_FILE:
            complaint, problem = tried(prompt(name, valid(name, tried.info[name]), tried.info[name]))
            assert (complaint, problem) == ("", ""), name


@pytest.mark.parametrize("name", NODES)
def test_one_wrong_input_is_refused_by_its_name_or_taken_rightly(tried, name):
    info = tried.info[name]
    inputs = valid(name, info)
    if name in WITHOUT_A_FILE:
        inputs["file"] = "nowhere.json"

    ways = [(each, *way) for each, (kind, options) in inputs_of(info).items() for way in wrong(kind, options)]
    ways = [(each, words, value) for each, words, value in ways if (name, each, words) not in AS_COMFYUI]

    @settings(max_examples=TRIES, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck])
    @given(st.sampled_from(ways))
    def holds(way):
        each, words, value = way
        complaint, problem = tried(prompt(name, inputs | {each: value}, info))
        assert not problem, f"{each}: {words}: {problem}\n{complaint}"
        named = re.search(rf"\b{each}\b", complaint)
        assert named or not complaint, f"{each}: {words}: refused without its name\n{complaint}"

    holds()
