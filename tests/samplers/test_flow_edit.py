"""FlowEdit: Algorithm 1 of its paper on flow models, and ComfyUI's own sampling around it."""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from coherence.attention.tap import tap
from coherence.nodes.entropy_register import SelectAttentionLayers
from coherence.nodes.flow_edit import FlowEdit
from coherence.noise.streams import generator
from comfy import model_management
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider, Sampler, calc_cond_batch, calculate_sigmas
from editing_runs import StoredMaps
from tiny_models import FAMILIES, pictures
from watching import difference

COSMOS = "cosmos_predict2"
"""ComfyUI counts its levels as σ = t / (1 − t)."""
every_flow = pytest.mark.parametrize("name", ["flux", "wan21", COSMOS])
SEED, STEPS, SKIPPED = 5, 4, 1


class Edited:
    """A model with a latent and prompts; :meth:`run` edits the latent."""

    def __init__(self, tiny_models, name: str, rows: int | None = None) -> None:
        self.name, self.family = name, FAMILIES["anima" if name == COSMOS else name]
        is_cosmos = name == COSMOS
        self.model = pictures.build("CosmosT2IPredict2", pictures.COSMOS, "") if is_cosmos else tiny_models.load(name)
        self.source, self.negative = self.family.conditioning(seed=1)
        self.target = [[self.family.conditioning(seed=2)[0][0][0], self.source[0][1]]]
        shape = list(self.family.latent_shape)
        shape[0] = rows or shape[0]
        self.x = 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(3))

    def sigmas(self, steps: int = STEPS) -> torch.Tensor:
        return calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", steps)

    def run(self, **changed) -> torch.Tensor:
        inputs = {
            "model": self.model,
            "source": self.source,
            "target": self.target,
            "negative": self.negative,
            "latent_image": {"samples": self.x},
            "sigmas": self.sigmas(),
            "source_cfg": 1.5,
            "target_cfg": 4.0,
            "skip_steps": SKIPPED,
            "averages": 1,
            "seed": SEED,
        }
        with torch.inference_mode():
            return FlowEdit.execute(**inputs | changed).args[0]["samples"]


@pytest.fixture
def edited(tiny_models):
    return lambda name, rows=None: Edited(tiny_models, name, rows)


# Against the paper ---------------------------------------------------------------------------------------------


def velocity_of(edited: Edited):
    """V(Z, t, text) of the network alone, guided as ``cfg`` says; what is done with its answers is float64."""
    network, sampling = edited.model.model.diffusion_model, edited.model.model.model_sampling
    extras = edited.source[0][1]
    given = {} if "pooled_output" not in extras else {"y": extras["pooled_output"], "guidance": torch.tensor([3.5])}

    def once(z, sigma, prompt):
        rows = len(z)
        inputs = {name: each.expand(rows, *each.shape[1:]) for name, each in given.items()}
        context = prompt[0][0].expand(rows, -1, -1)
        return network(z.float(), sampling.timestep(sigma).expand(rows), context=context, **inputs).double()

    def velocity(z, sigma, prompt, cfg):
        positive = once(z, sigma, prompt)
        if cfg == 1:
            return positive
        negative = once(z, sigma, edited.negative)
        return negative + cfg * (positive - negative)

    return velocity


def algorithm_1(edited: Edited, source_cfg: float, target_cfg: float, averages: int) -> torch.Tensor:
    """The paper's, line by line."""
    velocity = velocity_of(edited)
    process_in, process_out = edited.model.model.process_latent_in, edited.model.model.process_latent_out
    clip = process_in(edited.x.double())
    z_edit = clip.clone()
    for step, (sigma, following) in list(enumerate(pairwise(edited.sigmas())))[SKIPPED:]:
        t, t_next = ((x / (1 + x) if edited.name == COSMOS else x).double() for x in (sigma, following))
        change = torch.zeros_like(clip)
        for average in range(averages):
            stream = generator(SEED, step, average)
            noise = torch.cat([torch.randn(1, *clip.shape[1:], generator=stream) for _ in clip]).double()
            z_source = (1 - t) * clip + t * noise
            z_target = z_edit + z_source - clip
            change += velocity(z_target, sigma, edited.target, target_cfg) / averages
            change -= velocity(z_source, sigma, edited.source, source_cfg) / averages
        z_edit = z_edit + (t_next - t) * change
    return process_out(z_edit)


