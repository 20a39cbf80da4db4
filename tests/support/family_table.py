"""What every node that touches a model does on each family: it works, or says why it cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from clear_errors import unclear
from coherence.attention.registry import model_names
from coherence.demo.model import load_model
from coherence.nodes.coherent_sampler import CoherentSampler
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.nodes.entropy_register import EntropyRegister, SelectAttentionLayers
from coherence.nodes.flow_attention import FlowAttention
from coherence.nodes.flow_edit import FlowEdit
from coherence.nodes.ge_adapter import GEAdapterApply
from coherence.nodes.ge_adapter_train import GEAdapterTrain
from coherence.nodes.guidance import IEGuidanceCFG, IEGuider
from coherence.nodes.inflation import STAMInflate, TuneAVideoInflate
from coherence.nodes.inversion import BilateralDDIMInvert, NoiseFromLatent, SamplerBilateralDDIMInvert
from coherence.nodes.layer_sweep import LayerSweep
from coherence.nodes.map_preview import AttentionMapPreview
from coherence.nodes.momentum import TemporalMomentumAttention
from coherence.nodes.momentum_of_run import MomentumOfRun
from coherence.nodes.motion_field import MotionFieldNoise
from coherence.nodes.noise import DependencyNoise, KeyframeNoise, NoiseFrames, VideoNoisePrior
from coherence.nodes.noise_chart import NoiseCorrelation
from coherence.nodes.one_shot import OneShotTune
from coherence.nodes.perturbation import PerturbAttention
from coherence.nodes.pix2video import Pix2VideoGuidance
from coherence.nodes.rave import RAVEGrid
from coherence.nodes.token_flow import TokenFlow
from coherence.nodes.vidtome import VidToMe
from coherence.noise.streams import frames_axis
from coherence.samplers.noises import clip_of
from coherence.samplers.unfit import UnfitError
from coherence.training.ge_adapter import GEAdapter, Training
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, Noise_RandomNoise
from edited_subjects import edited, edited_by, plug_and_play
from family_subjects import Decoder, Encoder, Subject, subject
from random_lora import lora_for
from text_trials import null_text, word_maps
from tiny_models import TinyModels
from watching import difference

LEAST = 1e-3
"""What an effect is: the least change, relative to the largest value."""

# What a node does on a subject; returns what came, to be finite, and by how much it made a difference. ---------------

Trial = Callable[[Subject], tuple[Any, float]]


def patched(node: Callable[[Subject], Any]) -> Trial:
    """Of a node that gives a MODEL: the change of what is sampled."""

    def trial(s: Subject) -> tuple[Any, float]:
        out = s.drawn(node(s)[0])
        return out, difference(out, s.plain)

    return trial


def noise(node: Callable[[], Any]) -> Trial:
    """Of a node that gives NOISE: the change of what is sampled from it."""

    def trial(s: Subject) -> tuple[Any, float]:
        out = s.drawn(s.model, noise=node()[0])
        return out, difference(out, s.plain)

    return trial


def dependency() -> Any:
    return DependencyNoise.execute(3, 0.01, "", "generalised", "bisection", 1, 15)


def noise_frames(s: Subject) -> tuple[Any, float]:
    frames = NoiseFrames.execute(dependency()[0], s.empty)[0]["samples"]
    assert frames.shape == torch.Size(s.family.latent_shape)
    return frames, float(frames.std())


def keyframe_noise(s: Subject) -> tuple[Any, float]:
    key = NoiseFrames.execute(Noise_RandomNoise(4), s.empty)[0] | {"batch_index": None}
    axis = frames_axis(s.family.latent_shape)
    key["samples"] = key["samples"].narrow(axis, 0, 1)
    noise = KeyframeNoise.execute(dependency()[0], key, "-1")[0]
    made = clip_of(noise.generate_noise(s.empty))
    assert torch.equal(made.select(axis, -1), key["samples"].select(axis, 0))
    out = s.drawn(s.model, noise=noise)
    return out, difference(out, s.plain)


def coherent_sampler(s: Subject) -> tuple[Any, float]:
    usual, sigmas = sampler_object("euler_ancestral"), s.sigmas()
    out = s.drawn(s.model, sampler=CoherentSampler.execute(usual, dependency()[0])[0], sigmas=sigmas)
    return out, difference(out, s.drawn(s.model, sampler=usual, sigmas=sigmas))


def momentum_of_run(s: Subject) -> tuple[Any, float]:
    model = TemporalMomentumAttention.execute(s.model, 0.9, keep=True)[0]
    kept = [*MomentumOfRun.execute(model, {"samples": s.drawn(model)})[0].tensors.values()]
    return kept, float(kept[0].std())


def noise_correlation(s: Subject) -> tuple[Any, float]:
    return correlation_of(s.family.latent_shape)


@cache
def correlation_of(latent_shape: tuple[int, ...]) -> tuple[Any, float]:
    """Of latents alone: families that share their shape share the chart."""
    chart, report = NoiseCorrelation.execute(dependency()[0], {"samples": torch.zeros(latent_shape)}).result
    return chart, json.loads(report)["neighbour_correlation"]


def start(s: Subject) -> tuple:
    return s.model, s.conditioning[0], Noise_RandomNoise(3), s.late, s.empty


def entropy_register(s: Subject) -> tuple[Any, float]:
    registry, chart, _ = EntropyRegister.execute(*start(s), "all", "highest", 1, 50.0, "0", "exact").result
    entropies = torch.tensor([layer.figures.entropy for layer in registry.layers])
    assert len(registry.selected) == 1
    return [chart, entropies], float(1 - entropies.min())


def map_preview(s: Subject) -> tuple[Any, float]:
    *where, latent = start(s)
    samples = latent["samples"]
    one = samples if s.with_sound else samples[:1]  # it draws every picture of a batch
    maps = AttentionMapPreview.execute(*where, {"samples": one}, s.layers, 0, 1.0)[0]
    return maps, float(maps.std())


def select(s: Subject) -> tuple[Any, float]:
    return torch.zeros(1), len(SelectAttentionLayers.execute(s.model, s.layers)[0].selected)


def layer_sweep(s: Subject) -> tuple[Any, float]:
    how = (*s.conditioning, Noise_RandomNoise(3), sampler_object("euler"), s.late, s.empty, Decoder())
    registry, chart, _ = LayerSweep.execute(s.model, *how, "uniform", "change", "all", 1.0, s.layers)
    # 1 − SSIM goes with the square of a change
    return chart, max(layer.damage or 0.0 for layer in registry.layers) ** 0.5


def ie_guider(s: Subject) -> tuple[Any, float]:
    out = s.sample(IEGuider.execute(s.model, s.registry, "U-I", 2.0, *s.conditioning, 1.0)[0])
    return out, difference(out, s.plain)


FILTER = (5, 1.0, 1.0, 0.5, True, 0)


def inverted(s: Subject) -> torch.Tensor:
    how = (s.latent, s.sigmas(), "latent_spatial", *FILTER)
    return BilateralDDIMInvert.execute(s.model, s.conditioning[0], 1.0, *how)[0]["samples"]


def invert(s: Subject) -> tuple[Any, float]:
    return (out := inverted(s)), difference(out, s.latent["samples"])


def invert_by_sampler(s: Subject) -> tuple[Any, float]:
    walk = SamplerBilateralDDIMInvert.execute("latent_spatial", *FILTER)[0]
    out = s.drawn(s.model, latent=s.latent, noise=Noise_EmptyNoise(), sampler=walk, sigmas=s.sigmas().flip(0))
    return out, difference(out, s.latent["samples"])


def noise_from_latent(s: Subject) -> tuple[Any, float]:
    sampling = s.model.get_model_object("model_sampling")

    def scaled(part: torch.Tensor) -> torch.Tensor:
        return sampling.noise_scaling(sampling.sigma_max, 2 * part, torch.zeros_like(part), max_denoise=True)

    x = s.mapped(scaled, s.latent["samples"])
    noisy = {"samples": s.model.get_model_object("process_latent_out")(x)}
    out = s.drawn(s.model, noise=NoiseFromLatent.execute(noisy, s.model)[0], sigmas=s.late)
    return out, difference(out, s.plain)


def edit(s: Subject) -> tuple[Any, float]:
    out = edited(s, s.model, s.registry)
    return out, difference(out, s.drawn(s.model, positive=s.target))


def flow_edit(s: Subject) -> tuple[Any, float]:
    source, negative = s.conditioning
    prompts = (source, s.target, negative)
    edited = FlowEdit.execute(s.model, *prompts, s.latent, s.late, 1.0, 1.0, 0, 1, 0, s.registry)[0]["samples"]
    return edited, difference(edited, s.latent["samples"])


def rave_grid(s: Subject) -> tuple[Any, float]:
    rows = torch.zeros(4, *s.family.latent_shape[1:])
    latent = {"samples": rows if frames_axis(rows.shape) == 0 else s.empty["samples"]}
    out = s.drawn(RAVEGrid.execute(s.model, 2, 0)[0], latent=latent)
    return out, difference(out, s.drawn(s.model, latent=latent))


def motion_field(s: Subject) -> tuple[Any, float]:
    latent, rest = MotionFieldNoise.execute(
        s.model, *s.conditioning, 1.0, 0, s.empty, s.sigmas(3), 16.0, 0.0, 0.4, 0.7
    ).result
    frames = latent["samples"]
    assert len(rest) > 1
    return frames, difference(frames[1:], frames[:1])


def one_shot(s: Subject) -> tuple[Any, float]:
    try:
        model = STAMInflate.execute(s.model, "before_cross", "self", 2, "spectral", 1.0, s.layers.rsplit(".", 1)[0])[0]
    except ValueError:  # a family that cannot be inflated: the node has to say so itself
        model = s.model
    weights, chart, _ = (
        OneShotTune.PREPARE_CLASS_CLONE(None)
        .execute(model, s.conditioning[0], s.latent, 1, 1e-2, 0, False, "fp32", 0)
        .result
    )
    return [chart, *weights.tensors.values()], max(
        float(x.abs().max()) for n, x in weights.tensors.items() if "attn" in n
    )


def ge_train(s: Subject) -> tuple[Any, float]:
    latent = s.latent
    frames = len(latent["samples"]) if latent["samples"].ndim == 4 else 3
    how = (frames, "", 1, "down", 1, 0.01, 1.0, 0.0, 1, 1e-2, 0, 1, 0)
    adapter, chart, _ = (
        GEAdapterTrain.PREPARE_CLASS_CLONE(None).execute(s.model, Encoder(s.conditioning[0]), latent, *how).result
    )
    return [chart, *adapter.lora.values()], max(float(x.abs().max()) for n, x in adapter.lora.items() if "up" in n)


def ge_apply(s: Subject) -> Any:
    try:
        lora = lora_for(s.model, "down")
    except ValueError:  # no adapter can be trained for this family: one of another
        lora = lora_for(load_model(), "down")
    adapter = GEAdapter(lora, torch.zeros(0, 8), None, Training("BaseModel", "down", 3, 1))
    return GEAdapterApply.execute(s.model, adapter, 1.0, 0.0, 1.0)


def as_many_pictures(subject: Subject) -> torch.Tensor:
    """As its latent has frames in the batch; of a video model's two, which it refuses."""
    return torch.rand(max(2, subject.family.latent_shape[0]), 32, 32, 3)


