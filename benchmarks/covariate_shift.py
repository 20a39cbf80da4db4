"""EI²'s argument at toy scale: does tuning move the features less with STAM than with plain temporal attention?

    python benchmarks/covariate_shift.py --comfyui DIR --out FOLDER [--clips 6] [--steps 60] [--rate 1e-3] [--publish]

The demo model is inflated and tuned on one rendered clip, in every form with the same steps, rate and seed. The clip is
then noised to three levels, twice, with noise that tuning has not seen, and goes once through the model as it was
before tuning and as it is after. Of the features x (frames × positions, channels) at every layer: by how much do their
mean and their covariance differ, ‖Δμ‖/‖μ‖ and ‖ΔΣ‖/‖Σ‖ (Frobenius norm), where the inserted module has added its own
(*module*), and where the next layers take over (*layer*)? *Alone* is what the module does to its own input, in the
paper's terms: means and covariances over frames, position by position (supplement, A.4 and A.5).

*Plain temporal* is EI²'s form with Tune-A-Video's module in the place of STAM. *W_q alone* has the tuned W_q of a form,
and its modules as they were before tuning (Proposition 2). A form that learns little shifts little, so the squared
error of the noise on the clip is beside the shifts. FOLDER keeps what was tuned and measured. 95% bootstrap intervals
over clips.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from ei2_bench import FORMS, Bench, Budget, Clip, remember
from studies import COLOURS, PICTURES, bootstrap, markdown, pack, shown, slim
from torch import Tensor, nn

NAME = "covariate_shift"
LEVELS = (0.2, 0.5, 0.8)
"""Shares of sampling, from pure noise."""
NOISES = 2
POINTS = {"module": "where the module adds", "layer": "where the next layers take over", "alone": "the module alone"}
QUERIES = "{}, W_q alone"
WAYS = (*FORMS, QUERIES.format("Tune-A-Video"), QUERIES.format("STAM"))
Json = dict[str, Any]


# The mathematics -----------------------------------------------------------------------------------------------------


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (…, channels) and covariance (…, channels, channels) of ``x`` (…, rows, channels), in float64."""
    x = x.double()
    mean = x.mean(-2)
    centred = x - mean[..., None, :]
    return mean, centred.mT @ centred / x.shape[-2]