@every_flow
@pytest.mark.parametrize(("source_cfg", "target_cfg", "averages"), [(1.5, 4.0, 1), (1.0, 4.0, 2), (1.0, 1.0, 1)])
def test_it_is_algorithm_1_of_the_paper(edited, name, source_cfg, target_cfg, averages):
    edited = edited(name)
    ours = edited.run(source_cfg=source_cfg, target_cfg=target_cfg, averages=averages)
    with torch.inference_mode():
        expected = algorithm_1(edited, source_cfg, target_cfg, averages)
    moved = expected - edited.x
    assert moved.abs().max() > 0.05
    assert difference(ours - edited.x, moved) <= 2e-4  # the models' own rounding, which differs between processors


@every_flow
def test_equal_prompts_and_cfgs_leave_the_latent_as_it_is(edited, name):
    edited = edited(name)
    same = edited.run(target=edited.source, source_cfg=4.0, averages=2)
    torch.testing.assert_close(same, edited.x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["flux", "wan21"])
def test_the_seed_alone_decides_the_noise(edited, name):
    edited = edited(name)
    first = edited.run()
    torch.manual_seed(9)
    state = torch.get_rng_state()
    assert torch.equal(edited.run(), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert difference(edited.run(seed=SEED + 1) - edited.x, first - edited.x) > 0.01


@pytest.mark.parametrize("name", ["flux", "wan21"])
def test_a_batch_gives_what_its_items_give_alone(edited, name):
    edited = edited(name, rows=2)
    together = edited.run()
    for number, x in enumerate(edited.x.split(1)):
        alone = edited.run(latent_image={"samples": x, "batch_index": [number]})
        assert difference(alone - x, together[number : number + 1] - x) <= 1e-4


def test_the_averages_of_a_step_use_several_noises(edited):
    edited = edited("flux", rows=1)
    runs = [edited.run(averages=averages, seed=seed) - edited.x for averages in (1, 8) for seed in range(4)]
    spread = [torch.stack(each).std(dim=0).mean() for each in (runs[:4], runs[4:])]
    assert spread[1] < 0.7 * spread[0]


def test_skipping_steps_leaves_the_noise_of_the_others(edited):
    """So that ``skip_steps`` can be compared: a last step alone is that of a longer run, but for where it starts."""
    edited, seen = edited("flux", rows=1), []

    def look(executor, x, *args, **kwargs):
        seen.append(x[:1].clone())  # one of the source's rows: X and N alone
        return executor(x, *args, **kwargs)

    model = edited.model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", look)
    for skipped in (0, STEPS - 1):
        edited.run(model=model, target_cfg=1.0, source_cfg=1.0, target=edited.source, skip_steps=skipped)
    assert len(seen) == STEPS + 1
    assert torch.equal(seen[STEPS - 1], seen[STEPS])


# In ComfyUI's sampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flux", "wan21"])
def test_outside_a_noise_mask_nothing_moves(edited, name):
    edited = edited(name)
    mask = torch.zeros(1, *edited.x.shape[-2:])
    mask[..., : mask.shape[-1] // 2] = 1
    moved = edited.run(latent_image={"samples": edited.x, "noise_mask": mask}) - edited.x
    inside, outside = moved.chunk(2, dim=-1)
    assert inside.abs().max() > 0.05
    assert outside.abs().max() <= 1e-6


def test_cfg_functions_see_each_clip_alone_with_its_own_cfg(edited):
    edited, seen = edited("flux"), deque()  # what a list holds would be kept apart for each clip

    def plain(args):
        seen.append((args["cond_scale"], args["cond"].shape))
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    model = edited.model.clone()
    model.set_model_sampler_cfg_function(plain)
    assert difference(edited.run(model=model), edited.run()) <= 1e-4
    assert [*seen] == [(1.5, edited.x.shape), (4.0, edited.x.shape)] * (STEPS - SKIPPED)


def test_prompts_of_any_lengths_are_taken(edited):
    edited = edited("flux")
    longer = [[torch.cat([edited.target[0][0]] * 2, dim=1), edited.target[0][1]]]
    assert difference(edited.run(target=longer), edited.run()) > 1e-3
    two = edited.run(target=[*edited.target, *edited.source])
    assert difference(two, edited.run()) > 1e-3


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in model.model.state_dict().items()}


def require_as_before(model, before) -> None:
    assert not model.wrappers
    assert not model.model_options["transformer_options"]
    assert all(torch.equal(each, before[name]) for name, each in model.model.state_dict().items())


@pytest.mark.parametrize("layers", ["", "*"])
def test_the_users_model_and_latent_stay_as_they_were(edited, layers):
    edited = edited("wan21")
    before, x = weights_of(edited.model), edited.x.clone()
    registry = SelectAttentionLayers.execute(edited.model, layers).args[0] if layers else None
    first = edited.run(registry=registry)
    require_as_before(edited.model, before)
    assert torch.equal(edited.x, x)
    cancelled = edited.model.clone()

    def cancel(executor, *args, **kwargs):
        model_management.interrupt_current_processing()
        return executor(*args, **kwargs)

    cancelled.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", cancel)
    with pytest.raises(model_management.InterruptProcessingException):
        edited.run(model=cancelled, registry=registry)
    model_management.interrupt_current_processing(False)
    require_as_before(edited.model, before)
    assert torch.equal(edited.run(registry=registry), first)


# With a registry -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Algorithm1WithStoredMaps(Sampler):
    """Algorithm 1 on clean latents, every branch in a model call of its own; the source's maps wait for the target."""

    maps: StoredMaps

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False):
        def clean(name, x, sigma, keeping):
            self.maps.keeping = keeping
            conds, options = [guider.conds[name]], extra_args["model_options"]
            return calc_cond_batch(guider.inner_model, conds, x, sigma.expand(len(x)), options)[0].double()

        x = latent_image.double()
        z = x
        for step, (t, t_next) in enumerate(pairwise(sigmas)):
            stream = generator(SEED, SKIPPED + step, 0)
            noise = torch.cat([torch.randn(1, *x.shape[1:], generator=stream) for _ in x]).double()
            source = (1 - t) * x + t * noise
            target = z + source - x
            positives, negatives = (
                [clean(text, x_t.float(), t, keeping) for text, x_t, keeping in side]
                for side in (
                    (("source", source, True), ("positive", target, False)),
                    (("negative", source, True), ("negative", target, False)),
                )
            )
            d_source, d_target = (
                negative + cfg * (positive - negative)
                for positive, negative, cfg in zip(positives, negatives, (1.5, 4.0), strict=True)
            )
            z = z + (t_next - t) * ((target - d_target) - (source - d_source)) / t
        return z.float()