TRIALS: dict[str, Trial] = {
    "DependencyNoise": noise(dependency),
    "VideoNoisePrior": noise(lambda: VideoNoisePrior.execute(3, "mixed", 0.5)),
    "NoiseFrames": noise_frames,
    "KeyframeNoise": keyframe_noise,
    "NoiseCorrelation": noise_correlation,
    "MotionFieldNoise": motion_field,
    "CoherentSampler": coherent_sampler,
    "TemporalMomentumAttention": patched(lambda s: TemporalMomentumAttention.execute(s.model, 0.9)),
    "MomentumOfRun": momentum_of_run,
    "CrossFrameAttention": patched(lambda s: CrossFrameAttention.execute(s.model, "first")),
    "FlowAttention": patched(lambda s: FlowAttention.execute(s.model, as_many_pictures(s))),
    "VidToMe": patched(lambda s: VidToMe.execute(s.model)),
    "EntropyRegister": entropy_register,
    "SelectAttentionLayers": select,
    "AttentionMapPreview": map_preview,
    "LayerSweep": layer_sweep,
    "PerturbAttention": patched(lambda s: PerturbAttention.execute(s.model, s.registry, "uniform")),
    "IEGuidanceCFG": patched(lambda s: IEGuidanceCFG.execute(s.model, s.registry, "U-I", 2.0)),
    "IEGuider": ie_guider,
    "Pix2VideoGuidance": patched(lambda s: Pix2VideoGuidance.execute(s.model, 20.0, 1.0)),
    "BilateralDDIMInvert": invert,
    "NullTextInvert": null_text,
    "WordMaps": word_maps,
    "SamplerBilateralDDIMInvert": invert_by_sampler,
    "NoiseFromLatent": noise_from_latent,
    "EntropyGuidedEdit": edit,
    "FlowEdit": flow_edit,
    "RAVEGrid": rave_grid,
    "PlugAndPlay": edited_by(plug_and_play),
    "TokenFlow": edited_by(lambda s: TokenFlow.execute(s.model, 2)),
    "STAMInflate": patched(
        lambda s: STAMInflate.execute(s.model, "before_cross", "fine_coarse", 2, "spectral", 1.0, "*")
    ),
    "TuneAVideoInflate": patched(lambda s: TuneAVideoInflate.execute(s.model, "*")),
    "OneShotTune": one_shot,
    "GEAdapterTrain": ge_train,
    "GEAdapterApply": patched(ge_apply),
}


