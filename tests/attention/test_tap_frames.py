"""Where the tap says that frames lie: patches, padding, text, windows, and when it cannot be told."""

from types import SimpleNamespace

import pytest
from coherence.attention.families import Family, Site
from coherence.attention.frames import Clip
from coherence.techniques.site import after_text, alone, first, last, last_padded

VIDEO, TEXT_AND_VIDEO, VIDEO_AND_POSES, PICTURES, TEXT_AND_PICTURE, PADDED_PICTURE = (
    Site("blocks.0", 0, "joint", 8, None, frames_in, leading)
    for frames_in, leading in (
        ("tokens", alone),
        ("tokens", last),
        ("tokens", first),
        ("rows", None),
        ("rows", after_text),
        ("rows", last_padded(32)),
    )
)


def clip(*shape, branches=2, patch=(1, 2, 2), text=20, **options):
    family = Family("", bool, list, list, lambda _model: patch, draws_pictures=len(shape) == 4 or shape[2] == 1)
    return Clip.of(shape, branches, family, None, options, text)


def window(*indices, anchor=None):
    return SimpleNamespace(index_list=list(indices), causal_anchor_index=anchor)


@pytest.mark.parametrize(
    ("shape", "patch", "expected"),
    [
        ((6, 4, 8, 8), (1, 1, 1), ((0, 1, 2), (8, 8))),  # frames in the rows of two branches
        ((6, 16, 1, 8, 8), (1, 2, 2), ((0, 1, 2), (4, 4))),  # the same in latents with an axis of frames
        ((2, 16, 3, 8, 8), (1, 2, 2), ((0, 1, 2), (4, 4))),
        ((2, 16, 3, 7, 9), (1, 2, 2), ((0, 1, 2), (4, 5))),  # padded to whole patches
        ((2, 16, 5, 8, 8), (2, 2, 2), ((0, 2, 4), (4, 4))),  # two latent frames to a token, the last one padded
    ],
)
def test_frames_and_their_tokens_follow_from_the_latents(shape, patch, expected):
    made = clip(*shape, patch=patch)
    assert (made.frame_indices, made.grid) == expected


@pytest.mark.parametrize(
    ("site", "tokens", "expected"),
    [
        (VIDEO, 48, (0, 0)),
        (TEXT_AND_VIDEO, 48 + 20, (20, 0)),
        (VIDEO_AND_POSES, 48 + 32, (0, 32)),
        (VIDEO, 48 + 16, None),  # a reference image among them
        (VIDEO, 40, None),  # one group of the queries
        (TEXT_AND_VIDEO, 20, None),
        (PICTURES, 48, None),
        (TEXT_AND_PICTURE, 20 + 16 + 16, (20, 16)),  # and a reference
        (TEXT_AND_PICTURE, 20, None),
        (PADDED_PICTURE, 32 + 32, (32, 16)),
        (PADDED_PICTURE, 32, (0, 16)),
    ],
)
def test_tokens_are_told_where_it_is_known_what_else_is_among_them(site, tokens, expected):
    told = clip(2, 16, 3, 8, 8).inside(site, tokens)
    assert told.get("tokens_per_frame") == (None if expected is None else 16)
    assert expected is None or (told["leading_tokens"], told["trailing_tokens"]) == expected


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
