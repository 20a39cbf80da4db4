"""A clip in two runs, whose momentum is carried over, is the clip of one run; what does not fit is refused by name."""

import pytest
import torch
from coherence.attention.carrying import model_facts
from coherence.demo.model import load_model
from coherence.nodes.momentum import TemporalMomentumAttention
from coherence.nodes.momentum_of_run import MomentumOfRun
from coherence.nodes.noise import NoiseFrames
from coherence.techniques.kept import MomentumError
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider, sampler_object
from comfy.weight_adapter import LoRAAdapter
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from noise_clips import dependency_node
from tiny_models import FAMILIES
from watching import DEMO, difference

from nodes import ControlNetApplyAdvanced, LatentFromBatch

SCHEDULE = "0:0.9, 8:0.5, 15:0.95"
LEVELS = [4.0, 1.5, 0.0]


def patched(model, previous=None, keep=True, **settings):
    settings = {"mu": 0.9, "mu_schedule": SCHEDULE, **settings}
    return TemporalMomentumAttention.execute(model, **settings, previous=previous, keep=keep).args[0]


def noise_of(previous=None, seed=3):
    return dependency_node(0.1, seed=seed, previous=previous)


def latent_of(family, frames):
    return {"samples": torch.zeros(frames, *family.latent_shape[1:])}


def sampled(model, conds, noise, latent, sampler="euler", levels=LEVELS, cfg=4.0):
    guider = CFGGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(cfg)
    return SamplerCustomAdvanced.execute(noise, guider, sampler_object(sampler), torch.tensor(levels), latent).args[0]


def momentum_of(model, latent):
    return MomentumOfRun.execute(model, latent).args[0]


def in_two_runs(model, family, conds, frames=16, first=8, **run):
    """The latents of the second run; ``conds``: of the frames from the first argument to before the second."""
    made = noise_of()
    settings = {"frames_per_batch": run.pop("frames_per_batch", 0)}
    one = patched(model, **settings)
    begun = sampled(one, conds(0, first), made, latent_of(family, first), **run)
    two = patched(model, momentum_of(one, begun), **settings)
    carried = noise_of(NoiseFrames.execute(made, latent_of(family, first))[0])
    return sampled(two, conds(first, frames), carried, latent_of(family, frames - first), **run)["samples"]


def in_one_run(model, family, conds, frames=16, **run):
    return sampled(patched(model, keep=False), conds(0, frames), noise_of(), latent_of(family, frames), **run)[
        "samples"
    ]


def in_windows(model):
    return ContextWindowsManualNode.execute(
        model,
        context_length=2,
        context_overlap=1,
        context_schedule="standard_static",
        context_stride=1,
        closed_loop=False,
        fuse_method="flat",
        dim=0,
        freenoise=False,
        causal_window_fix=False,
    )[0]


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def whole(unet):
    return in_one_run(unet, DEMO, lambda *_: DEMO.conditioning())


def demo(*_frames):
    return DEMO.conditioning()


@pytest.mark.parametrize("frames_per_batch", [0, 3])
def test_two_runs_of_the_demo_model_are_one(unet, whole, frames_per_batch):
    second = in_two_runs(unet, DEMO, demo, frames_per_batch=frames_per_batch)
    assert difference(second, whole[8:]) <= 1e-4
    carried = noise_of(NoiseFrames.execute(noise_of(), latent_of(DEMO, 8))[0])
    alone = sampled(patched(unet), demo(), carried, latent_of(DEMO, 8))["samples"]
    assert difference(alone, whole[8:]) > 1e-2, "without the momentum it is another clip"


def test_a_sampler_that_writes_into_its_levels_writes_into_a_copy(unet):
    levels, guider = torch.tensor(LEVELS), CFGGuider(patched(unet))
    guider.set_conds(*demo())
    guider.set_cfg(4.0)
    latent = latent_of(DEMO, 2)
    SamplerCustomAdvanced.execute(noise_of(), guider, sampler_object("uni_pc"), levels, latent)
    assert levels.tolist() == LEVELS


def test_a_third_run_goes_on_from_the_second(unet, whole):
    made, latent, previous, carried = noise_of(), latent_of(DEMO, 4), None, None
    for start in (0, 4, 8):
        model = patched(unet, previous)
        out = sampled(model, demo(), made, latent)
        assert difference(out["samples"], whole[start : start + 4]) <= 1e-4
        previous = momentum_of(model, out)
        carried = NoiseFrames.execute(made, latent)[0]
        made = noise_of(carried)
    assert previous.frame == 11


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_two_runs_of_another_class_are_one(tiny_models, name):
    model, family = tiny_models.load(name), FAMILIES[name]
    run = {"frames": 4, "levels": [2.0, 1.0, 0.0] if name == "sdxl" else [1.0, 0.6, 0.0]}
    one = in_one_run(model, family, lambda *_: family.conditioning(), **run)
    two = in_two_runs(model, family, lambda *_: family.conditioning(), first=2, frames_per_batch=1, **run)
    assert difference(two, one[2:]) <= 1e-4