@pytest.mark.parametrize("name", ["flux", "wan21"])
def test_with_a_registry_the_target_attends_as_the_source_does(edited, name):
    edited = edited(name)
    registry = SelectAttentionLayers.execute(edited.model, "*").args[0]
    held, free = edited.run(registry=registry) - edited.x, edited.run() - edited.x
    maps = StoredMaps()
    model, _ = tap(edited.model, maps, layers=registry.selector, kinds=["spatial", "joint"], asked_by="test")
    guider = CFGGuider(model)
    guider.inner_set_conds({"source": edited.source, "positive": edited.target, "negative": edited.negative})
    with torch.inference_mode():
        sampler, sigmas = Algorithm1WithStoredMaps(maps), edited.sigmas()[SKIPPED:]
        expected = guider.sample(torch.zeros_like(edited.x), edited.x, sampler, sigmas, disable_pbar=True) - edited.x
    assert difference(held, free) > 0.01
    assert difference(held, expected) <= 1e-4


def test_with_a_registry_prompts_may_differ_in_length(edited):
    edited = edited("flux", rows=1)
    registry = SelectAttentionLayers.execute(edited.model, "*").args[0]
    longer = [[torch.cat([edited.target[0][0]] * 2, dim=1), edited.target[0][1]]]
    alone, held = (edited.run(target=longer, registry=each) for each in (None, registry))
    assert held.isfinite().all()
    assert difference(held, alone) > 1e-3
