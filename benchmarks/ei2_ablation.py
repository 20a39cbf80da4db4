"""EI²'s ablation at toy scale: STAM and FFAM, each without the other, and STAM after cross-attention.

    python benchmarks/ei2_ablation.py --comfyui DIR --out FOLDER [--clips 6] [--steps 60] [--rate 1e-3] [--publish]

As :mod:`ei2_study`, whose FOLDER it goes on with: the same clips, edits and measures, and what was tuned and drawn
there is used again. *FFAM alone* has Tune-A-Video's temporal attention in the place of STAM, *STAM alone* its
sparse-causal attention in the place of FFAM; *STAM* has both.
"""

from __future__ import annotations

from functools import partial

import torch
from claims import Claim
from ei2_bench import ABLATED, Bench, options
from ei2_study import CFG, MEASURES, REFINED, SCHEDULER, STEPS, Editor, gain, record, values
from figures import claims_table, means, publish
from harness import Json, Records
from power import worth

NAME, STUDY = "ei2_ablation", "ei2_study"
BOTH, (FFAM, STAM, AFTER) = "STAM", ABLATED
WAYS = (BOTH, *ABLATED)
PAIRS = ((BOTH, FFAM), (BOTH, STAM), (BOTH, AFTER))


def claims(records: list[Json]) -> list[Claim]:
    """Clips that were tuned on, inverted and edited."""

    def claim(text: str, where: str, pair: tuple[str, str], name: str, sign: int) -> Claim:
        title, form = MEASURES[name]
        figure = f"{title}, “{'STAM and FFAM' if pair[0] == BOTH else pair[0]}” less “{pair[1]}”"
        least = worth(name)
        how = {"worth": least} if sign else {"tolerance": least}
        return Claim.of(where, text, figure, gain(records, pair, name), "+" + form, sign, **how)

    of = {"textual alignment": (("obeys", 1),), "temporal consistency": (("warped", -1), ("steady", 1))}
    found = [
        claim(f"{module} facilitates {aim}", "B.2", (BOTH, without), name, sign)
        for module, without in (("STAM", FFAM), ("FFAM", STAM))
        for aim, names in of.items()
        for name, sign in names
    ]
    text = "STAM before or after cross-attention: the order has subtle effects"
    return found + [claim(text, "B.1", (BOTH, AFTER), name, 0) for name in ("obeys", "ssim", "iou")]


def main() -> None:
    arguments = options(__doc__, clips=6).parse_args()
    bench = Bench(arguments)
    editor, folder = Editor(bench), arguments.out / NAME
    kept = Records(folder, {"steps": STEPS, "cfg": CFG, "refined": REFINED, "scheduler": SCHEDULER, "ways": WAYS})
    with torch.inference_mode():
        wanted = (
            (f"{each:02}", partial(record, editor, arguments.out / STUDY / f"{each:02}", each, WAYS))
            for each in range(arguments.clips)
        )
        records = list(kept.take(wanted, arguments.minutes))
    pairs = {f"{way} less {other}": (way, other) for way, other in PAIRS}
    differences = means(
        pairs, MEASURES, lambda pair, name: gain(records, pairs[pair], name), "clip by clip", gains=True
    )
    parts = [claims_table(claims(records)), means(list(records[0]["ways"]), MEASURES, partial(values, records))]
    print(publish(NAME, folder, arguments.publish, "\n\n".join([*parts, differences])))


if __name__ == "__main__":
    main()
