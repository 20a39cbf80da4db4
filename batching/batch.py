"""A whole batch: everything is checked, then run, then drawn."""

import argparse
import copy
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..client.errors import ComfyError
from ..client.server import AWAY, Json, RunningServer
from ..client.workflow import read_workflow, to_prompt
from .cli import DEFAULT_SERVER
from .figures import STEADINESS, figures_of
from .manifest import DONE, FAILED, Manifest, open_manifest
from .pictures import missing
from .progress import Progress
from .ray_workers import connect, ray_workers
from .recorder import Recorder
from .schedule import Job, Outcome, Schedule
from .tables import Row, read_table
from .variations import Run, doubtful_choices, make_runs, require_nodes
from .workers import ServerWorker, Worker


def batch(arguments: argparse.Namespace) -> int:
    """Check everything, run what is not finished, draw what can be compared."""
    _require_sense(arguments)
    workflow = read_workflow(arguments.workflow)
    rows = read_table(arguments.table)
    out = (arguments.out or Path(f"batch-{arguments.table.stem}")).absolute()
    with open_manifest(out) as manifest, _servers(arguments) as servers:
        runs = _checked_runs(workflow, rows, servers)
        if len(runs) < len(rows):
            print(f"batch: {len(rows) - len(runs)} rows ask for the same as others and are left out", file=sys.stderr)
        if arguments.dry_run:
            _list_runs(runs, manifest)
            return 0
        if lacking := missing("PIL", "numpy", "av", "matplotlib"):
            print(
                f"batch: this Python lacks {', '.join(lacking)}, so not all can be measured and drawn. Install them, "
                "or run the same command with ComfyUI's Python afterwards.",
                file=sys.stderr,
            )
        recorder = Recorder(manifest, out)
        asked = {"workflow": str(arguments.workflow), "table": str(arguments.table), "runs": len(runs)}
        manifest.add("batch", **asked, servers=[server.worker.name for server in servers])
        _run(runs, servers, recorder, arguments)
    return _report(runs, manifest, out)


def _require_sense(arguments: argparse.Namespace) -> None:
    if arguments.comfyui and not arguments.ray:
        raise ComfyError("--comfyui is for workers of Ray: add --ray, or start ComfyUI and name it with --server.")
    if arguments.comfyui and arguments.server:
        raise ComfyError("Workers start a ComfyUI of --comfyui or use those of --server: give one of the two.")
    if not arguments.comfyui and (arguments.python or arguments.comfyui_arguments):
        raise ComfyError("--python and --comfyui-arguments are for the ComfyUI that --comfyui starts: give that too.")
    if arguments.workers is not None and (not arguments.comfyui or not arguments.workers):
        raise ComfyError("--workers says how many start a ComfyUI of --comfyui, at least 1: give that too.")


@dataclass(frozen=True)
class _Server:
    worker: Worker
    object_info: Json


@contextmanager
def _servers(arguments: argparse.Namespace) -> Iterator[list[_Server]]:
    """All workers with what their servers offer; ComfyError names one that does not answer."""
    urls = list(dict.fromkeys(RunningServer(url).url for url in arguments.server or [DEFAULT_SERVER]))
    if arguments.ray:
        ray = connect(arguments.ray)
        count, more = arguments.workers or 2, shlex.split(arguments.comfyui_arguments)
        try:
            workers = ray_workers(ray, urls, arguments.comfyui, arguments.python, more, count)
            for worker in workers:
                about = worker.about()
                process = f", process {about['pid']}" if about["pid"] else ""
                print(f"batch: {worker.name} of Ray has {about['url']}{process}", file=sys.stderr)
            try:
                yield [_Server(worker, worker.object_info()) for worker in workers]
            finally:
                for worker in workers:
                    worker.close()
        finally:
            ray.shutdown()
        return
    found = []
    for url in urls:
        server = RunningServer(url)
        if not server.is_there():
            raise ComfyError(f"No ComfyUI answers at {url}. Start it, or name another with --server URL.")
        try:
            found.append(_Server(ServerWorker(server, len(urls) > 1), server.object_info()))
        except AWAY as error:
            raise ComfyError(f"{url} went away when it was asked for its nodes: {error}.") from error
    yield found


