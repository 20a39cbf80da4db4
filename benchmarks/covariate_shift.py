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

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from claims import Claim, estimate, shown
from ei2_bench import FORMS, Bench, Clip, options
from figures import claims_table, legend, line, panels, publish, style, table
from harness import Json, Records, pack
from power import worth
from torch import Tensor, nn

NAME = "covariate_shift"
LEVELS = (0.2, 0.5, 0.8)
"""Shares of sampling, from pure noise."""
NOISES = 2
POINTS = {"module": "where the module adds", "layer": "where the next layers take over", "alone": "the module alone"}
QUERIES = "{}, W_q alone"
WAYS = (*FORMS, QUERIES.format("Tune-A-Video"), QUERIES.format("STAM"))
SYMBOLS, MOMENTS = ("‖Δμ‖/‖μ‖", "‖ΔΣ‖/‖Σ‖"), ("mean", "covariance")
LITTLE = 0.05
"""‖Δμ‖/‖μ‖ or ‖ΔΣ‖/‖Σ‖ that counts as little impact."""


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


def measure(bench: Bench, number: int) -> Json:
    """Way → noise level → point → layer → shifts of mean and covariance, and errors before and after."""
    record: Json = {}
    clip = bench.clip(number)
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


def ratio(records: list[Json], way: str, other: str, point: str, which: int) -> Tensor:
    one, two = (values(records, each, point, which).mean(1) for each in (way, other))
    return one / two


def layers_of(records: list[Json]) -> list[str]:
    return list(records[0]["STAM"][str(LEVELS[0])]["shift"]["layer"])


def tables(records: list[Json]) -> str:
    """All ways, means over layers and noise levels; then layer by layer."""

    def cell(figures: Tensor) -> str:
        return shown(estimate(figures), ".3f")

    header = [
        "tuned",
        *(f"{symbol} {words}" for words in POINTS.values() for symbol in SYMBOLS),
        "error of ε, of 1 before",
    ]
    rows = [
        [
            way,
            *(cell(values(records, way, point, which)) for point in POINTS for which in (0, 1)),
            cell(errors(records, way, 1).mean(1) / errors(records, way, 0).mean(1)),
        ]
        for way in WAYS
    ]
    by_layer = [
        [layer, *(cell(values(records, way, "layer", which, layer)) for way in FORMS for which in (0, 1))]
        for layer in layers_of(records)
    ]
    return "\n\n".join(
        [
            claims_table(claims(records)),
            table(header, rows),
            "Layer by layer, where the next layers take over:",
            table(["layer", *(f"{symbol} {way}" for way in FORMS for symbol in SYMBOLS)], by_layer),
        ]
    )


def chart(records: list[Json]) -> Any:
    """By layer, where the module adds and where the next layers take over."""
    layers, points = layers_of(records), [(point, which) for point in ("module", "layer") for which in (0, 1)]
    subtitle = f"{len(records)} clips, {len(LEVELS)} noise levels, 95% intervals. Lower: closer to before tuning."
    how = {"sharey": True, "subplot_kw": {"yscale": "log"}}
    figure, (row,) = panels("How far one-shot tuning moves the features", subtitle, 1, 4, (360, 400), **how)
    for axes, (point, which) in zip(row, points, strict=True):
        style(axes, f"{SYMBOLS[which]} {POINTS[point]}")
        for number, way in enumerate(FORMS):
            found = [estimate(values(records, way, point, which, layer)) for layer in layers]
            line(axes, [place + 0.12 * (number - 1.5) for place in range(len(layers))], found, number, way)
        axes.set_xticks(range(len(layers)), layers, rotation=40, ha="right")
    legend(figure, row[0])
    return figure


def claims(records: list[Json]) -> list[Claim]:
    def restricted(which: int, point: str) -> Claim:
        text = f"STAM shifts the {MOMENTS[which]} of features less than plain temporal attention does"
        figure = f"{SYMBOLS[which]} {POINTS[point]}, STAM’s over plain temporal attention’s"
        figures = ratio(records, "STAM", "plain temporal", point, which)
        return Claim.of("A.5", text, figure, figures, ".2f", -1, beside=1.0, worth=worth("ratio"))

    def of_queries(which: int) -> Claim:
        way, where = QUERIES.format("STAM"), ("A.3", "proposition 2")[which]
        text = ("Tuning W_q leaves the mean as it is", "Tuning W_q has little impact on the covariance")[which]
        figure = f"{SYMBOLS[which]} {POINTS['layer']}, {way}"
        return Claim.of(where, text, figure, values(records, way, "layer", which), ".3f", 0, tolerance=LITTLE)

    text = "STAM by itself shifts the covariance by no more than that is"
    bound = values(records, "STAM", "alone", 1)
    return [
        *(restricted(which, point) for point in POINTS for which in (0, 1)),
        Claim.of(
            "proposition 3",
            text,
            f"{SYMBOLS[1]} {POINTS['alone']}, STAM",
            bound,
            ".3f",
            -1,
            beside=1.0,
            worth=worth("ratio"),
        ),
        *(of_queries(which) for which in (0, 1)),
    ]


def main() -> None:
    arguments = options(__doc__, clips=6).parse_args()
    bench, folder = Bench(arguments), arguments.out / NAME
    kept = Records(folder, {"levels": LEVELS, "noises": NOISES, "ways": WAYS})
    with torch.inference_mode():
        wanted = ((f"{number:02}", partial(measure, bench, number)) for number in range(arguments.clips))
        records = list(kept.take(wanted, arguments.minutes))
    print(publish(NAME, folder, arguments.publish, tables(records), chart(records)))


if __name__ == "__main__":
    main()
