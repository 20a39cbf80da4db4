"""Write down what runs made: their files in a folder each, and their lines in the manifest."""

import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .figures import figures_of
from .manifest import DONE, FAILED, Manifest, to_json, write_whole
from .schedule import Outcome
from .variations import Run, title
from .workers import Result

_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


class Recorder:
    """Keeps the manifest of a batch in ``folder``."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.manifest, self.folder = manifest, folder

    def begin(self, run: Run, worker: str, prompt_id: str) -> None:
        """Note that a server is about to get a run."""
        self.manifest.add("begun", key=run.key, run=run.number, server=worker, prompt_id=prompt_id)

    def end(self, outcome: Outcome) -> dict[str, Any]:
        """Save what a run made, then note that it has ended; returns what was noted."""
        run, result = outcome.run, outcome.result
        record: dict[str, Any] = {
            "key": run.key,
            "run": run.number,
            "label": run.label,
            "status": DONE if result else FAILED,
            "values": run.values,
            "seeds": run.seeds,
            "server": outcome.worker,
            "prompt_id": outcome.prompt_id,
            "attempts": outcome.attempts,
            "begun": datetime.fromtimestamp(outcome.begun, timezone.utc).isoformat(timespec="milliseconds"),
            "waited": round(outcome.waited, 3),
        }
        if result:
            record["seconds"] = round(result.seconds, 3)
            record["files"] = self._save(run, result)
            record["texts"] = {_name(run, node): text for node, text in result.texts.items()}
            record["figures"] = figures_of(record, self.folder)
        else:
            record["error"] = outcome.error
        self.manifest.add("finished", **record)
        return record

    def _save(self, run: Run, result: Result) -> list[dict[str, Any]]:
        folder = self.folder / f"{run.number:04d}_{run.key[:8]}"
        folder.mkdir(exist_ok=True)
        write_whole(folder / "prompt.json", to_json(run.prompt, indent=1))
        taken, saved = {"prompt.json"}, []
        # In the prompt's order: the server lists first what it remembered, so the first clip would change between runs.
        places = {node: place for place, node in enumerate(run.prompt)}
        for file in sorted(result.files, key=lambda file: places.get(file.node, len(places))):
            name = safe_name(file.filename)
            if name in taken:
                name = f"{safe_name(file.node)}_{file.kind}_{name}"
            taken.add(name)
            write_whole(folder / name, file.data)
            path = (folder / name).relative_to(self.folder).as_posix()
            told = {"node": file.node, "title": title(run.prompt, file.node) if file.node in run.prompt else ""}
            saved.append({"path": path, "bytes": len(file.data), "kind": file.kind, **told})
        return saved


def safe_name(filename: str) -> str:
    """A name that stays in its folder on every system."""
    name = _UNSAFE.sub("_", re.split(r"[/\\]", filename)[-1]).strip(". ")
    return name or "file"


def _name(run: Run, node: str) -> str:
    """A node's title, with its id where others have the same."""
    if node not in run.prompt:
        return node
    titles = [title(run.prompt, other) for other in run.prompt]
    own = title(run.prompt, node)
    return own if titles.count(own) == 1 else f"{own} ({node})"
