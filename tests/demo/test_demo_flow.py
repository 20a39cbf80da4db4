"""The demo model read as a flow model: the same predictions, and edits by FlowEdit that obey the prompt."""

import pytest
import torch
from coherence.demo.clips import render_clip
from coherence.demo.flow import as_flow
from coherence.demo.model import load_clip, load_model, load_vae
from coherence.demo.reader import read
from coherence.nodes.flow_edit import FlowEdit
from comfy.samplers import calculate_sigmas


def test_it_predicts_the_same_clean_latents():
    model = load_model()
    flow, eps = as_flow(model).get_model_object("model_sampling"), model.get_model_object("model_sampling")
    x, out = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    for step in (20, 500, 980):
        sigma, t = (sampling.sigmas[step].double().expand(3) for sampling in (eps, flow))
        z = x * (1 - t[0])
        torch.testing.assert_close(t, sigma / (1 + sigma))
        torch.testing.assert_close(flow.calculate_input(t, z), eps.calculate_input(sigma, x), rtol=1e-5, atol=1e-6)
        ours, theirs = (each.calculate_denoised(s, out, y) for each, s, y in ((flow, t, z), (eps, sigma, x)))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(flow.timestep(t), eps.timestep(sigma))


def test_a_model_that_predicts_otherwise_is_refused():
    with pytest.raises(ValueError, match=r"expected a model that predicts noise.*got FlowOfEps"):
        as_flow(as_flow(load_model()))


def test_flow_edit_obeys_its_prompt_and_leaves_the_shape_about_where_it_is():
    model, encoder, vae = as_flow(load_model()), load_clip(), load_vae()

    def encode(text: str) -> list:
        return encoder.encode_from_tokens_scheduled(encoder.tokenize(text))

    sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "simple", 10)
    with torch.inference_mode():
        frames = render_clip("circle", "red", "white", frames=2, seed=3).frames
        prompts = (encode(f"a {colour} circle on a white background") for colour in ("red", "blue"))
        latent = {"samples": vae.encode(frames)}
        edited = FlowEdit.execute(model, *prompts, encode(""), latent, sigmas, 1.5, 5.5, 5, 1, 1).args[0]["samples"]
        was, became = read(frames), read(vae.decode(edited))
    assert {(each.shape, each.colour, each.background) for each in became.scenes} == {("circle", "blue", "white")}
    assert (became.centre - was.centre).norm(dim=1).max() < 10  # pixels
    assert (became.radius / was.radius - 1).abs().max() < 0.2
