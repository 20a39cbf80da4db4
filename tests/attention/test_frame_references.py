"""Every frame of a clip sees its own reference picture, and no other's: in chunks, under guidance and in edits, too."""

from __future__ import annotations

import pytest
import torch
from clear_errors import unclear
from coherence.attention.references import ReferencesError
from coherence.attention.sites import sites_of
from coherence.nodes.frame_references import FrameReferences
from coherence.techniques.technique import FurtherKeysError
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxKontextMultiReferenceLatentMethod as Method
from comfy_extras.nodes_flux import FluxKVCache
from editing_runs import Run
from guidance_runs import Calls, agree, guided, one_by_one
from picture_runs import SAME
from picture_runs import momentum as with_momentum
from tiny_models import FAMILIES, RELATIVES, sample
from watching import difference

EDITORS = {
    "flux": ("flux", ""),
    "qwen_image": ("qwen_image", ""),
    "qwen_image, references at time 0": ("qwen_image", "index_timestep_zero"),
    "krea2": ("krea2", "index"),
    "krea2, references at time 0": ("krea2", "index_timestep_zero"),
    "z_image": ("z_image", ""),
    "Flux.2": ("Flux.2", ""),
    "OmniGen2": ("OmniGen2", ""),
}
"""Family, and how references are told apart where its default is not tried."""


class Editor:
    """A picture editor with one reference for each of its four frames."""

    def __init__(self, tiny_models, name, method=""):
        self.family, self.method = (FAMILIES | RELATIVES)[name], method
        self.model = tiny_models.load(name)
        self.references = self.family.latent(seed=7)["samples"]

    @property
    def frames(self):
        return len(self.references)

    @property
    def layers(self):
        """The last layer in which several tokens meet."""
        return [site.name for site in sites_of(self.model) if site.kind == "joint"][-1]

    def prompts(self, references=None, node=FrameReferences):
        latents = {"samples": self.references if references is None else references}
        prompts = [
            (node.execute(each, latents=latents) if node is FrameReferences else node.execute(each, latents))[0]
            for each in self.family.conditioning()
        ]
        return [Method.execute(each, self.method)[0] for each in prompts] if self.method else prompts

    def draw(self, model=None, prompts=None, frames=slice(None), steps=2):
        noise = self.family.latent(seed=3)["samples"][frames]
        how = {"steps": steps, "cfg": 3.0, "scheduler": "simple", "conditioning": prompts or self.prompts()}
        return sample(model or self.model, self.family, empty=torch.zeros_like(noise), noise=noise, **how)

    def with_momentum(self, frames_per_batch=0):
        return with_momentum(self.model, frames_per_batch=frames_per_batch)

    def with_another(self, frame):
        changed = self.references.clone()
        changed[frame] = torch.randn(changed[frame].shape, generator=torch.Generator().manual_seed(8))
        return self.prompts(changed)


@pytest.fixture(scope="module", params=EDITORS)
def editor(request, tiny_models):
    return Editor(tiny_models, *EDITORS[request.param])


@pytest.fixture(scope="module")
def flux(tiny_models):
    return Editor(tiny_models, "flux")


@pytest.fixture(scope="module")
def plain(editor):
    return editor.draw()


@pytest.fixture(scope="module")
def momentum(editor):
    return editor.draw(editor.with_momentum())


def parted(ours, others):
    return [difference(a, b) > SAME for a, b in zip(ours, others, strict=True)]


def test_a_frame_is_the_one_that_comfyui_draws_alone_from_its_reference(editor, plain):
    for i in range(editor.frames):
        alone = editor.prompts(editor.references[i : i + 1], ReferenceLatent)
        assert difference(editor.draw(prompts=alone, frames=slice(i, i + 1)), plain[i : i + 1]) <= SAME


def test_a_reference_reaches_its_frame_and_with_momentum_those_after_it(editor, plain, momentum):
    changed = editor.with_another(2)
    assert parted(editor.draw(prompts=changed), plain) == [False, False, True, False]
    assert parted(editor.draw(editor.with_momentum(), changed), momentum) == [False, False, True, True]
    assert difference(momentum, plain) > 0.005


def test_chunks_of_frames_give_the_whole_clip(editor, momentum):
    assert difference(editor.draw(editor.with_momentum(frames_per_batch=3)), momentum) <= SAME


def test_in_chunks_comfyui_makes_room_for_the_references_of_one(editor, monkeypatch):
    asked = []

    def required(_model, shape, cond_shapes):
        asked.append((shape[0], cond_shapes["ref_latents"]))
        return 0.0

    monkeypatch.setattr(type(editor.model.model), "memory_required", required)
    editor.draw(editor.with_momentum(frames_per_batch=2), steps=1)
    for_a_chunk = asked[0]
    asked.clear()
    references = editor.references[:2]
    editor.draw(editor.with_momentum(), editor.prompts(references), frames=slice(2), steps=1)
    assert for_a_chunk == asked[0]


