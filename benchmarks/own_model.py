"""A model of your own, measured in parts: what it is, its register, and what the techniques cost and do on it.

    python benchmarks/own_model.py --comfyui DIR --checkpoint FILE --part NAME [--out FOLDER]

``python3 host.py report --checkpoint FILE`` runs all parts and makes one page of them. Every row that was measured is
kept at once: a part that fails or is stopped shows the rows it has, and goes on with the others. Clips are those of the
first seeds, unselected.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from claims import Claim, Cost, Table, Use, estimate, number, shown
from figures import sheet
from harness import MIB, RECORDS, Json, Records, command_line, pack, strip
from own_parts import (
    COST_STEPS,
    DEFAULTS,
    EDIT,
    MEASURES,
    PARTS,
    PLAIN_CFG,
    TARGET,
    ZS2,
    Study,
    scaled,
)
from torch import Tensor
from users_model import UnusableError, begin, is_out_of_memory, reason_of
from ways import KL, MU, PLAIN, SCALE

SHOWN = 8
"""Frames of a clip on a contact sheet."""
SHEET = "clips.jpg"


# Measuring -----------------------------------------------------------------------------------------------------------


def guarded(measure: Callable[[], Json]) -> Json:
    """What is measured, or why it is not: the other rows go on."""
    import comfy.model_management as management

    try:
        return measure()
    except Exception as error:
        reason = reason_of(error)
    management.soft_empty_cache()
    return {"reason": reason}


def forget_failed(folder: Path) -> None:
    """So that a run that goes on tries again what was not measured."""
    path = folder / RECORDS
    if path.exists():
        lines = path.read_text("utf-8").splitlines(keepends=True)
        kept = [each for each in lines if each.endswith("\n") and "reason" not in json.loads(each)]
        path.write_text("".join(kept), "utf-8")


def main() -> None:
    parser = command_line(__doc__, "minutes", rounds=(0, "of costs, in which all take turns (default: the budget's)"))
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--budget", choices=[*DEFAULTS], default="quick")
    pack("hosting.report").add_model_options(parser)
    asked = parser.parse_args()
    if not asked.checkpoint:
        raise UnusableError("--checkpoint is missing: name the file of a model.")
    begin(asked)
    forget_failed(asked.out)
    whole = vars(asked)
    settings = {key: str(whole[key]) for key in whole if key not in ("out", "minutes", "comfyui", "threads")}
    records = Records(asked.out, settings)
    try:
        with torch.inference_mode():
            study = Study(asked)
            wanted = ((key, partial(guarded, measure)) for key, measure in getattr(study, asked.part)())
            rows = [*records.take(wanted, asked.minutes)]
    except Exception as error:
        if is_out_of_memory(error):
            raise UnusableError(f"{reason_of(error)}.") from error
        raise
    if asked.part in ("zs2", "guidance", "edit"):
        contact_sheet(asked.out, rows, study.users.frames)
    if reasons := [row["reason"] for row in rows if "reason" in row]:
        print(*reasons, sep="\n", flush=True)
        if len(reasons) == len(rows):
            raise UnusableError(reasons[0])


def contact_sheet(folder: Path, rows: list[Json], frames: int) -> None:
    """Frames of every clip of every seed, evenly chosen."""
    chosen = torch.linspace(0, frames - 1, min(frames, SHOWN)).round().long().tolist()
    blocks: dict[int, dict[str, list[Tensor]]] = {}
    for row in rows:
        path = folder / f"{row.get('seed', 0):02}" / f"{row.get('way')}.png"
        if path.exists():
            clip = strip(path, frames=frames)
            blocks.setdefault(row["seed"], {})[row["way"]] = [clip[place] for place in chosen]
    if blocks:
        drawn = [(f"seed {seed}", clips) for seed, clips in blocks.items()]
        sheet(drawn, [f"frame {place}" for place in chosen], side=112).save(folder / SHEET, quality=88)


# Telling -------------------------------------------------------------------------------------------------------------


def told_model(records: list[Json]) -> list[Table]:
    rows = records[0].get("rows", {}) if records else {}
    return [Table(("", ""), tuple(rows.items()))] if rows else []


def told_register(records: list[Json]) -> list[Table]:
    layers = [each for record in records for each in record.get("layers", [])]
    header = ("layer", "kind", "heads", "keys", "entropy", "energy, from uniform (0) to identity (1)")
    rows = [
        (name, kind, str(heads), str(keys), f"{entropy:.4f}", number(energy, ".3f"))
        for name, kind, heads, keys, entropy, energy in sorted(layers, key=lambda layer: -layer[4])
    ]
    return [Table(header, tuple(rows), note="Sorted by entropy; means over all steps.")] if rows else []


def told_costs(records: list[Json]) -> list[Table | Cost]:
    """Beside plain sampling, which ran in turns with each."""
    header = ("what", "time, of plain sampling", "seconds a run", "peak memory (MiB)", "plain sampling’s")
    rows, found, gpu = [], [], False
    for record in records:
        if "seconds" not in record:
            rows.append((record["key"], f"not measured: {record['reason']}", "", "", ""))
            continue
        way, plain = (torch.tensor(record["seconds"][each]).double() for each in ("way", "plain"))
        gpu = record["on_gpu"]
        most = (record["memory"][each][1] - (0 if gpu else record["memory"][each][0]) for each in ("way", "plain"))
        ratio = shown(estimate(way / plain, np.median), ".2f")
        found.append(Cost(f"{record['key']}, of plain sampling", ratio))
        rows.append((record["key"], ratio, f"{median(way.tolist()):.2f}", *(f"{each / MIB:.0f}" for each in most)))
    what = "held on the GPU" if gpu else "by which the process grew (resident memory)"
    clock = "synchronised" if gpu else "of the processor"
    note = f"Runs of {COST_STEPS} steps; times {clock}; memory is what was {what} at most."
    return [Table(header, tuple(rows), note=note), *found] if rows else []


def told_clips(records: list[Json]) -> list[Table]:
    """The mean over seeds, with its interval where there are several."""
    done = [record for record in records if "way" in record]
    names = [name for name in MEASURES if any(name in record for record in done)]
    rows = [
        (way, *(_cell([each[name] for each in group if name in each], MEASURES[name][1]) for name in names))
        for way, group in _by_way(done)
    ]
    failed = [
        (record["key"], f"not measured: {record['reason']}", *[""] * (len(names) - 1))
        for record in records
        if "reason" in record
    ]
    header = ("", *(MEASURES[name][0] for name in names)) if names else ("", "")
    return [Table(header, (*rows, *failed))] if rows or failed else []


def _by_way(records: list[Json]) -> Iterator[tuple[str, list[Json]]]:
    for way in dict.fromkeys(record["way"] for record in records):
        yield way, [record for record in records if record["way"] == way]


def _cell(values: list[float], form: str) -> str:
    found = estimate(torch.tensor(values, dtype=torch.float64))
    return shown(found, form) if len(values) > 1 else number(found.value, form)


def gain(records: list[Json], way: str, other: str, name: str) -> Tensor:
    """Of ``way`` over ``other`` by a figure, seed by seed where both were drawn."""
    by = {(record["way"], record["seed"]): record[name] for record in records if name in record}
    seeds = [seed for drawn, seed in by if drawn == way and (other, seed) in by]
    return torch.tensor([by[way, seed] - by[other, seed] for seed in seeds], dtype=torch.float64)


def told_zs2(records: list[Json]) -> list[Table | Claim]:
    settings = f"kl {KL:g}, mu {MU:g}"
    use = Use("less flicker", "Dependency Noise, Temporal Momentum Attention", settings, "momentum attention (ZS²)")
    text, figure = "ZS² is steadier than plain sampling", "SSIM of neighbouring frames, less that of plain sampling"
    return [*told_clips(records), *_used(text, figure, gain(records, ZS2, PLAIN, "ssim"), use)]


def told_guidance(records: list[Json]) -> list[Table | Claim]:
    settings = f"U-I, scale {SCALE:g}, the layer of highest entropy"
    use = Use("sharper pictures", "IE Guidance", settings, "guidance U−I (IE-Adapt)")
    found = gain(records, scaled(SCALE), PLAIN_CFG, "sharpness")
    return [*told_clips(records), *_used("Guided clips are sharper", "sharpness, less that of plain CFG", found, use)]


def told_edit(records: list[Json]) -> list[Table | Claim]:
    settings = "map, the half of the layers of lowest entropy"
    use = Use("an edit that keeps layout and motion", "Entropy-Guided Edit", settings, "edit: target and source")
    text, figure = "The edit keeps more of its source", "SSIM to the source, less that of the target prompt alone"
    return [*told_clips(records), *_used(text, figure, gain(records, EDIT, TARGET, "kept"), use)]


def _used(text: str, figure: str, found: Tensor, use: Use) -> list[Claim]:
    return [Claim.of("", text, figure, found, "+.3f", 1, is_papers=False, use=use)] if len(found) else []


if __name__ == "__main__":
    main()
