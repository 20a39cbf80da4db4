"""All pairs of the pack's MODEL patches, with each other and with ComfyUI's own, in both orders; edits with each."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import pytest
import torch
from clear_errors import unclear
from coherence.attention.chunks import ChunkError
from coherence.attention.sites import sites_of
from coherence.demo.model import load_model
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.nodes.ge_adapter import GEAdapterApply
from coherence.nodes.guidance import IEGuidanceCFG
from coherence.nodes.inflation import STAMInflate, TuneAVideoInflate
from coherence.nodes.momentum import TemporalMomentumAttention
from coherence.nodes.one_shot import LoadSTAM
from coherence.nodes.perturbation import PerturbAttention
from coherence.techniques.perturbation import NoIdentityError
from coherence.techniques.technique import FurtherKeysError
from coherence.training.ge_adapter import GEAdapter, Training
from comfy.sd import load_lora_for_models
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_mahiro import Mahiro
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_torch_compile import TorchCompileModel
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance, VideoTriangleCFGGuidance
from editing_runs import demo_run
from gligen import gligen_for, with_boxes
from random_controlnet import controlnet
from random_lora import lora_for
from tiny_models import sample
from watching import DEMO, difference

from nodes import ControlNetApplyAdvanced

pytestmark = pytest.mark.slow

ACTS = 1e-4
"""The least change that counts, relative to the largest value."""
SAME = 1e-4
"""What rounding may do where sums are taken in another order."""


@dataclass
class Stack:
    """A model with patches, and prompts for it."""

    model: Any
    prompts: tuple[list, list] = field(default_factory=DEMO.conditioning)


Patch = Callable[[Stack], Stack]


def on_model(node: Callable[[Any], Any]) -> Patch:
    """Of what gives a MODEL first."""
    return lambda stack: Stack(node(stack.model)[0], stack.prompts)


def registered(model: Any) -> Any:
    """The layer with the largest part in what this small model draws."""
    name = next(site.name for site in reversed(sites_of(model)) if site.kind == "spatial")
    return SelectAttentionLayers.execute(model, name)[0]


def tuned() -> Any:
    """STAM that is not tuned does nothing. As if tuned with self-attention: identity maps go with that."""
    weights = LoadSTAM.execute("(example) red_star.stam.safetensors")[0]
    return replace(weights, form=replace(weights.form, frame_attention="self"))


def adapter(model: Any) -> GEAdapter:
    return GEAdapter(lora_for(model, "down"), torch.zeros(0, 8), None, Training("BaseModel", "down", 3, 1))


OURS: dict[str, Patch] = {
    "momentum": on_model(lambda m: TemporalMomentumAttention.execute(m, 0.7)),
    "first frame": on_model(lambda m: CrossFrameAttention.execute(m, "first")),
    "previous frame": on_model(lambda m: CrossFrameAttention.execute(m, "previous")),
    "fine-coarse": on_model(lambda m: CrossFrameAttention.execute(m, "fine_coarse")),
    "perturbed": on_model(lambda m: PerturbAttention.execute(m, registered(m), "uniform")),
    "IE guidance": on_model(lambda m: IEGuidanceCFG.execute(m, registered(m), "U-I", 2.0)),
    "STAM": on_model(lambda m: STAMInflate.execute(m, "before_cross", "self", 2, "spectral", 1.0, "*", tuned())),
    "Tune-A-Video": on_model(lambda m: TuneAVideoInflate.execute(m, "*")),
    "GE-Adapter": on_model(lambda m: GEAdapterApply.execute(m, adapter(m), 1.0, 0.0, 1.0)),
}


@pytest.fixture(scope="module")
def core() -> dict[str, Patch]:
    """ComfyUI's."""
    hint = torch.rand(DEMO.latent_shape[0], 64, 64, 3, generator=torch.Generator().manual_seed(0))
    net = controlnet()

    def controlled(stack: Stack) -> Stack:
        positive, negative, *_ = ControlNetApplyAdvanced().apply_controlnet(*stack.prompts, net, hint, 1.0, 0.0, 1.0)
        return Stack(stack.model, (positive, negative))

    gligen = gligen_for(load_model())

    def boxed(stack: Stack) -> Stack:
        positive, negative = stack.prompts
        return Stack(stack.model, (with_boxes(positive, gligen), negative))

    windows = (2, 1, "standard_static", 1, False, "pyramid", 0, False, [], False, [], False)  # no frame to go by
    return {
        "PAG": on_model(lambda m: PerturbedAttentionGuidance.execute(m, 3.0)),
        "SAG": on_model(lambda m: SelfAttentionGuidance.execute(m, 0.5, 2.0)),
        "FreeU": on_model(lambda m: FreeU_V2.execute(m, 1.3, 1.4, 0.9, 0.2)),
        "HyperTile": on_model(lambda m: HyperTile.execute(m, 32, 1, 0, False)),
        "RescaleCFG": on_model(lambda m: RescaleCFG().patch(m, 0.7)),
        "ContextWindows": on_model(lambda m: ContextWindowsManualNode.execute(m, *windows)),
        "TorchCompile": on_model(lambda m: TorchCompileModel.execute(m, "eager")),
        "LoRA": on_model(lambda m: load_lora_for_models(m, None, lora_for(m, "all", seed=5), 0.5, 0.0)),
        "ControlNet": controlled,
        "GLIGEN": boxed,
        "NAGuidance": on_model(lambda m: NAGuidance.execute(m, 5.0, 0.5, 1.5)),
        "Mahiro": on_model(lambda m: Mahiro.execute(m)),
        "VideoLinearCFG": on_model(lambda m: VideoLinearCFGGuidance().patch(m, 1.0)),
        "VideoTriangleCFG": on_model(lambda m: VideoTriangleCFGGuidance().patch(m, 1.0)),
    }


