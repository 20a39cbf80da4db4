"""Where the tap says that frames lie: patches, padding, text, windows, and when it cannot be told."""

from types import SimpleNamespace

import pytest
import torch
from coherence.attention.families import Site
from coherence.attention.frames import Clip

VIDEO, TEXT_AND_VIDEO, PICTURES = (
    Site("blocks.0", 0, "joint", 8, None, frames_in=frames_in, text_first=text_first)
    for frames_in, text_first in (("tokens", False), ("tokens", True), ("rows", False))
)


def clip(*shape, branches=2, patch=(1, 2, 2), **options):
    return Clip.of(torch.empty(shape, device="meta"), branches, patch, options)


def window(*indices, anchor=None):
    return SimpleNamespace(index_list=list(indices), causal_anchor_index=anchor)


@pytest.mark.parametrize(
    ("shape", "patch", "expected"),
    [
        ((6, 4, 8, 8), (1, 1, 1), ((0, 1, 2), 1)),  # frames in the rows of two branches
        ((2, 16, 3, 8, 8), (1, 2, 2), ((0, 1, 2), 16)),
        ((2, 16, 3, 7, 9), (1, 2, 2), ((0, 1, 2), 20)),  # padded to whole patches
        ((2, 16, 5, 8, 8), (2, 2, 2), ((0, 2, 4), 16)),  # two latent frames to a token, the last one padded
    ],
)
def test_frames_and_their_tokens_follow_from_the_latents(shape, patch, expected):
    made = clip(*shape, patch=patch)
    assert (made.frame_indices, made.tokens_per_frame) == expected


@pytest.mark.parametrize(
    ("site", "tokens", "expected"),
    [
        (VIDEO, 48, {"leading_tokens": 0, "tokens_per_frame": 16}),
        (TEXT_AND_VIDEO, 48 + 20, {"leading_tokens": 20, "tokens_per_frame": 16}),
        (VIDEO, 48 + 16, {}),  # a reference image among them
        (VIDEO, 40, {}),  # one group of the queries
        (TEXT_AND_VIDEO, 20, {}),
        (PICTURES, 48, {}),
    ],
)
def test_tokens_are_told_only_where_nothing_else_is_among_them(site, tokens, expected):
    assert clip(2, 16, 3, 8, 8).inside(site, tokens) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"context_window": window(4, 5, 6)}, (4, 5, 6)),
        ({"context_window": window(5, 6, anchor=4)}, (4, 5, 6)),
        ({"ad_params": {"sub_idxs": [7, 0, 1]}}, (7, 0, 1)),
        ({"ad_params": {"sub_idxs": None}}, (0, 1, 2)),
        ({"context_window": window(4, 5, 6, 7)}, (0, 1, 2)),  # of other latents
    ],
)
def test_a_window_tells_its_frames(options, expected):
    assert clip(6, 4, 8, 8, **options).frame_indices == expected
    assert clip(2, 16, 3, 8, 8, **options).frame_indices == expected