def to_api(workflow: Any, object_info: Json) -> Json:
    """The prompt in a workflow of either format."""
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        prompt = to_prompt(workflow, object_info)
    elif isinstance(workflow, dict) and all(
        isinstance(node, dict) and "class_type" in node for node in workflow.values()
    ):
        prompt = {key: node | {"inputs": node.get("inputs") or {}} for key, node in copy.deepcopy(workflow).items()}
    else:
        raise ComfyError(
            "This JSON is not a workflow: expected what ComfyUI's canvas saves (nodes and links), or what it exports "
            "as API (node ids with class_type and inputs)."
        )
    if not prompt:
        raise ComfyError("The workflow is empty: it has no node that runs.")
    return prompt


def _checked_runs(workflow: Any, rows: Sequence[Row], servers: Sequence[_Server]) -> list[Run]:
    """The runs, held against what every server offers."""
    prompt = to_api(workflow, servers[0].object_info)
    runs: list[Run] = []
    for server in servers:
        try:
            require_nodes(prompt, server.object_info)
            made = make_runs(prompt, rows, server.object_info)
        except ComfyError as error:
            raise ComfyError(f"{server.worker.name}: {error}" if len(servers) > 1 else str(error)) from error
        for doubt in doubtful_choices(prompt, server.object_info):
            print(f"batch: {server.worker.name} may refuse the workflow: {doubt}", file=sys.stderr)
        runs = runs or made
    return runs


def _list_runs(runs: Sequence[Run], manifest: Manifest) -> None:
    for run in runs:
        state = manifest.finished[run.key]["status"] if manifest.is_finished(run.key) else "to be run"
        print(f"{run.number:>4}  {run.key}  {run.label}: {state}")


def _run(runs: Sequence[Run], servers: Sequence[_Server], recorder: Recorder, arguments: argparse.Namespace) -> None:
    manifest = recorder.manifest
    jobs = []
    for run in runs:
        record = manifest.finished.get(run.key)
        if manifest.is_finished(run.key) and not (arguments.retry_failed and record and record["status"] == FAILED):
            continue
        if record and record["status"] == DONE:
            print(f"batch: files of run {run.number} are missing: it is made again", file=sys.stderr)
        jobs.append(_job(run, manifest, servers))
    progress = Progress(len(runs), len(runs) - len(jobs))
    if len(jobs) < len(runs):
        progress.say(f"{len(runs) - len(jobs)} of {len(runs)} runs are finished already")
    workers = [server.worker for server in servers]

    def on_end(outcome: Outcome) -> None:
        progress.ended(recorder.end(outcome), schedule)

    schedule = Schedule(jobs, workers, recorder.begin, on_end, progress.say, arguments.retries, arguments.wait)
    if jobs:
        try:
            schedule.run(lambda: progress.look(schedule))
        except OSError as error:
            raise ComfyError(f"What was made cannot be written to {recorder.folder}: {error}.") from error
        except KeyboardInterrupt:
            for activity in schedule.stopped:
                manifest.add("stopped", key=activity.job.run.key)  # it is not to be waited for later
            raise
        finally:
            progress.close()


def _job(run: Run, manifest: Manifest, servers: Sequence[_Server]) -> Job:
    """A job; if a batch that crashed had begun it, and the server still has it, it is waited for."""
    begun, ended = manifest.begun.get(run.key), manifest.finished.get(run.key)
    if begun and not (ended and ended["prompt_id"] == begun["prompt_id"]):
        for server in servers:
            if server.worker.name == begun["server"] and server.worker.knows(begun["prompt_id"]):
                return Job(run, begun["prompt_id"], server.worker.name)
    return Job(run)


def _report(runs: Sequence[Run], manifest: Manifest, out: Path) -> int:
    """Draw and say what came of it."""
    records = []
    for run in runs:
        # Named and numbered by the table as it is now.
        record = manifest.finished[run.key] | {"run": run.number, "label": run.label, "values": run.values}
        if record["status"] == DONE and STEADINESS not in record["figures"]:
            record["figures"] = figures_of(record, out)  # it may have been run by a Python without the packages
        records.append(record)
    failed = [record for record in records if record["status"] == FAILED]
    print(f"{len(records) - len(failed)} of {len(records)} runs are done.")
    for record in failed:
        print(f"  failed: {record['run']} ({record['label']}): {record['error']}")
    print(f"Manifest:       {manifest.path}")
    if missing("PIL"):
        print("Contact sheet:  none: pip install pillow, and run the same command again")
    else:
        from .sheet import draw_sheets

        for path in draw_sheets(records, out):
            print(f"Contact sheet:  {path}")
    if missing("matplotlib"):
        print("Comparison:     none: pip install matplotlib, and run the same command again")
    else:
        from .plot import draw_plot

        plot = draw_plot(records, out)
        print(f"Comparison:     {plot or 'none: it takes two runs that are done'}")
    return 1 if failed else 0
