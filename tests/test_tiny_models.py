"""The tiny models are what the other tests take them for: stock-loaded, of their class, exact, and sharp."""

import gc
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, TinyModels, sample


class EntropyProbe:
    """An attention override that observes: mean entropy of each self-attention map, 1 for a uniform one."""

    def __init__(self) -> None:
        self.entropies: list[float] = []

    def __call__(self, func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        q, k, _, *rest = args
        heads = rest[0] if rest else kwargs["heads"]
        if not kwargs.get("skip_reshape"):
            q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
        if q.shape[2] == k.shape[2] > 1:
            probabilities = torch.softmax(q.float() @ k.float().mT / math.sqrt(q.shape[-1]), dim=-1)
            entropy = torch.special.entr(probabilities).sum(-1).mean() / math.log(k.shape[2])
            self.entropies.append(entropy.item())
        return func(*args, **kwargs)


@pytest.fixture(params=FAMILIES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str, tiny_models: TinyModels) -> Iterator[Any]:
    import comfy.model_management

    yield tiny_models.load(name)
    comfy.model_management.unload_all_models()
    gc.collect()


def test_stock_loader_finds_the_family(model: Any, name: str) -> None:
    import comfy.model_base

    assert type(model.model) is getattr(comfy.model_base, FAMILIES[name].base)


def test_sampling_is_finite_and_repeats_to_the_bit(model: Any, name: str) -> None:
    family = FAMILIES[name]
    first = sample(model, family)
    assert first.shape == family.latent_shape
    assert first.isfinite().all()
    assert torch.equal(sample(model, family), first)


def test_self_attention_is_sharp(model: Any, name: str) -> None:
    probe = EntropyProbe()
    observed = model.clone()
    observed.model_options["transformer_options"]["optimized_attention_override"] = probe
    sample(observed, FAMILIES[name], steps=1)
    assert probe.entropies
    assert sum(probe.entropies) / len(probe.entropies) < 0.9