def test_two_runs_under_a_controlnet_are_one(tiny_models):
    model, family, net = tiny_models.load("sd15"), FAMILIES["sd15"], tiny_models.load_controlnet()
    pictures = torch.rand(4, 128, 128, 3, generator=torch.Generator().manual_seed(0))

    def conds(start, stop):
        applied = ControlNetApplyAdvanced().apply_controlnet(
            *family.conditioning(), net, pictures[start:stop], 1.0, 0, 1
        )
        return applied[:2]

    run = {"frames": 4, "levels": [2.0, 1.0, 0.0]}
    one, two = in_one_run(model, family, conds, **run), in_two_runs(model, family, conds, first=2, **run)
    assert difference(two, one[2:]) <= 1e-4


def test_keeping_changes_no_bit_and_nothing_on_the_users_model(unet):
    latent = latent_of(DEMO, 4)
    before = {name: id(value) for name, value in unet.model_options["transformer_options"].items()}
    kept = sampled(model := patched(unet), demo(), noise_of(), latent)
    plain = sampled(patched(unet, keep=False), demo(), noise_of(), latent)
    assert torch.equal(kept["samples"], plain["samples"])
    assert {name: id(value) for name, value in unet.model_options["transformer_options"].items()} == before
    momentum = momentum_of(model, kept)
    assert {tensor.device.type for tensor in momentum.tensors.values()} == {"cpu"}
    assert {tensor.dtype for tensor in momentum.tensors.values()} == {unet.model_dtype()}


def test_a_run_of_half_the_clip_is_told_by_its_output_and_its_last_prediction(unet):
    guider = CFGGuider(model := patched(unet))
    guider.set_conds(*demo())
    guider.set_cfg(4.0)
    out, denoised = SamplerCustomAdvanced.execute(
        noise_of(), guider, sampler_object("euler"), torch.tensor(LEVELS), latent_of(DEMO, 2)
    ).args
    assert momentum_of(model, out) is momentum_of(model, denoised)
    with pytest.raises(MomentumError, match="latent is the output of none"):
        momentum_of(model, {"samples": out["samples"] * 1.1})


def test_two_samplers_of_one_model_do_not_mix(unet):
    """Each is told by its output; where a sampler has run again, no other run takes the former one's place."""
    from comfy_execution.utils import CurrentNodeContext

    model, latent = patched(unet), latent_of(DEMO, 2)

    def run(node, seed):
        with CurrentNodeContext("prompt", node):
            return sampled(model, demo(), noise_of(seed=seed), latent)

    first, second = run("1", 1), run("2", 2)
    one, two = momentum_of(model, first), momentum_of(model, second)
    assert one is not two
    place = next(iter(one.tensors))
    assert not torch.equal(one.tensors[place], two.tensors[place])
    run("1", 3)
    assert momentum_of(model, second) is two
    with pytest.raises(MomentumError, match="none of the 2 latest runs"):
        momentum_of(model, first)


def test_no_run_and_a_run_that_failed_leave_none(unet):
    class CancelledError(BaseException):
        pass

    model, calls = patched(unet), []
    latent = latent_of(DEMO, 2)

    def breaks(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise CancelledError
        return executor(*args, **kwargs)

    with pytest.raises(MomentumError, match="has kept no momentum"):
        momentum_of(model, latent)
    out = sampled(model, demo(), noise_of(), latent)
    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, breaks)
    with pytest.raises(CancelledError):
        sampled(model, demo(), noise_of(), latent)
    with pytest.raises(MomentumError, match="has kept no momentum"):
        momentum_of(model, out)
    with pytest.raises(ValueError, match="expected exactly one TemporalMomentumAttention with keep turned on, got 0"):
        momentum_of(patched(unet, keep=False), out)


def with_lora(model, strength=0.5, seed=0):
    """As ComfyUI's loader of LoRAs patches a model, every layer of attention."""
    clone, generator = model.clone(), torch.Generator().manual_seed(seed)
    lora = {}
    for key, weight in model.model.state_dict().items():
        if key.endswith("attn1.to_q.weight"):
            up, down = (torch.randn(shape, generator=generator) for shape in ((len(weight), 2), (2, weight.shape[1])))
            lora[key] = LoRAAdapter(set(), (up, down, 2.0, None, None, None))
    clone.add_patches(lora, strength)
    return clone


def test_models_are_told_apart_by_their_loras_and_not_by_the_order_of_them(unet):
    one, again, weaker, other = (model_facts(with_lora(unet, *each)) for each in ((), (), (0.4,), (0.5, 1)))
    assert one == again
    assert len({one, weaker, other, model_facts(unet)}) == 4
    first, second = (0.5, 0), (0.4, 1)
    both = [model_facts(with_lora(with_lora(unet, *a), *b)) for a, b in ((first, second), (second, first))]
    assert both[0] == both[1] != one