def shift(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """‖Δμ‖/‖μ‖ and ‖ΔΣ‖/‖Σ‖, the Frobenius norm, of :func:`moments`; of several, the ratio of the mean norms."""
    (mean, cov), (new_mean, new_cov) = before, after
    moved = (new_mean - mean).norm(dim=-1).mean() / mean.norm(dim=-1).mean()
    spread = torch.linalg.matrix_norm(new_cov - cov).mean() / torch.linalg.matrix_norm(cov).mean()
    return moved.item(), spread.item()


# Looking into the model ----------------------------------------------------------------------------------------------


@contextmanager
def watching(model: Any) -> Iterator[dict[str, list[Tensor]]]:
    """``<place> in`` and ``<place> module``: before and after the inserted module, (frames, positions, channels);
    ``<place> layer``: what leaves the layer's transformer, likewise. A list of one for every call."""
    inflation = pack("attention.inflation")
    options, seen = model.model_options["transformer_options"], {}

    def keep(name: str, x: Tensor) -> None:
        seen.setdefault(name, []).append(x.detach().float())

    def module_hook(place: str):
        def hook(_module: nn.Module, args: tuple, added: Tensor) -> None:
            keep(f"{place} in", args[0])
            keep(f"{place} module", args[0] + added)

        return hook

    def layer_hook(place: str):
        return lambda _module, _args, out: keep(f"{place} layer", out.flatten(2).mT)

    owners = {
        block: each
        for each in model.model.diffusion_model.modules()
        for block in getattr(each, "transformer_blocks", ())
    }
    with ExitStack() as stack:
        for layer in inflation.transformer_layers(model, "*"):
            handle = owners[layer.block].register_forward_hook(layer_hook(layer.place))
            stack.callback(handle.remove)
        for each in inflation.inflations_of(options):
            for name, module in each.modules.items():
                place, what = name.rsplit(".", 1)
                if what == each.name:
                    stack.callback(module.register_forward_hook(module_hook(place)).remove)
        yield seen


def look(bench: Bench, model: Any, clip: Clip, share: float) -> tuple[dict[str, Tensor], float]:
    """What is seen at a noise level, (noises, frames, positions, channels), and the squared error of ε."""
    from comfy.samplers import CFGGuider, Sampler

    errors: list[float] = []

    class Once(Sampler):
        """One call for every noise, in the place of sampling."""

        def sample(self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=0):
            sampling = guider.inner_model.model_sampling
            sigma = sampling.percent_to_sigma(share)
            for number in range(NOISES):
                generator = torch.Generator().manual_seed(10_000 + number)
                noise = torch.randn(latent_image.shape, generator=generator)
                level = torch.full((len(noise),), sigma)
                noised = sampling.noise_scaling(level.reshape(-1, 1, 1, 1), noise, latent_image, False)
                denoised = guider(noised, level, **extra_args)
                errors.append(((denoised - latent_image) / sigma).square().mean().item())
            return latent_image

    guider = CFGGuider(model)
    guider.inner_set_conds({"positive": bench.encode(clip.prompt)})
    samples = clip.latent["samples"]
    with watching(model) as seen:
        guider.sample(torch.zeros_like(samples), samples, Once(), torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
    return {name: torch.stack(each) for name, each in seen.items()}, sum(errors) / len(errors)


def compare(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, dict[str, tuple[float, float]]]:
    """Point → layer → :func:`shift`."""
    found: dict[str, dict[str, tuple[float, float]]] = {point: {} for point in POINTS}
    for name, x in after.items():
        place, point = name.split(" ")
        if point in POINTS:
            pooled = (moments(each.flatten(0, 2)) for each in (before[name], x))
            found[point][place] = shift(*pooled)
        if point == "module":
            over_frames = (moments(each.transpose(-3, -2)) for each in (after[f"{place} in"], x))
            found["alone"][place] = shift(*over_frames)
    return found


# The study -----------------------------------------------------------------------------------------------------------


def ways_of(bench: Bench, clip: Clip) -> Iterator[tuple[str, Any, Any]]:
    """Name of the way, the model before tuning, and the one after."""
    forms, tuned = pack("attention.forms"), {}
    for name in FORMS:
        tuned[name] = bench.tuned(name, clip)
        yield name, bench.inflated(name, None), bench.inflated(name, tuned[name])
    for name in ("Tune-A-Video", "STAM"):
        weights, form = tuned[name], bench.form(name)
        fresh = forms.modules_for(
            form, forms.transformer_layers(bench.model, "*"), None, torch.Generator().manual_seed(0), False, {}
        )
        modules = {f"{at}.{key}": x for at, module in fresh.items() for key, x in module.state_dict().items()}
        only = forms.InflationWeights(form, weights.base, {**weights.tensors, **modules}, weights.steps, weights.frames)
        yield QUERIES.format(name), bench.inflated(name, None), bench.inflated(name, only)


def measure(bench: Bench, clip: Clip) -> Json:
    """Way → noise level → point → layer → shifts of mean and covariance, and errors before and after."""
    record: Json = {}
    for way, before, after in ways_of(bench, clip):
        record[way] = {}
        for share in LEVELS:
            (seen, error), (new, new_error) = (look(bench, model, clip, share) for model in (before, after))
            record[way][str(share)] = {"shift": compare(seen, new), "error": (error, new_error)}
    return record


def values(records: list[Json], way: str, point: str, which: int, layer: str | None = None) -> Tensor:
    """(clips, levels) shifts of mean (0) or covariance (1) at a layer, or their mean over layers."""
    rows = [[level["shift"][point] for level in record[way].values()] for record in records]
    of = (lambda places: places[layer][which]) if layer else (lambda p: sum(s[which] for s in p.values()) / len(p))
    return torch.tensor([[of(places) for places in row] for row in rows])


def errors(records: list[Json], way: str, which: int) -> Tensor:
    return torch.tensor([[level["error"][which] for level in record[way].values()] for record in records])


def tables(records: list[Json]) -> str:
    """All ways, means over layers and noise levels; then the paper's pair layer by layer."""
    header = ["tuned", *(f"‖Δ{s}‖/‖{s}‖ {words}" for words in POINTS.values() for s in "μΣ"), "error of ε, of 1 before"]
    rows = []
    for way in WAYS:
        shifts = [shown(bootstrap(values(records, way, point, which)), ".3f") for point in POINTS for which in (0, 1)]
        gain = errors(records, way, 1).mean(1) / errors(records, way, 0).mean(1)
        rows.append([way, *shifts, shown(bootstrap(gain), ".3f")])
    rival = "plain temporal"
    less = [
        [point, *(shown(bootstrap(ratio(records, "STAM", rival, key, which)), ".2f") for which in (0, 1))]
        for key, point in POINTS.items()
    ]
    by_layer = [
        [
            layer,
            *(
                shown(bootstrap(values(records, way, "layer", which, layer)), ".3f")
                for way in FORMS
                for which in (0, 1)
            ),
        ]
        for layer in layers_of(records)
    ]
    return "\n\n".join(
        [
            markdown(header, rows),
            f"STAM's shift over that of {rival}, clip by clip:",
            markdown(["", "mean", "covariance"], less),
            "Layer by layer, where the next layers take over:",
            markdown(["layer", *(f"‖Δ{s}‖/‖{s}‖ {way}" for way in FORMS for s in "μΣ")], by_layer),
        ]
    )


def ratio(records: list[Json], way: str, other: str, point: str, which: int) -> Tensor:
    one, two = (values(records, each, point, which).mean(1) for each in (way, other))
    return one / two


def layers_of(records: list[Json]) -> list[str]:
    return list(records[0]["STAM"][str(LEVELS[0])]["shift"]["layer"])


def chart(records: list[Json]) -> Any:
    """Shifts of mean and covariance by layer, where the module adds and where the next layers take over."""
    charts = pack("nodes.charts")
    figure = charts.new_figure(
        "How far one-shot tuning moves the features",
        f"Means over {len(records)} clips and {len(LEVELS)} noise levels with 95% intervals. Lower: closer to the "
        "features before tuning.",
    )
    layers, first = layers_of(records), None
    for column, (point, what) in enumerate((p, w) for p in ("module", "layer") for w in (0, 1)):
        axes = figure.add_axes((0.05 + 0.24 * column, 0.2, 0.22, 0.56), sharey=first)
        first = first or axes
        charts.style_axes(axes, "‖Δμ‖ / ‖μ‖" if what == 0 else "‖ΔΣ‖ / ‖Σ‖", "", "", POINTS[point])
        for number, way in enumerate(FORMS):
            found = [bootstrap(values(records, way, point, what, layer)) for layer in layers]
            x = [place + 0.12 * (number - 1.5) for place in range(len(layers))]
            bars = [[max(0.0, e.value - e.low) for e in found], [max(0.0, e.high - e.value) for e in found]]
            style = {"color": COLOURS[number], "label": way, "capsize": 2, "markersize": 4}
            axes.errorbar(x, [e.value for e in found], bars, fmt="o-", linewidth=1.2, **style)
        axes.set_yscale("log")
        axes.set_xticks(range(len(layers)), layers, rotation=40, ha="right")
        axes.tick_params(labelleft=axes is first)
        if axes is first:
            figure.legend(*axes.get_legend_handles_labels(), loc="lower left", ncols=4, frameon=False, fontsize=10)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI (its main.py)")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is tuned and measured")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="of tuning")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no clip after so many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--publish", action="store_true", help="write chart and tables to web/docs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.comfyui, arguments.out, Budget(arguments.steps, arguments.rate, arguments.frames))
    remember(arguments.out / NAME / "settings.json", {"levels": LEVELS, "noises": NOISES, "ways": WAYS})
    records, end = [], time.monotonic() + 60 * arguments.minutes
    for number in range(arguments.clips):
        if records and time.monotonic() > end:
            break
        path = arguments.out / NAME / f"{number:02}.json"
        if not path.exists():
            with torch.inference_mode():
                path.write_text(json.dumps(measure(bench, bench.clip(number))), "utf-8")
        records.append(json.loads(path.read_text("utf-8")))
    (arguments.out / NAME / "figures.json").write_text(json.dumps(records), "utf-8")
    text = tables(records)
    print(text)
    for place in [arguments.out / NAME] + [PICTURES] * arguments.publish:
        (place / f"{NAME}.md").write_text(text + "\n", "utf-8")
        chart(records).savefig(place / f"{NAME}.png")
        slim(place / f"{NAME}.png")


if __name__ == "__main__":
    main()
