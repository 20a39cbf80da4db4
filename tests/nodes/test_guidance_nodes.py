"""PerturbAttention, IEGuidanceCFG and IEGuider through ComfyUI's sampler nodes, and compiled."""

import comfy.samplers
import pytest
import torch
from coherence.attention.registry import RegistryError, model_names, named_registry
from coherence.attention.sites import sites_of
from coherence.demo.model import load_model
from coherence.nodes.cross_frame import CrossFrameAttention
from coherence.nodes.guidance import IEGuidanceCFG, IEGuider
from coherence.nodes.perturbation import PerturbAttention
from coherence.techniques.perturbation import NoIdentityError
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_custom_sampler import CFGGuider, Noise_RandomNoise, SamplerCustom, SamplerCustomAdvanced
from guidance_runs import registry_of
from tiny_models import FAMILIES, sample
from watching import DEMO, difference

import nodes

CFG, STEPS, SEED = 4.0, 2, 7


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def guided(unet):
    return IEGuidanceCFG.execute(unet, registry_of(unet), "U-I", 2.0)[0]


@pytest.fixture(scope="module")
def sampled(guided):
    return by_ksampler(guided)


def latent():
    return {"samples": torch.zeros(DEMO.latent_shape)}


def sigmas(model):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)


def by_ksampler(model):
    with torch.inference_mode():
        how = (SEED, STEPS, CFG, "euler", "normal", *DEMO.conditioning(), latent())
        return nodes.KSampler().sample(model, *how)[0]["samples"]


def by_ksampler_advanced(model):
    with torch.inference_mode():
        how = ("enable", SEED, STEPS, CFG, "euler", "normal", *DEMO.conditioning(), latent(), 0, 1000, "disable")
        return nodes.KSamplerAdvanced().sample(model, *how)[0]["samples"]


def by_sampler_custom(model):
    with torch.inference_mode():
        how = (True, SEED, CFG, *DEMO.conditioning(), comfy.samplers.sampler_object("euler"), sigmas(model), latent())
        return SamplerCustom.execute(model, *how)[0]["samples"]


def by_guider(guider, model):
    with torch.inference_mode():
        how = (guider, comfy.samplers.sampler_object("euler"), sigmas(model), latent())
        return SamplerCustomAdvanced.execute(Noise_RandomNoise(SEED), *how)[0]["samples"]


@pytest.mark.parametrize("sampler", [by_ksampler_advanced, by_sampler_custom])
def test_every_sampler_node_is_guided_alike(guided, sampled, sampler):
    assert torch.equal(sampler(guided), sampled)


def test_core_s_guider_with_the_guided_model_is_guided_alike(guided, sampled):
    guider = CFGGuider.execute(guided, *DEMO.conditioning(), CFG)[0]
    assert torch.equal(by_guider(guider, guided), sampled)


def test_the_guider_is_the_model_node_with_its_conditioning(unet, sampled):
    guider = IEGuider.execute(unet, registry_of(unet), "U-I", 2.0, *DEMO.conditioning(), CFG)[0]
    once, again = by_guider(guider, unet), by_guider(guider, unet)
    assert torch.equal(once, sampled)
    assert torch.equal(again, sampled)


@pytest.mark.parametrize(
    ("matrix", "same_as"), [("uniform", 0.0), ("identity", 1.0), ("blend", 0.3)], ids=["uniform", "identity", "blend"]
)
def test_a_matrix_is_its_share_of_the_identity(unet, matrix, same_as):
    def perturbed(matrix, alpha):
        return sample(PerturbAttention.execute(unet, registry_of(unet), matrix, alpha)[0], DEMO)

    assert torch.equal(perturbed(matrix, 0.3), perturbed("blend", same_as))
    assert difference(perturbed(matrix, 0.3), sample(unet, DEMO)) > 1e-3


def test_identity_maps_beside_attention_with_further_keys_are_refused(unet):
    crossed = CrossFrameAttention.execute(unet, "first_and_previous")[0]
    model = PerturbAttention.execute(crossed, registry_of(unet), "identity")[0]
    with pytest.raises(NoIdentityError, match=r"output\.0\.attn1 has .* remove the node that gives it further keys"):
        sample(model, DEMO)
    assert torch.isfinite(sample(PerturbAttention.execute(crossed, registry_of(unet), "uniform")[0], DEMO)).all()


@pytest.mark.parametrize("node", [PerturbAttention, IEGuidanceCFG])
def test_an_empty_registry_is_refused_by_name_of_the_node(unet, node):
    empty = named_registry(*model_names(unet), sites_of(unet), [], "")
    with pytest.raises(RegistryError, match=rf"{node.__name__}: the registry selects no layer"):
        node.execute(unet, empty, "uniform" if node is PerturbAttention else "U-I", 1.0)


@pytest.mark.parametrize("node", [PerturbAttention, IEGuidanceCFG])
def test_percentages_the_wrong_way_round_are_refused(unet, node):
    with pytest.raises(ValueError, match=rf"{node.__name__}: start_percent is 0\.8 and end_percent 0\.2"):
        node.execute(
            unet,
            registry_of(unet),
            "uniform" if node is PerturbAttention else "U-I",
            1.0,
            start_percent=0.8,
            end_percent=0.2,
        )


@pytest.mark.slow
def test_a_compiled_model_is_guided_alike(tiny_models):
    """Compiled before there are copies to share, and used without them after."""
    shape, model = FAMILIES["cogvideox"], tiny_models.load("cogvideox")
    levels = {"sigmas": torch.tensor([4.0, 1.0, 0.0])}

    def guide(model):
        return IEGuidanceCFG.execute(model, registry_of(model, "blocks.1"), "U-I", 2.0)[0]

    plain, guided = sample(model, shape, **levels), sample(guide(model), shape, **levels)
    torch.compiler.reset()
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model"])
    assert difference(sample(compiled, shape, **levels), plain) < 1e-5
    assert difference(sample(guide(compiled), shape, **levels), guided) < 1e-5
    assert difference(sample(compiled, shape, **levels), plain) < 1e-5
