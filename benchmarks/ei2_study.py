"""One-shot tuning, then editing, at toy scale: is EI²'s STAM better than Tune-A-Video, and either than nothing?

    python benchmarks/ei2_study.py --comfyui DIR --out FOLDER [--clips 8] [--steps 60] [--rate 1e-3] [--publish]

The demo model, which draws pictures, is tuned on one rendered clip of a shape that slides, turns or grows. The clip is
inverted (DDIM, no filter, refined) on the tuned model, and drawn again from that noise with another colour, another
shape and another background, each alone. Prompts leave size and place open: where things are, and how they move, has to
come from the noise and from what was tuned. The renderer draws the ideal edit, too: the new scene in the same motion.

Ways: *untuned*, the plain model; *untuned, fine-coarse*, with EI²'s frame attention and nothing tuned; *Tune-A-Video*;
*STAM*, with fine-coarse frame attention; *STAM, cross_map*, with the source's cross-attention maps (Prompt-to-Prompt).

Measured: the share of colour, shape and background that is as asked, and of what was to change alone; how far the
shape's centre is from the ideal's, and how much the shapes overlap (IoU); the SSIM to the ideal; the error between
neighbouring frames, warped along their own motion; and the share of neighbours that show the same three attributes.
95% bootstrap intervals over clips. FOLDER keeps what was tuned and drawn: an interrupted study goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from claims import Claim, Use
from ei2_bench import CHANGES, Bench, Clip, Target, options
from figures import claims_table, means, publish, rows_chart, sheet
from harness import Json, Records, pack, strip
from power import worth
from torch import Tensor

NAME = "ei2_study"
STEPS, CFG, REFINED = 12, 3.0, 1
SCHEDULER = "karras"
WAYS = ("untuned", "untuned, fine-coarse", "Tune-A-Video", "STAM", "STAM, cross_map")


IDEAL = "the ideal edit"
MEASURES = {
    "obeys": ("obeys the prompt", ".1%"),
    "change": ("has what was to change", ".1%"),
    "track": ("centre off the ideal (pixels)", ".1f"),
    "iou": ("IoU with the ideal", ".3f"),
    "ssim": ("SSIM to the ideal", ".3f"),
    "warped": ("warped error of neighbours (10⁻³)", ".2f"),
    "steady": ("neighbours show the same", ".1%"),
}
PAIRS = (
    ("Tune-A-Video", "untuned"),
    ("STAM", "untuned"),
    ("STAM", "untuned, fine-coarse"),
    ("STAM", "Tune-A-Video"),
    ("STAM, cross_map", "STAM"),
)
"""Who is compared with whom, clip by clip."""
USES = (
    Use("an edit that stays in place", "one-shot tuning (STAM) and EntropyGuidedEdit", "replace cross_map"),
    Use("an edit in the clip's own motion", "one-shot tuning (STAM) in the place of the plain model", "strength 1"),
)
SHOWN = 4
"""Clips on the contact sheet: one of each motion."""


class Editor:
    """Inverts a clip and edits it."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.sigmas = bench, bench.sigmas(STEPS, SCHEDULER)
        self._begun: dict[str, tuple[Any, Tensor]] = {}
        """Model and inverted latents of one clip, by what was tuned."""

    def model(self, way: str, clip: Clip) -> Any:
        if way == "untuned":
            return self.bench.model
        if way == "untuned, fine-coarse":
            return self.bench.inflated("STAM", None)
        form = way.split(",")[0]
        return self.bench.inflated(form, self.bench.tuned(form, clip))

    def draw(self, way: str, clip: Clip, target: Target) -> Tensor:
        """The frames of an edit, (F, 128, 128, 3)."""
        encode = self.bench.encode
        key = f"{clip.number} {way if 'untuned' in way else way.split(',')[0]}"
        if key not in self._begun:
            model, how = self.model(way, clip), {"mode": "none", "refine_iterations": REFINED}
            start = self.bench.invert(model, clip.latent["samples"], clip.prompt, self.sigmas, **how)
            self._begun = {key: (model, start)}
        model, start = self._begun[key]
        if "cross_map" in way:
            from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

            prompts = map(encode, (clip.prompt, target.prompt, ""))
            begin = (Noise_EmptyNoise(), self.sigmas, {"samples": start})
            how = {"layers": "", "replace": "cross_map", "cfg": CFG, "source_cfg": 1.0}
            return self.bench.decode(self.bench.edit(model, prompts, begin, **how)[0])
        prompts = map(encode, (target.prompt, ""))
        return self.bench.decode(self.bench.redraw(model, start, self.sigmas, *prompts, CFG))


def measure(frames: Tensor, target: Target) -> dict[str, float]:
    """Figures of an edited clip (F, 128, 128, 3)."""
    reader, similarity = pack("demo.reader"), pack("metrics.similarity")
    reading, ideal = reader.read(frames), target.ideal
    right = reader.correct(reading, target.scene)
    shown = [tuple(getattr(scene, name) for name in CHANGES) for scene in reading.scenes]
    consistency = pack("metrics.consistency").temporal_consistency(frames)
    return {
        "obeys": torch.stack([right[name] for name in CHANGES]).float().mean().item(),
        "change": right[target.change].float().mean().item(),
        "track": (reading.centre - ideal.centre).norm(dim=-1).mean().item(),
        "iou": similarity.iou(reader.shape_mask(frames), ideal.mask > 0.5).mean().item(),
        "ssim": similarity.ssim(frames, ideal.frames).mean().item(),
        "warped": 1000 * consistency.warped_error.nanmean().item(),
        "steady": sum(a == b for a, b in pairwise(shown)) / (len(shown) - 1),
    }


