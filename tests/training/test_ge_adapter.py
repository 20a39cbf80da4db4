"""GE-Adapter's tokens and its conditioning: what goes before the text, one row for every frame."""

from dataclasses import replace

import comfy.clip_vision
import comfy.patcher_extension
import pytest
import torch
from coherence.demo.model import load_model
from coherence.nodes.ge_adapter import GEAdapterApply, GEAdapterTokens
from coherence.nodes.momentum import TemporalMomentumAttention
from coherence.nodes.motion_field import MotionFieldNoise
from coherence.training.frame_tokens import (
    average_pairs,
    frame_tokens,
    initial_projection,
    initial_shared_tokens,
    join_tokens,
)
from coherence.training.ge_adapter import GEAdapter, Training, untrained
from comfy.samplers import calculate_sigmas
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from editing_runs import demo_run
from random_lora import lora_for
from tiny_models import sample
from watching import DEMO, demo_of, difference

TEXT, VISION, FRAMES = 128, 48, 3


@pytest.fixture(scope="module")
def unet():
    return load_model()


@pytest.fixture(scope="module")
def adapter(unet):
    return untrained(unet.model, "down", 4, 8, TEXT, VISION, FRAMES, seed=3)


def vision(frames=FRAMES, tokens=50, width=VISION, seed=5):
    output = comfy.clip_vision.Output()
    generator = torch.Generator().manual_seed(seed)
    output.last_hidden_state = torch.randn(frames, tokens, width, generator=generator)
    return output


def with_tokens(adapter, conditioning, pictures=None):
    return tuple(GEAdapterTokens.execute(each, adapter, pictures)[0] for each in conditioning)