CORE = ("PAG", "SAG", "FreeU", "HyperTile", "RescaleCFG", "ContextWindows", "TorchCompile", "LoRA", "ControlNet")
CORE += ("GLIGEN", "NAGuidance", "Mahiro", "VideoLinearCFG", "VideoTriangleCFG")
PAIRS = [*combinations(OURS, 2), *((ours, theirs) for ours in OURS for theirs in CORE)]
FRAME_BY_FRAME = ("perturbed", "IE guidance", "GE-Adapter")
HIDDEN = {
    ("momentum", "first frame"): "momentum",  # whose first frame is the first frame
    ("first frame", "previous frame"): "previous frame",  # the first frame's is itself
    ("first frame", "Tune-A-Video"): "Tune-A-Video",
    **{(ours, "TorchCompile"): "TorchCompile" for ours in OURS},
    **{(ours, "ContextWindows"): "ContextWindows" for ours in FRAME_BY_FRAME},  # pictures do not see each other
}
"""Pair → which of the two changes nothing there."""
FURTHER_KEYS = {"fine-coarse": ("Tune-A-Video", "PAG", "SAG", "HyperTile"), "Tune-A-Video": ("PAG", "SAG", "HyperTile")}
NO_IDENTITY = {"fine-coarse": ("IE guidance",), "IE guidance": ("Tune-A-Video", "HyperTile")}
REFUSED: dict[tuple[str, str], type[Exception]] = {
    (one, other): error
    for error, pairs in ((FurtherKeysError, FURTHER_KEYS), (NoIdentityError, NO_IDENTITY))
    for one, others in pairs.items()
    for other in others
}
"""Pair → the error that says why it cannot be."""


IN_CHUNKS = on_model(lambda m: TemporalMomentumAttention.execute(m, 0.7, frames_per_batch=2))
NEED_ALL_FRAMES = ("SAG", "GLIGEN")
BY_CHANCE = ("HyperTile", "ContextWindows", "TorchCompile")
"""HyperTile draws new tiles in every call, windows are as short as chunks, and TorchCompile runs uncompiled, too."""