def test_guidance_by_copies_is_the_formula_branch_by_branch(editor):
    layers = editor.layers
    ours, formula = (editor.draw(make(editor.model, "U-I", scale=2.0, layers=layers)) for make in (guided, one_by_one))
    agree(ours, formula, editor.draw())


def test_the_branches_are_as_they_were_where_memory_splits_a_call(editor, plain, monkeypatch):
    calls = Calls(editor.model)
    monkeypatch.setattr(type(editor.model.model), "memory_required", lambda *_args, **_kwargs: float("inf"))
    assert difference(editor.draw(calls.model), plain) <= SAME
    assert set(calls.rows) == {editor.frames}


@pytest.mark.slow
def test_equal_prompts_give_equal_clips_and_each_clip_has_its_own_references(editor, plain):
    prompt, negative = editor.prompts()
    other = editor.with_another(2)[0]
    same, edited = (
        Run(editor.model, prompt, each, negative, editor.family.latent_shape, 1) for each in (prompt, other)
    )
    assert torch.equal(*same.edit())
    target, source = edited.edit()
    assert difference(source, edited.plain(prompt)) <= SAME
    assert parted(target, source) == [False, False, True, False]
    assert difference(edited.edit("")[0], edited.plain(other)) <= SAME


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("references", [1, 3, 5])
def test_another_number_of_references_than_frames_is_refused(flux, references, tapped):
    prompts = flux.prompts(flux.family.latent(seed=7)["samples"][torch.arange(references) % 4])
    model = flux.with_momentum() if tapped else flux.model
    with pytest.raises(ReferencesError, match=f"{references} reference pictures for 4 frames .* one for each frame"):
        flux.draw(model, prompts)


def test_context_windows_are_refused(flux):
    model = ContextWindowsManualNode.execute(flux.model, 2, 1, "standard_static", 1, False, "flat", 0, False)[0]
    with pytest.raises(ReferencesError, match="Context windows hold a few frames only"):
        flux.draw(model)


@pytest.mark.parametrize("name", ["sd15", "sd3", "anima"])
def test_a_model_that_takes_no_references_is_refused(tiny_models, name):
    family, model = FAMILIES[name], tiny_models.load(name)
    prompts = [FrameReferences.execute(each, latents=family.latent())[0] for each in family.conditioning()]
    with pytest.raises(ReferencesError, match="takes no reference pictures and would ignore them"):
        sample(model, family, steps=1, conditioning=prompts)


@pytest.mark.parametrize(
    ("name", "cure"), [("Chroma", "Use a model that edits pictures"), ("krea2", "Edit Model Reference Method")]
)
def test_a_model_that_would_ignore_references_is_refused(tiny_models, name, cure):
    editor = Editor(tiny_models, name)
    with pytest.raises(ReferencesError, match=f"would ignore them.*{cure}"):
        editor.draw(editor.with_momentum())


def test_references_of_another_vae_are_refused(flux):
    for references in (torch.zeros(4, 4, 8, 8), torch.zeros(4, 16, 1, 8, 8)):
        with pytest.raises(ReferencesError, match="Encode them with this model's VAE"):
            flux.draw(flux.with_momentum(), flux.prompts(references))


def test_references_at_time_0_are_refused_where_comfyui_cannot(tiny_models):
    editor = Editor(tiny_models, "flux", "index_timestep_zero")
    with pytest.raises(ReferencesError, match="single picture only"):
        editor.draw(editor.with_momentum())
    by_default = Editor(tiny_models, "flux")  # which a node makes that of the model
    with pytest.raises(ReferencesError, match="single picture only"):
        by_default.draw(FluxKVCache.execute(by_default.with_momentum())[0])


@pytest.mark.parametrize("frames_per_batch", [0, 2])
def test_keys_of_references_that_comfyui_keeps_from_an_earlier_call_are_refused(tiny_models, frames_per_batch):
    """From the second call on they are among the keys alone: momentum would take them for a part of the frame."""
    editor = Editor(tiny_models, "Flux.2")
    without_guidance = editor.with_momentum(frames_per_batch)  # as Flux.2 klein
    without_guidance.add_object_patch("diffusion_model.params.guidance_embed", False)
    with pytest.raises(FurtherKeysError, match="Flux KV Cache") as raised:
        editor.draw(FluxKVCache.execute(without_guidance)[0])
    assert not unclear(raised.value)
