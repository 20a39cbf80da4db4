"""Weights in fp16, bf16 or fp8, by a startup flag or as a file has them: nodes work as in full precision."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from adapter_runs import QUICK, clips
from coherence.attention.forms import TUNE_A_VIDEO
from coherence.attention.inflation import inflations_of
from coherence.demo.model import load_model
from coherence.hosting.provision import PACK
from coherence.samplers.lora_steps import with_lora
from coherence.training.ge_adapter_training import train_adapter
from comfy.quant_ops import QuantizedTensor
from family_subjects import SUBJECTS, Subject
from family_table import TRIALS, column_of
from inflation_runs import put, random_weights, run
from startup_flags import FLAGS, started_with
from tiny_models import FAMILIES
from tiny_models.quantised import FILES, quantised_demo
from tuning_runs import EI2, FORMS, tuned
from watching import DEMO, difference

BY_FLAG = pytest.mark.parametrize("flag", FLAGS)
FP8, BF16, FP16 = "--fp8_e4m3fn-unet", "--bf16-unet", "--fp16-unet"
FORM_AND_FLAG = pytest.mark.parametrize(
    ("form", "flag"),
    [(EI2, FP8), (TUNE_A_VIDEO, FP8), (EI2, BF16), (TUNE_A_VIDEO, FP16)],
    ids=lambda each: getattr(each, "module", each),
)
"""Both forms in the coarsest type; each of the others with one: what is computed differs by type alone."""
TRIED = [("SD1.5", FP8), ("CogVideoX", BF16), ("LTXV", FP16)]
"""Every flag, and three of the families with a loader: the others differ in nothing that a flag touches. For SD1.5 the
demo model stands in, a tenth of the smallest checkpoint's size: fp8 weights are converted in every call."""


@cache
def published():
    """FAMILIES.md: by family and node the reason why it is refused, "" where it works."""
    lines = (PACK / "FAMILIES.md").read_text("utf-8").splitlines()
    reasons = dict(re.fullmatch(r"(\d+)\. (.*)\.", line).groups() for line in lines if line[:1].isdigit())
    said: dict[str, dict[str, str]] = {}
    header: list[str] = []
    for line in lines:
        place, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if place == "node":
            header = cells
        elif node := re.match(r"\[(\w+)]", place):
            for family, cell in zip(header, cells, strict=True):
                said.setdefault(family, {})[node[1]] = reasons.get("".join(re.findall(r"\d+", cell)), "")
    return said


@pytest.mark.slow
@pytest.mark.parametrize(("family", "flag"), TRIED)
def test_every_node_works_on_the_families_on_which_it_works_in_full_precision(tiny_models, family, flag):
    with started_with(flag):
        loaded = tiny_models.load_stock(SUBJECTS[family])
        tried = Subject(load_model(), DEMO) if family == "SD1.5" else Subject(loaded, FAMILIES[SUBJECTS[family]])
        assert loaded.model_dtype() == tried.model.model_dtype() == FLAGS[flag]
        cells = column_of(tried)
    require_published(cells, family)


def require_published(cells, family):
    assert cells.keys() == TRIALS.keys()
    assert not {node: cell.wrong for node, cell in cells.items() if cell.wrong}
    assert {node: cell.refused for node, cell in cells.items()} == published()[family]


def is_quantised(model):
    return QuantizedTensor in map(type, model.model.diffusion_model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_node_works_on_a_quantised_file_as_on_its_family(tiny_models, file):
    model = tiny_models.load_quantised(file)
    assert is_quantised(model)
    require_published(column_of(Subject(model, FAMILIES["wan21"])), "Wan 2.1")


@pytest.mark.slow
def test_a_quantised_unet_gets_weights_and_learns_as_one_of_the_same_weights_in_full():
    """Its loader does not say how to load it again, as other packs' do not: weights that wrap others are copied."""
    model, same = quantised_demo(), load_model()
    assert is_quantised(model)
    weights = model.model.diffusion_model.named_parameters()
    full = {name: x.dequantize() if isinstance(x, QuantizedTensor) else x for name, x in weights}
    same.model.diffusion_model.load_state_dict(full)
    assert torch.equal(plain := run(model, steps=1), run(same, steps=1))
    learned = {}
    for each in (model, same):
        each.cached_patcher_init = None
        stam = tuned(put(each, EI2, layers="middle")).weights
        with torch.inference_mode():
            lora = train_adapter(each, clips(), QUICK).adapter.lora
        both = run(with_lora(put(each, EI2, stam, layers="middle"), lora, 1.0, 0.0, 1.0, "test"), steps=1)
        learned[each] = {**stam.tensors, **lora, "sampled": both}
    assert all(torch.equal(learned[model][name], x) for name, x in learned[same].items())
    assert difference(learned[model]["sampled"], plain) > 1e-4
    assert torch.equal(run(model, steps=1), plain)


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


@pytest.mark.slow
@FORM_AND_FLAG
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


@pytest.mark.slow
@FORM_AND_FLAG
def test_what_is_tuned_on_such_a_model_is_learned_in_fp32_and_acts_on_it(form, flag):
    model = demo(flag)
    learned = tuned(put(model, form)).weights
    assert {x.dtype for x in learned.tensors.values()} == {torch.float32}
    assert difference(run(put(model, form, learned)), run(put(model, form))) > 1e-4
    assert {x.dtype for x in model.model.diffusion_model.state_dict().values()} == {FLAGS[flag]}