@pytest.fixture(scope="module")
def carried(unet):
    """Momentum of frames 0 and 1, and their noise."""
    out = sampled(model := patched(unet), demo(), noise_of(), latent_of(DEMO, 2))
    return momentum_of(model, out), NoiseFrames.execute(noise_of(), latent_of(DEMO, 2))[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"levels": [4.0, 2.0, 1.0, 0.0]}, r"its steps were 2 \(4, 1.5, 0\), in this run 3 \(4, 2, 1, 0\)"),
        ({"latent": {"samples": torch.zeros(2, 4, 8, 16)}, "noise": "any"}, "the size 4×8×8, in this run 4×8×16"),
        ({"layers": "middle"}, "its layers were .*, in this run middle"),
        ({"conds": "two"}, "its conditionings were positive, negative, in this run positive, positive.2, negative"),
        ({"sampler": "heun"}, r"previous has 2 model calls of the conditioning \d\.\w+ at .* needs call 3"),
        ({"noise": "later"}, "previous holds the momentum of frame 1.*frame 2, but its noise begins at frame 4"),
        ({"windows": True}, "each window starts an average of its own"),
        ({"model": "other"}, r"its model was \w+ \(float32, weights \w+\), in this run"),
        ({"model": "lora"}, r"its model was \w+ \(float32, weights (\w+)\), in this run \w+ .*weights \1, LoRAs \w+\)"),
    ],
)
def test_another_run_is_refused_by_name(unet, carried, change, words):
    momentum, frames = carried
    positive, negative = demo()
    conds = ([*positive, [positive[0][0].flip(1), {}]], negative) if "conds" in change else (positive, negative)
    later = {"samples": frames["samples"], "batch_index": [2, 3]}
    noises = {"any": Noise_RandomNoise(1), "later": noise_of(later)}
    source = with_lora(unet) if change.get("model") == "lora" else unet
    if change.get("model") == "other":
        source = load_model()
        with torch.no_grad():
            for weight in source.model.diffusion_model.parameters():
                weight.add_(0.01)
    model = patched(source, momentum, layers=change.get("layers", "*"))
    if "windows" in change:
        model = in_windows(model)
        change = {**change, "latent": latent_of(DEMO, 4)}
    settings = {name: value for name, value in change.items() if name in ("levels", "sampler")}
    given, latent = noises.get(change.get("noise"), noise_of(frames)), change.get("latent", latent_of(DEMO, 2))
    with pytest.raises(MomentumError, match=words):
        sampled(model, conds, given, latent, **settings)


def test_noise_that_begins_anew_tells_no_numbers_and_is_taken(unet, carried):
    momentum, _ = carried
    assert sampled(patched(unet, momentum), demo(), noise_of(), latent_of(DEMO, 2))["samples"].isfinite().all()


# The numbers of frames ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames_per_batch", [0, 1])
def test_schedules_count_the_frames_of_the_whole_clip_in_a_part_of_a_latent(unet, frames_per_batch):
    """LatentFromBatch of frames 4 and 5: mu is 0 at frame 5, as at frame 5 of the whole."""
    (part,) = LatentFromBatch().frombatch(latent_of(DEMO, 8), 4, 2)
    at_five = patched(unet, keep=False, mu_schedule="4:1, 5:0, 6:1", frames_per_batch=frames_per_batch)
    plain, ours = (sampled(model, demo(), noise_of(), part)["samples"] for model in (unet, at_five))
    assert difference(ours, plain) < 1e-5
    at_one = patched(unet, keep=False, mu_schedule="0:1, 1:0, 2:1")
    assert difference(sampled(at_one, demo(), noise_of(), part)["samples"], plain) > 1e-3


def test_schedules_count_on_where_noise_alone_is_carried_over(unet, carried):
    _, frames = carried
    at_three = patched(unet, keep=False, mu_schedule="2:1, 3:0, 4:1")
    plain, ours = (sampled(m, demo(), noise_of(frames), latent_of(DEMO, 2))["samples"] for m in (unet, at_three))
    assert difference(ours, plain) < 1e-5


def test_schedules_count_the_frames_of_the_whole_clip_in_context_windows(unet, carried):
    """Windows of frames 2 and 3, 3 and 4, 4 and 5: mu is 0 from frame 3 on."""
    _, frames = carried
    ours, plain = in_windows(patched(unet, keep=False, mu_schedule="2:1, 3:0")), in_windows(unet)

    def clip(model, noise):
        return sampled(model, demo(), noise, latent_of(DEMO, 4), cfg=1.0)["samples"]

    assert difference(clip(ours, noise_of(frames)), clip(plain, noise_of(frames))) < 1e-5
    from_zero = in_windows(patched(unet, keep=False, mu_schedule="0:1, 2:1, 3:0"))
    assert difference(clip(from_zero, noise_of()), clip(plain, noise_of())) > 1e-3


def test_noise_of_other_packs_counts_from_zero(unet):
    at_one = patched(unet, keep=False, mu_schedule="0:1, 1:0, 2:1")
    plain, ours = (sampled(m, demo(), Noise_RandomNoise(1), latent_of(DEMO, 2))["samples"] for m in (unet, at_one))
    assert difference(ours, plain) < 1e-5