def record(editor: Editor, folder: Path, number: int, names: tuple[str, ...] = WAYS) -> Json:
    """Way → change → figures of a clip; its frames stay in ``folder``."""
    clip = editor.bench.clip(number)
    targets = editor.bench.targets(clip)
    ways: Json = {way: {} for way in (*names, IDEAL)}
    for way, of_way in ways.items():
        for target in targets:
            draw: Callable[[], Tensor] = partial(editor.draw, way, clip, target)
            if way == IDEAL:
                draw = partial(getattr, target.ideal, "frames")
            of_way[target.change] = measure(strip(folder / f"{way} {target.change}.png", draw), target)
    strip(folder / "source.png", lambda: clip.frames)
    prompts = {target.change: target.prompt for target in targets}
    return {"motion": clip.motion, "prompt": clip.prompt, "prompts": prompts, "ways": ways}


def values(records: list[Json], way: str, measure: str, changes: tuple[str, ...] = CHANGES) -> Tensor:
    """(clips, changes)."""
    return torch.tensor([[record["ways"][way][change][measure] for change in changes] for record in records])


def gain(records: list[Json], pair: tuple[str, str], measure: str) -> Tensor:
    way, other = pair
    return values(records, way, measure) - values(records, other, measure)


def claims(records: list[Json]) -> list[Claim]:
    """Clips that were tuned on, inverted and edited."""

    def claim(
        text: str, way: str, other: str, name: str, sign: int, is_papers: bool = True, use: Use | None = None
    ) -> Claim:
        title, form = MEASURES[name]
        figure, where = f"{title}, “{way}” less “{other}”", "B.2" if is_papers else ""
        how = {"is_papers": is_papers, "worth": worth(name), "use": use}
        return Claim.of(where, text, figure, gain(records, (way, other), name), "+" + form, sign, **how)

    tav, mapped = "Tune-A-Video", "STAM, cross_map"
    return [
        claim("EI² surpasses Tune-A-Video in textual alignment", "STAM", tav, "obeys", 1),
        claim("EI² surpasses Tune-A-Video in temporal consistency", "STAM", tav, "warped", -1),
        claim("EI² surpasses Tune-A-Video in temporal consistency", "STAM", tav, "steady", 1),
        claim("P2P with EI² preserves structure better", mapped, "STAM", "iou", 1, use=USES[0]),
        claim("P2P with EI² makes results more stable", mapped, "STAM", "warped", -1),
        claim("P2P with EI² makes results more stable", mapped, "STAM", "steady", 1),
        claim("tuning on a clip keeps its motion", "STAM", "untuned", "track", -1, is_papers=False, use=USES[1]),
        claim("STAM keeps it better than Tune-A-Video", "STAM", tav, "track", -1, is_papers=False),
    ]


def main() -> None:
    arguments = options(__doc__, clips=8).parse_args()
    bench = Bench(arguments)
    editor, folder = Editor(bench), arguments.out / NAME
    kept = Records(folder, {"steps": STEPS, "cfg": CFG, "refined": REFINED, "scheduler": SCHEDULER})
    with torch.inference_mode():
        numbers = range(arguments.clips)
        wanted = ((f"{each:02}", partial(record, editor, folder / f"{each:02}", each)) for each in numbers)
        records = list(kept.take(wanted, arguments.minutes))
    ways = list(records[0]["ways"])
    pairs = {f"{way} less {other}": (way, other) for way, other in PAIRS}
    differences = means(
        pairs, MEASURES, lambda pair, name: gain(records, pairs[pair], name), "clip by clip", gains=True
    )
    parts = [
        f"**{len(records)} clips, three edits each**",
        means(ways, MEASURES, partial(values, records)),
        differences,
    ]
    by_change = {change: partial(values, records, changes=(change,)) for change in CHANGES}
    for change, of in by_change.items():
        parts += [f"**New {change}**", means(ways, MEASURES, of)]
    chart = rows_chart(
        "One clip tuned, then edited",
        "Means with 95% intervals. Off the ideal and warped error: lower is better; all else: higher.",
        ways,
        MEASURES,
        {f"new {change}": of for change, of in by_change.items()},
    )
    blocks = []
    for number, each in enumerate(records[:SHOWN]):
        change, place = CHANGES[number % len(CHANGES)], folder / each["key"]
        drawn = {way: strip(place / f"{way} {change}.png") for way in ways}
        said = f"“{each['prompt']}”\n→ “{each['prompts'][change]}”"
        blocks.append((said, {"source": strip(place / "source.png"), **drawn}))
    text = "\n\n".join([claims_table(claims(records)), *parts])
    print(publish(NAME, folder, arguments.publish, text, chart, sheet(blocks)))


if __name__ == "__main__":
    main()
