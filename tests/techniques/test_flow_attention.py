"""FLATTEN's attention along flow: token by token in float64, and its limits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from coherence.attention.chunks import ChunkError
from coherence.demo.model import load_model
from coherence.frames.trajectories import paths
from coherence.nodes.flow_attention import FlowAttention
from coherence.nodes.noise import DependencyNoise
from coherence.techniques.flow_attention import FlowAttention as Technique
from coherence.techniques.flow_attention import FlowError
from coherence.techniques.technique import PartOfFrameError
from coherence.techniques.technique import Technique as AnyTechnique
from picture_runs import momentum, patched
from tiny_models import FAMILIES, sample
from watching import DEMO, demo_of, difference

from nodes import ConditioningSetArea, ConditioningSetMask

FRAMES = 4


class Reference(AnyTechnique):
    """Dense attention, then for every token its path: backwards and forwards through links, in float64."""

    def __init__(self, flow):
        self.flow = flow.double()

    def attend(self, call, proceed):
        q, k, v = (x.double() for x in call.per_head())
        height, width = call.grid
        lead, end = call.leading_tokens or 0, q.shape[-2] - call.trailing_tokens
        out = torch.empty_like(q)
        links = [self.links(frame, height, width) for frame in range(call.frames - 1)]
        for branch in range(len(q) // call.frames):
            rows = slice(branch * call.frames, (branch + 1) * call.frames)
            qs, ks, vs = q[rows], k[rows], v[rows]
            scale = q.shape[-1] ** -0.5
            for frame in range(call.frames):
                own_text = [x[frame][:, [*range(lead), *range(end, x.shape[-2])]] for x in (ks, vs)]
                keys, values = (
                    torch.cat([x[:, :, lead:end].transpose(0, 1).flatten(1, 2), text], dim=1)
                    for x, text in zip((ks, vs), own_text, strict=True)
                )
                out[rows.start + frame] = (qs[frame] @ keys.transpose(1, 2) * scale).softmax(-1) @ values
            dense = out[rows].clone()
            for frame in range(call.frames):
                for token in range(height * width):
                    path = self.path(links, frame, token)
                    there = [(at, lead + place) for at, place in path]
                    keys = torch.stack([ks[at, :, place] for at, place in there], dim=1)
                    values = torch.stack([dense[at, :, place] for at, place in there], dim=1)
                    scores = (keys * qs[frame, :, lead + token, None]).sum(-1) * scale
                    mixed = (scores.softmax(-1)[..., None] * values).sum(1)
                    out[rows.start + frame, :, lead + token] = mixed
        out = out.to(call.q.dtype)
        return out.transpose(1, 2).flatten(2) if call.heads_joined else out

    def links(self, frame, height, width):
        """Of each patch where it goes, of those that meet the nearest alone."""
        size = {"size": (height, width), "mode": "bilinear"}
        dx, dy = torch.nn.functional.interpolate(self.flow[frame : frame + 1], **size)[0]
        found = {}
        for place in range(height * width):
            x, y = place % width, place // width
            move = dx[y, x].item() * width, dy[y, x].item() * height
            to = x + round(move[0]), y + round(move[1])
            if 0 <= to[0] < width and 0 <= to[1] < height:
                off = sum((each - round(each)) ** 2 for each in move)
                target = to[1] * width + to[0]
                if target not in found or off <= found[target][0]:
                    found[target] = off, place
        return {source: target for target, (_, source) in found.items()}

    @staticmethod
    def path(links, frame, token):
        path, place = [(frame, token)], token
        for at in range(frame, len(links)):
            if place not in links[at]:
                break
            place = links[at][place]
            path.append((at + 1, place))
        place = token
        for at in range(frame, 0, -1):
            back = {target: source for source, target in links[at - 1].items()}
            if place not in back:
                break
            place = back[place]
            path.append((at - 1, place))
        return path


def a_flow(frames=FRAMES):
    return 0.15 * torch.randn(frames - 1, 2, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["demo", "flux"])
def subject(request, tiny_models):
    if request.param == "demo":
        return load_model(), demo_of(FRAMES)
    return tiny_models.load(request.param), FAMILIES[request.param]


def test_it_is_its_formula_in_float64(subject):
    model, family = subject
    ours = sample(patched(model, Technique(a_flow())), family, steps=1, cfg=3.0)
    theirs = sample(patched(model, Reference(a_flow())), family, steps=1, cfg=3.0)
    assert difference(ours, theirs) <= 1e-4
    still = sample(patched(model, Technique(torch.zeros(FRAMES - 1, 2, 24, 24))), family, steps=1, cfg=3.0)
    assert difference(ours, still) > 0.003


def test_without_flow_paths_stay_in_place():
    table = paths(torch.zeros(3, 2, 5, 7), (5, 7))
    assert torch.equal(table, torch.arange(35)[:, None].expand(35, 4))


def test_with_flow_paths_follow_it_end_at_the_border_and_new_ones_begin():
    flow = torch.zeros(2, 2, 4, 4)
    flow[:, 0] = 0.25  # a patch to the right
    table = paths(flow, (4, 4))
    rows = [row for row in table.tolist() if max(row) < 4]
    assert rows == [[0, 1, 2], [1, 2, 3], [2, 3, -1], [3, -1, -1], [-1, 0, 1], [-1, -1, 0]]


def test_every_patch_is_on_one_path():
    table = paths(a_flow(6), (9, 11))
    for column in table.T:
        assert column[column >= 0].sort().values.tolist() == list(range(99))


def test_of_patches_that_meet_the_nearest_goes_on():
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0, 0] = torch.tensor([0.4, 0.25, 0.0, 0.0])  # 1.6, 1, 0, 0 patches: three arrive at the third
    assert paths(flow, (1, 4)).tolist() == [[0, -1], [1, -1], [2, 2], [3, 3], [-1, 0], [-1, 1]]


def test_the_node_measures_the_flow_of_its_images():
    images = torch.rand(1, 48, 48, 3, generator=torch.Generator().manual_seed(0)).movedim(-1, 1)
    images = torch.nn.functional.interpolate(images[..., ::4, ::4], (64, 64), mode="bicubic").movedim(1, -1).clamp(0, 1)
    clip = torch.cat([images.roll(4 * frame, 2) for frame in range(3)])
    model = FlowAttention.execute(load_model(), clip)[0]
    (tapped,) = (each for value in model.model_options["transformer_options"].values() if type(value) is tuple
                 for each in value)  # fmt: skip
    inner = tapped.technique.flow[:, :, 16:-16, 16:-16]
    assert (inner.mean((0, 2, 3)) - torch.tensor([4 / 64, 0.0])).abs().max() < 0.005


def test_chunks_other_clips_and_unknown_resolutions_are_refused_with_a_cure(subject):
    model, family = subject
    with pytest.raises(ChunkError, match="needs all frames at once"):
        sample(patched(momentum(model, frames_per_batch=2), Technique(a_flow())), family, steps=1)
    with pytest.raises(FlowError, match=r"images holds 2 frames, but the model draws frames 0 to 3"):
        sample(patched(model, Technique(a_flow(2))), family, steps=1)
    with pytest.raises(FlowError, match=r"images holds 9 frames, but the model draws frames 0 to 3"):
        sample(patched(model, Technique(a_flow(9))), family, steps=1)
    with pytest.raises(FlowError, match=r"resolutions is 999, but frames are .* tokens high"):
        sample(patched(model, Technique(a_flow(), (999,))), family, steps=2)


def test_a_part_of_a_clip_follows_its_part_of_the_flow():
    model, flow, part = load_model(), a_flow(2 * FRAMES), {"batch_index": [4, 5, 6, 7]}
    noise = (
        DependencyNoise.execute(3, 0.1, "", "generalised", "bisection", 1, 15)
        .args[0]
        .generate_noise({"samples": torch.zeros(4, 4, 8, 8), **part})
    )

    def drawn(flow):
        return sample(patched(model, Technique(flow)), demo_of(FRAMES), steps=1, noise=noise)

    assert torch.equal(drawn(flow), drawn(flow[FRAMES:]))
    assert difference(drawn(flow), drawn(flow[: FRAMES - 1])) > 0.003


@pytest.mark.parametrize("how", ["area", "mask bounds"])
def test_a_prompt_for_a_part_of_the_frame_is_refused(how):
    wide, (positive, negative) = SimpleNamespace(latent_shape=(FRAMES, 4, 8, 16)), DEMO.conditioning()
    mask = torch.zeros(1, 8, 16)
    mask[..., :8] = 1
    bounds = ConditioningSetMask().append(positive, mask, "mask bounds", 1.0)[0]
    left = ConditioningSetArea().append(positive, 64, 64, 0, 0, 1.0)[0] if how == "area" else bounds
    model = patched(load_model(), Technique(a_flow()))
    with pytest.raises(PartOfFrameError, match="given a part of the frame"):
        sample(model, wide, steps=1, conditioning=(left, negative))
    sample(
        model, wide, steps=1, conditioning=(ConditioningSetMask().append(positive, mask, "default", 1.0)[0], negative)
    )


def test_resolutions_are_of_the_run_and_not_of_one_before_at_another_size():
    small, large = (
        SimpleNamespace(latent_shape=(FRAMES, 4, size, size), conditioning=DEMO.conditioning) for size in (8, 12)
    )
    patched_model = patched(load_model(), Technique(a_flow(), (8,)))
    sample(patched_model, small, steps=2)
    with pytest.raises(FlowError, match="resolutions is 8, but frames are 6, 12 tokens high"):
        sample(patched_model, large, steps=2)
