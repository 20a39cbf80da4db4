"""ComfyUI started with a flag that keeps a UNet's weights in fp16, bf16 or fp8: nodes work as in full precision."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from coherence.attention.inflation import inflations_of
from coherence.demo.model import load_model
from coherence.hosting.provision import PACK
from family_table import SUBJECTS, TRIALS, column, subject
from inflation_runs import put, random_weights, run
from startup_flags import FLAGS, started_with
from tuning_runs import FORMS, tuned
from watching import difference

BY_FLAG = pytest.mark.parametrize("flag", FLAGS)
FP8, BF16, FP16 = "--fp8_e4m3fn-unet", "--bf16-unet", "--fp16-unet"
TRIED = [
    *(("SD1.5", flag) for flag in FLAGS),
    ("SDXL", FP8),
    ("CogVideoX", BF16),
    ("Wan 2.1", FP8),
    ("LTXV", FP16),
]
"""Every flag, and a few of the families with a loader: the others differ in nothing that a flag touches."""


@cache
def published():
    """FAMILIES.md: by family and node the reason why it is refused, "" where it works."""
    lines = (PACK / "FAMILIES.md").read_text("utf-8").splitlines()
    reasons = dict(re.fullmatch(r"(\d+)\. (.*)\.", line).groups() for line in lines if line[:1].isdigit())
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return {
        family: {
            re.match(r"\[(\w+)]", row[0])[1]: reasons.get("".join(re.findall(r"\d+", row[place])), "") for row in rows
        }
        for place, family in enumerate(header)
        if place
    }


@pytest.mark.slow
@pytest.mark.parametrize(("family", "flag"), TRIED)
def test_every_node_works_on_the_families_on_which_it_works_in_full_precision(tiny_models, family, flag):
    with started_with(flag):
        assert subject(SUBJECTS[family], tiny_models).model.model_dtype() == FLAGS[flag]
        cells = column(SUBJECTS[family], tiny_models)
    assert cells.keys() == TRIALS.keys()
    assert not {node: cell.wrong for node, cell in cells.items() if cell.wrong}
    assert {node: cell.refused for node, cell in cells.items()} == published()[family]


def demo(flag):
    with started_with(flag):
        return load_model()


def inflated_modules(model):
    (inflation,) = inflations_of(model.model_options["transformer_options"])
    return inflation.modules.state_dict()


@BY_FLAG
@FORMS
def test_new_modules_are_made_in_fp32_and_kept_in_what_the_model_computes_in(form, flag):
    expected = inflated_modules(put(demo(""), form))
    computed_on_cpu = demo(flag)
    computed_in_half = computed_on_cpu.clone()
    computed_in_half.set_model_compute_dtype(torch.bfloat16)
    for model, dtype in ((computed_on_cpu, torch.float32), (computed_in_half, torch.bfloat16)):
        modules = inflated_modules(put(model, form))
        assert {x.dtype for x in modules.values()} == {dtype}
        assert all(torch.equal(x, expected[name].to(dtype)) for name, x in modules.items())


@BY_FLAG
@FORMS
def test_tuned_weights_do_not_vanish_in_the_type_of_the_models_weights(form, flag):
    """What tuning adds to W_q is small: e4m3 has no value between 0 and 2e-3. The same weights in fp32 show the
    expected effect."""
    model, same = demo(flag), demo("")
    same.model.diffusion_model.load_state_dict(model.model.diffusion_model.state_dict())
    weights = random_weights(model, form)
    small = {name: 2.4e-4 * x.sign() if ".attn" in name else 0 * x for name, x in weights.tensors.items()}
    weights = replace(weights, tensors=small)
    with_them, without = run(put(model, form, weights)), run(put(model, form))
    assert torch.equal(without, run(put(same, form)))
    assert torch.equal(with_them, run(put(same, form, weights)))
    assert difference(with_them, without) > 1e-4


@BY_FLAG
@FORMS
def test_what_is_tuned_on_such_a_model_is_learned_in_fp32_and_acts_on_it(form, flag):
    model = demo(flag)
    learned = tuned(put(model, form)).weights
    assert {x.dtype for x in learned.tensors.values()} == {torch.float32}
    assert difference(run(put(model, form, learned)), run(put(model, form))) > 1e-4
    assert {x.dtype for x in model.model.diffusion_model.state_dict().values()} == {FLAGS[flag]}