class Stacks:
    """What patched models draw; each stack is drawn once."""

    def __init__(self, model: Any, patches: dict[str, Patch]) -> None:
        self.model, self._patches = model, patches
        self._drawn: dict[tuple[str, ...], torch.Tensor | Exception] = {}

    def draw(self, *names: str) -> torch.Tensor | Exception:
        if names not in self._drawn:
            self._drawn[names] = self._draw(names)
        return self._drawn[names]

    def _draw(self, names: tuple[str, ...]) -> torch.Tensor | Exception:
        stack = Stack(self.model)
        with torch.inference_mode():
            try:
                for name in names:
                    stack = self._patches[name](stack)
                return sample(stack.model, DEMO, steps=1, conditioning=stack.prompts)
            except Exception as error:
                return error


@pytest.fixture(scope="module")
def stacks(core):
    torch.compiler.reset()
    return Stacks(load_model(), {**OURS, **core, "in chunks": IN_CHUNKS})


@pytest.mark.parametrize("name", [*OURS, *(name for name in CORE if name not in ("TorchCompile", "ContextWindows"))])
def test_a_patch_acts_by_itself(stacks, name):
    drawn = stacks.draw(name)
    assert not isinstance(drawn, Exception), drawn
    assert difference(drawn, stacks.draw()) > ACTS


@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_a_pair_of_patches_is_the_same_in_both_orders_and_both_act(stacks, pair):
    both, turned = stacks.draw(*pair), stacks.draw(*reversed(pair))
    if pair in REFUSED:
        for refusal in (both, turned):
            assert isinstance(refusal, REFUSED[pair])
            assert not unclear(refusal)
        return
    assert not isinstance(both, Exception), both
    assert not isinstance(turned, Exception), turned
    assert both.isfinite().all()
    assert difference(both, turned) < SAME
    for name, other in (pair, pair[::-1]):
        alone = () if other == "TorchCompile" else (other,)  # to compile for nothing takes long
        acts = difference(both, stacks.draw(*alone)) > ACTS
        assert acts == (name != HIDDEN.get(pair)), f"{name} beside {other}: {'acts' if acts else 'does nothing'}"


@pytest.mark.parametrize("name", [name for name in CORE if name not in BY_CHANCE])
def test_beside_comfyuis_patches_a_clip_in_chunks_is_the_clip_at_once_or_says_why_not(stacks, name):
    for order in (("in chunks", name), (name, "in chunks")):
        drawn = stacks.draw(*order)
        if name in NEED_ALL_FRAMES:
            assert isinstance(drawn, ChunkError)
            assert "frames_per_batch" in str(drawn)
            assert not unclear(drawn)
        else:
            assert not isinstance(drawn, Exception), drawn
            assert difference(drawn, stacks.draw("momentum", name)) < SAME


CALLS_AGAIN = ("IE guidance", "PAG", "SAG")
"""What an edit refuses: it calls the model in its own way."""


@pytest.mark.parametrize(
    "name", [name for name in (*OURS, *CORE) if name not in ("TorchCompile", "ControlNet", "GLIGEN")]
)
def test_an_edit_without_layers_is_plain_sampling_of_each_clip(stacks, core, name):
    with torch.inference_mode():
        run = replace(demo_run(stacks.model), model=(OURS | core)[name](Stack(stacks.model)).model)
    if name in CALLS_AGAIN:
        with pytest.raises(ValueError, match="A guidance node on this model calls it"):
            run.edit()
        return
    target, source = run.edit(layers="", source_cfg=2.0)
    assert difference(target, run.plain(run.target)) < SAME
    assert difference(source, run.plain(run.source, 2.0)) < SAME


def test_the_model_is_as_it_was(stacks):
    fresh = load_model()
    expected = sample(fresh, DEMO, steps=1)
    assert torch.equal(stacks.draw(), expected)
    assert torch.equal(sample(stacks.model, DEMO, steps=1), expected)
    weights = fresh.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in stacks.model.model.state_dict().items())
    assert stacks.model.model_options == fresh.model_options