class Contexts:
    """A clone of a model and the text that it got: by conditioning and call, with the frames of the call."""

    def __init__(self, model):
        self.model, self.seen = model.clone(), []
        self.model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "watch", self._watch)

    def _watch(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        which = transformer_options["cond_or_uncond"]
        for index, rows in zip(which, c_crossattn.chunk(len(which)), strict=True):
            window = transformer_options.get("context_window")
            frames = list(range(len(rows))) if window is None else window.index_list
            self.seen.append((index, len(which), frames[-len(rows) :], rows))
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


# The tokens ---------------------------------------------------------------------------------------------------------


def test_fifty_hidden_states_are_twenty_five_tokens_of_neighbouring_pairs():
    hidden = torch.arange(2 * 50 * 3, dtype=torch.float64).reshape(2, 50, 3)
    pairs = average_pairs(hidden)
    assert pairs.shape == (2, 25, 3)
    assert all(torch.equal(pairs[:, i], (hidden[:, 2 * i] + hidden[:, 2 * i + 1]) / 2) for i in range(25))
    assert torch.equal(average_pairs(torch.cat([hidden, hidden[:, :1]], dim=1)), pairs)
    with pytest.raises(ValueError, match="at least 2 hidden states"):
        average_pairs(hidden[:, :1])


def test_the_papers_sizes():
    """8 + 25 + 77 tokens of 768 channels, 596,736 parameters; the paper's text says 2.3 M, 15.4 M and 123 M."""
    generator = torch.Generator().manual_seed(0)
    shared, (weight, bias) = initial_shared_tokens(8, 768, generator), initial_projection(768, 768, generator)
    own = frame_tokens(torch.randn(4, 50, 768, generator=generator), weight, bias)
    joined = join_tokens([shared[None], own, torch.zeros(1, 77, 768)])
    assert joined.shape == (4, 8 + 25 + 77, 768)
    assert torch.equal(joined[3, :8], shared)
    assert torch.equal(joined[:, 8:33], own)
    assert not joined[:, 33:].any()
    assert shared.numel() + weight.numel() + bias.numel() == 596_736
    assert shared.std().item() == pytest.approx(0.02, rel=0.03)
    with pytest.raises(ValueError, match="one row for every frame"):
        join_tokens([own, torch.zeros(3, 77, 768)])
    with pytest.raises(ValueError, match="one width"):
        join_tokens([own, torch.zeros(4, 77, 16)])


def test_the_same_seed_is_the_same_adapter(unet, adapter):
    again, other = (untrained(unet.model, "down", 4, 8, TEXT, VISION, FRAMES, seed=seed) for seed in (3, 4))
    assert all(torch.equal(adapter.lora[name], again.lora[name]) for name in adapter.lora)
    assert torch.equal(adapter.shared_tokens, again.shared_tokens)
    assert torch.equal(adapter.projection[0], again.projection[0])
    assert not torch.equal(adapter.shared_tokens, other.shared_tokens)
    assert adapter.parameters() == {"lora": 12_800, "shared tokens": 8 * TEXT, "projection": (VISION + 1) * TEXT}
    assert (adapter.rank, adapter.text_width, adapter.vision_width) == (4, TEXT, VISION)


def test_tokens_have_weights_and_those_of_none_are_left_out(adapter):
    """1 leaves every bit."""
    positive, _ = DEMO.conditioning()
    own = adapter.tokens_of(vision().last_hidden_state)

    def joined(**weights):
        return GEAdapterTokens.execute(positive, adapter, vision(), **weights)[0][0]

    assert torch.equal(joined()[0], joined(shared_weight=1.0, frame_weight=1.0)[0])
    text, _ = joined(shared_weight=0.5, frame_weight=2.0)
    assert torch.allclose(text[:, :8], 0.5 * adapter.shared_tokens.expand(FRAMES, -1, -1))
    assert torch.allclose(text[:, 8:33], 2 * own)
    assert torch.equal(text[:, 33:], joined()[0][:, 33:])
    assert torch.equal(joined(shared_weight=0.0)[0], joined()[0][:, 8:])
    shared, settings = joined(frame_weight=0.0)
    assert torch.equal(shared, GEAdapterTokens.execute(positive, adapter)[0][0][0])
    assert "model_conds" not in settings, "frames have no tokens of their own"
    bare, _ = joined(shared_weight=0.0, frame_weight=0.0)
    assert torch.equal(bare, positive[0][0])


# In a run -----------------------------------------------------------------------------------------------------------


def test_every_frame_gets_its_own_tokens(unet, adapter):
    positive, negative = DEMO.conditioning()
    watch = Contexts(unet)
    sample(watch.model, DEMO, conditioning=with_tokens(adapter, (positive, negative), vision()), steps=1)
    own = adapter.tokens_of(vision().last_hidden_state)
    assert {index for index, *_ in watch.seen} == {0, 1}
    assert all(together == 2 for _, together, *_ in watch.seen)
    for index, _, frames, rows in watch.seen:
        assert rows.shape == (FRAMES, 8 + 25 + 32, TEXT)
        assert torch.allclose(rows[:, :8], adapter.shared_tokens.expand(FRAMES, -1, -1))
        assert torch.allclose(rows[:, 8:33], own[frames])
        assert torch.allclose(rows[:, 33:], (positive, negative)[index][0][0].expand(FRAMES, -1, -1))


@pytest.mark.parametrize("pictures", [None, vision(1), vision()], ids=["shared", "one picture", "each frame"])
def test_positive_and_negative_may_have_different_lengths(unet, adapter, pictures):
    """ComfyUI runs them one after the other: each frame's result is that of its own tokens."""
    positive, negative = DEMO.conditioning()
    tokens = with_tokens(adapter, (positive,), pictures)[0]
    watch = Contexts(unet)
    clip = sample(watch.model, DEMO, conditioning=(tokens, negative), steps=1)
    assert {(index, rows.shape[1]) for index, _, _, rows in watch.seen} == {(0, tokens[0][0].shape[1]), (1, 32)}
    assert difference(clip, sample(unet, DEMO, steps=1)) > 1e-3
    assert positive[0][0].shape == (1, 32, TEXT)
    assert not positive[0][1]


@pytest.mark.parametrize("fix", [False, True], ids=["plain windows", "windows with an anchor"])
def test_context_windows_deal_out_the_rows_of_their_frames(unet, adapter, fix):
    family = demo_of(7)
    model = ContextWindowsManualNode.execute(
        unet, 4, 2, "standard_static", 1, False, "flat", 0, False, causal_window_fix=fix
    )[0]
    watch = Contexts(model)
    pictures = vision(7)
    conditioning = with_tokens(adapter, DEMO.conditioning(), pictures)
    clip = sample(watch.model, family, conditioning=conditioning, steps=1)
    own = adapter.tokens_of(pictures.last_hidden_state)
    assert {frame for _, _, frames, _ in watch.seen for frame in frames} == set(range(7))
    for _, _, frames, rows in watch.seen:
        assert len(frames) >= 4
        assert torch.allclose(rows[-4:, 8:33], own[frames[-4:]])
    assert clip.isfinite().all()


def test_it_stacks_with_momentum_in_chunks_and_with_edits(unet, adapter):
    trained = replace(adapter, lora=lora_for(unet, "down"))

    def apply(model):
        return GEAdapterApply.execute(model, trained, 0.5, 0.0, 0.6)[0]

    conditioning = with_tokens(trained, DEMO.conditioning(), vision())
    whole, chunked = (TemporalMomentumAttention.execute(unet, mu=0.9, frames_per_batch=frames)[0] for frames in (0, 2))
    expected = sample(apply(whole), DEMO, conditioning=conditioning)
    assert difference(sample(whole, DEMO, conditioning=conditioning), expected) > 1e-2
    assert difference(sample(apply(chunked), DEMO, conditioning=conditioning), expected) < 2e-4
    run = demo_run(apply(unet))
    source, target, negative = with_tokens(trained, (run.source, run.target, run.negative), vision())
    run = replace(run, source=source, target=target, negative=negative)
    edited, kept = run.edit("middle")
    assert difference(kept, run.plain(run.source)) < 2e-4
    assert difference(edited, kept) > 1e-2


@pytest.mark.parametrize("frames", [2, 4, 6])
def test_a_latent_of_another_length_is_refused(unet, adapter, frames):
    family = demo_of(frames)
    conditioning = with_tokens(adapter, DEMO.conditioning(), vision())
    with pytest.raises(ValueError, match=rf"tokens of 3 frames, the latent's batch has {frames}"):
        sample(unet, family, conditioning=conditioning, steps=1)


def test_a_node_that_draws_the_first_frame_alone_says_so(unet, adapter):
    sigmas = calculate_sigmas(unet.get_model_object("model_sampling"), "normal", 5)
    rest = {"latent_image": {"samples": torch.zeros(DEMO.latent_shape)}, "sigmas": sigmas, "noise_seed": 0}
    rest |= {"delta_x": 8.0, "delta_y": 0.0, "t0": 0.4, "t1": 0.8}
    own, shared = (with_tokens(adapter, DEMO.conditioning(), pictures) for pictures in (vision(), vision(1)))
    for name, (positive, negative) in (("positive", (own[0], shared[1])), ("negative", (shared[0], own[1]))):
        with pytest.raises(ValueError, match=f"^{name} has tokens of its own for each of 3 frames.*first frame alone"):
            MotionFieldNoise.execute(unet, positive, negative, 2.0, **rest)
    assert MotionFieldNoise.execute(unet, *shared, 2.0, **rest)[0]["samples"].isfinite().all()


def test_what_does_not_fit_is_refused(unet, adapter):
    positive, _ = DEMO.conditioning()
    with pytest.raises(ValueError, match=f"expected hidden states of width {VISION}, as in training, got 3 × 50 × 16"):
        GEAdapterTokens.execute(positive, adapter, vision(width=16))
    with pytest.raises(ValueError, match="expected text tokens of width 128, as in training, got 1 × 77 × 768"):
        GEAdapterTokens.execute([[torch.zeros(1, 77, 768), {}]], adapter)
    with pytest.raises(ValueError, match="has 3 frames and the conditioning 2 rows"):
        GEAdapterTokens.execute([[torch.zeros(2, 32, TEXT), {}]], adapter, vision())
    without = GEAdapter(adapter.lora, adapter.shared_tokens, None, adapter.training)
    assert GEAdapterTokens.execute(positive, without)[0][0][0].shape == (1, 40, TEXT)
    with pytest.raises(ValueError, match="trained without per-frame tokens"):
        GEAdapterTokens.execute(positive, without, vision())


def test_an_untrained_adapter_is_the_base_model_bitwise(unet, adapter):
    assert torch.equal(
        sample(GEAdapterApply.execute(unet, adapter, 0.5, 0.0, 0.1)[0], DEMO, steps=3), sample(unet, DEMO, steps=3)
    )


@pytest.mark.parametrize(
    ("lora", "shared", "projection", "reason"),
    [
        ({}, (8, 4), None, "none or several ranks"),
        ({"a.lora_down.weight": (4, 3), "a.lora_up.weight": (5, 4)}, (8, 4), None, r"missing or unknown: a\.alpha"),
        ({"a.lora_down.weight": (4, 3), "a.lora_up.weight": (5, 2), "a.alpha": ()}, (8, 4), None, r"expected A \(rank"),
        ({"a.lora_down.weight": (4, 3), "a.lora_up.weight": (5, 4), "a.alpha": ()}, (8,), None, "shared tokens"),
        (
            {"a.lora_down.weight": (4, 3), "a.lora_up.weight": (5, 4), "a.alpha": ()},
            (8, 4),
            ((6, 3), (6,)),
            r"expected a weight \(4, vision width\)",
        ),
    ],
)
def test_parts_that_disagree_are_refused(lora, shared, projection, reason):
    zeros = {name: torch.zeros(shape) for name, shape in lora.items()}
    pair = projection and tuple(torch.zeros(shape) for shape in projection)
    with pytest.raises(ValueError, match=reason):
        GEAdapter(zeros, torch.zeros(shared), pair, Training("BaseModel", "down", 8, 1))
