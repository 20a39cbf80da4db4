"""The world's picture transformer: what is loaded is what was trained, and it draws what its captions say."""

import comfy.ops
import pytest
import torch
from coherence.demo.evaluation import conditioning
from coherence.demo.training import flux
from coherence.demo.world import model
from coherence.demo.world.evaluation import evaluate, table
from coherence.demo.world.picture_transformer import picture_transformer_module
from coherence.demo.world.transformer import places
from comfy.sample import sample_custom
from comfy.samplers import sampler_object


@pytest.fixture(scope="module")
def transformer() -> torch.nn.Module:
    torch.manual_seed(0)
    made = picture_transformer_module(torch.float32, "cpu", comfy.ops.disable_weight_init).diffusion_model
    flux.initialise(made)
    for weight in made.parameters():
        if weight.ndim > 1 and not weight.any():  # branches that would add nothing
            torch.nn.init.normal_(weight, std=0.05)
    return made.requires_grad_(False).eval()


@torch.inference_mode()
def test_a_loaded_picture_transformer_computes_what_its_training_does(transformer):
    level, noise = 0.7, torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    (context,) = conditioning(model.load_clip(), ["a red cat left of a blue house on white"])
    texts, pooled = context[0].expand(2, -1, -1), context[1]["pooled_output"].expand(2, -1)
    placed = torch.cat([noise * level, places(noise)], 1)
    trained = noise * level - level * transformer(placed, torch.tensor([level, level]), context=texts, y=pooled)
    run = sampler_object("euler"), torch.tensor([level, 0.0]), [context], [context], torch.zeros_like(noise)
    loaded = model.load_picture_transformer(transformer.state_dict())
    sampled = loaded.model.process_latent_in(sample_custom(loaded, noise, 1.0, *run, disable_pbar=True))
    assert (sampled - trained).abs().max() < 1e-4 * trained.abs().max()


@torch.inference_mode()
def test_latents_of_a_video_model_are_refused(transformer):
    noise = torch.randn(1, 16, 3, 16, 16)
    (context,) = conditioning(model.load_clip(), ["a red cat"])
    run = sampler_object("euler"), torch.tensor([0.7, 0.0]), [context], [context], torch.zeros_like(noise)
    with pytest.raises(ValueError, match=r"kind flux: the latent is .*expected \(batch, 4, .*Empty Latent Image"):
        sample_custom(model.load_picture_transformer(transformer.state_dict()), noise, 1.0, *run, disable_pbar=True)


def test_a_picture_is_told_where_as_a_still_clip_is():
    assert torch.equal(places(torch.zeros(2, 4, 12, 20)), places(torch.zeros(2, 16, 1, 12, 20))[:, 4:, 0])


@torch.inference_mode()
def test_heads_begin_by_looking_at_a_neighbour(transformer):
    maps = []

    def attend(_, q, k, v, heads, *__, **___):
        maps.append((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1).mean(0))
        return (maps[-1] @ v).transpose(1, 2).flatten(2)

    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    transformer(
        torch.cat([noise, places(noise)], 1),
        torch.full((4,), 0.9),
        context=torch.zeros(4, 8, 128),
        y=torch.zeros(4, 128),
        transformer_options={"optimized_attention_override": attend},
    )
    for layer in maps:
        *aside, free = layer[:, 8 + 3 * 8 + 3, 8:].unflatten(-1, (8, 8))  # from a patch in the middle, to patches
        for attended in aside:
            beside = attended[2:5, 2:5]
            assert 0.08 < attended.max() == beside.max() > 1.2 * beside[1, 1]
        assert free.max() < 0.1


@pytest.mark.slow
def test_it_draws_what_its_captions_say():
    loaded = model.load_picture_transformer(), model.load_clip(), model.load_vae()
    seen = evaluate(*loaded, 16, seed=1, steps=12, cfg=3.0, sampler="euler", scheduler="simple")
    for name in ("thing", "colour", "background", "position"):
        assert sum(each.correct[name] for each in seen) >= 13, table(seen)
