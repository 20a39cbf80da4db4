"""Cosines of vectors, held to their definitions in numpy."""

import numpy as np
import pytest
import torch
from coherence.metrics.embeddings import (
    consistency_with_first,
    directional_similarity,
    frame_consistency,
    similarity,
)


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_figures_of_neighbours_are_cosines():
    frames = vectors(5, 7) + 1
    x = frames.numpy()
    assert frame_consistency(frames).tolist() == pytest.approx([cosine(x[i], x[i + 1]) for i in range(4)])
    vbench = [(max(0, cosine(x[i], x[0])) + max(0, cosine(x[i], x[i - 1]))) / 2 for i in range(1, 5)]
    assert consistency_with_first(frames).tolist() == pytest.approx(vbench)


def test_opposite_frames_count_as_nothing_alike_in_vbench():
    frames = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert frame_consistency(frames).tolist() == [-1.0]
    assert consistency_with_first(frames).tolist() == [0.0]


def test_the_direction_is_that_of_unit_vectors():
    frames, source, text, source_text = vectors(3, 7, seed=1), vectors(3, 7, seed=2), vectors(7, seed=3), vectors(7)
    e, s, t, u = (
        x.numpy() / np.linalg.norm(x.numpy(), axis=-1, keepdims=True) for x in (frames, source, text, source_text)
    )
    direct = [cosine(e[i] - s[i], t - u) for i in range(3)]
    assert directional_similarity(frames, source, text, source_text).tolist() == pytest.approx(direct)
    scaled = directional_similarity(3 * frames, 0.5 * source, 7 * text, source_text)
    assert scaled.tolist() == pytest.approx(direct)


def test_nothing_that_moved_has_no_direction():
    frames, text = vectors(3, 7), vectors(7, seed=1)
    assert directional_similarity(frames, 2 * frames, text, vectors(7, seed=2)).isnan().all()
    assert directional_similarity(frames, vectors(3, 7, seed=3), text, text).isnan().all()


def test_a_text_is_compared_with_every_frame():
    frames, text = vectors(3, 7), vectors(7, seed=1)
    assert similarity(frames, text).tolist() == pytest.approx([cosine(each, text.numpy()) for each in frames.numpy()])