@dataclass(frozen=True)
class Cell:
    """``refused``: the reason; ``effect``: by how much the node made a difference, where it is not refused."""

    refused: str = ""
    effect: float = 0.0
    wrong: str = ""


def tried(s: Subject, trial: Trial) -> Cell:
    with torch.inference_mode():
        try:
            came, effect = trial(s)
        except Exception as error:
            # inputs that go together and a model that fails on them all the same are for the node to foresee
            problem = str(error) if isinstance(error, UnfitError) else unclear(error)
            return Cell(wrong=problem) if problem else Cell(refused=reason(error, s.model))
    tensors = came if isinstance(came, list) else [came]
    if not all(x.isfinite().all() for x in tensors):
        return Cell(wrong="what came is not finite")
    return Cell(effect=effect) if effect >= LEAST else Cell(wrong=f"no effect: {effect:.1e}")


def reason(error: Exception, model: Any) -> str:
    """The first sentence of what an error says, without an example of missing layers; … for the model's classes."""
    said = re.split(r"\. (?=[A-Z])|, such as ", str(error).splitlines()[0])[0].rstrip(".")
    names = "|".join([*model_names(model), type(model.model.model_config).__name__])
    return re.sub(rf"(?<=\()({names})(?=\))|(?<=got )({names})\b", "…", said)


def column(name: str, tiny_models: TinyModels) -> dict[str, Cell]:
    """Every node on one family."""
    return column_of(subject(name, tiny_models))


def column_of(s: Subject) -> dict[str, Cell]:
    """Every node on a model, which must be as it was afterwards, bit by bit."""
    before = s.plain
    cells = {node: tried(s, trial) for node, trial in TRIALS.items()}
    if not torch.equal(s.drawn(s.model), before):
        cells = {node: replace(cell, wrong="the model is not as it was") for node, cell in cells.items()}
    return cells
