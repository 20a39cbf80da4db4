"""Branches of a call and their copies: whose rows are whose, and what is computed once."""

import pytest
import torch
from coherence.attention.prefix import layers_before, shared
from coherence.samplers.branches import StepBranches, Variant, combined
from coherence.techniques.branches import Copy, OfClip, branches_of, originals, rows_of, told_order, with_branches
from comfy.hooks import EnumHookType, Hook, HookGroup
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

C, CU, CI = Variant("positive"), Variant("positive", 0.0, "owner"), Variant("positive", 1.0, "owner")
N, NI = Variant("negative"), Variant("negative", 1.0, "owner")


def copy(of, index=0):
    return Copy(of, index, "owner", 1.0)


def test_others_see_a_copy_as_its_original():
    options = {"cond_or_uncond": [3, 2, 1, 0], "uuids": [copy("c"), copy("n", 1), "n", "c"], "other": 1}
    branches = branches_of(options)
    assert [index for index, _ in branches] == [0, 1, 1, 0]
    told = with_branches(options, branches[1:])
    assert told == {"cond_or_uncond": [1, 1, 0], "uuids": options["uuids"][1:], "other": 1}
    assert options["cond_or_uncond"] == [3, 2, 1, 0]


def test_others_are_told_of_a_clip_what_it_is_told_alone():
    tags = [OfClip("n", 1, 1), OfClip("n", 1, 0), OfClip("c", 0, 1), OfClip("c", 0, 0)]
    branches = branches_of({"cond_or_uncond": [3, 2, 1, 0], "uuids": tags})
    assert [index for index, _ in branches] == [1, 1, 0, 0]
    assert told_order(branches) == [0, 1, 2, 3]


@given(st.permutations([copy("c"), copy("c"), "c", copy("n", 1), "n"]))
def test_negatives_are_told_first_and_copies_after_what_they_are_copies_of(tags):
    indices = [tag.index if isinstance(tag, Copy) else "cn".index(tag) for tag in tags]
    branches = branches_of({"cond_or_uncond": indices, "uuids": tags})
    told = [branches[position] for position in told_order(branches)]
    assert [tag for _, tag in told] == ["n", copy("n", 1), "c", copy("c"), copy("c")]


def test_equal_branches_are_known_by_the_first_of_them():
    branches = branches_of({"cond_or_uncond": [1, 0, 2, 3], "uuids": ["n", "c", copy("c"), copy("c")]})
    assert originals(branches) == ([0, 1], [0, 1, 1, 1])


def test_where_the_original_is_in_another_call_its_copies_still_share():
    assert originals(branches_of({"cond_or_uncond": [2, 3], "uuids": [copy("c"), copy("c")]})) == ([0], [0, 0])


def test_branches_without_uuid_are_never_taken_for_equal():
    assert originals(branches_of({"cond_or_uncond": [1, 0]})) == ([0, 1], [0, 1])


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.integers(1, 3))
def test_taking_the_originals_and_handing_them_out_again_changes_no_row(names, size):
    branches = [(0, name) for name in names]
    kept, place = originals(branches)
    rows = torch.cat([torch.full((size, 2), float(ord(name))) for name in names])
    assert torch.equal(rows_of(rows_of(rows, len(names), kept), len(kept), place), rows)


class Counting(nn.Module):
    """A layer of ComfyUI's, by name, that counts its rows."""

    __module__ = "comfy.test"

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x, others, options=None):
        self.rows.append((len(x), len(others[0]), options["cond_or_uncond"]))
        return x * 2, others[0] + 1


def test_shared_layers_run_on_the_originals_alone():
    layer = Counting()
    branches = [(1, "n"), (0, "c"), (0, copy("c")), (0, copy("c"))]
    c, n = torch.rand(2, 3), torch.rand(2, 3)
    rows = torch.cat([n, c, c, c])
    options = with_branches({}, branches)
    with shared([layer], branches, len(rows), {}):
        doubled, added = layer(rows, (rows, None), options=options)
    assert layer.rows == [(4, 4, [1, 0])]
    assert torch.equal(doubled, rows * 2)
    assert torch.equal(added, rows + 1)
    layer(rows, (rows, None), options=options)
    assert layer.rows[-1] == (8, 8, [1, 0, 0, 0])


def test_layers_before_a_module_end_before_it_runs_and_are_comfyuis():
    first, foreign, second, third = (Downsample(4, False) for _ in range(4))
    foreign = nn.Sequential(foreign)
    foreign.__class__ = type("Motion", (nn.Sequential,), {"__module__": "other_pack"})
    holder = nn.Module()
    holder.transformer_blocks = nn.ModuleList([nn.Sequential(Downsample(4, False)), nn.Sequential(third)])
    for block in holder.transformer_blocks:
        block.__class__ = type("Block", (nn.Sequential,), {"__module__": "comfy.test"})
    layers = [first, foreign, holder, second]
    assert layers_before(layers, {third}) == [first, holder.transformer_blocks[0]]
    assert layers_before(layers, {first}) == []
    assert layers_before(layers, {foreign[0]}) == [first]


# A step's branches ---------------------------------------------------------------------------------------------


class Model:
    """A ``calc_cond_batch`` whose output is the conditioning's number, plus the copy's role if it is one."""

    def __init__(self):
        self.asked = []

    def __call__(self, model, conds, x, sigma, options):
        self.asked.append([None if each is None else [tag["uuid"] for tag in each] for each in conds])
        return [self._output(each) for each in conds]

    @staticmethod
    def _output(conds):
        if conds is None:
            return torch.zeros(1)
        tag, number = conds[0]["uuid"], conds[0]["number"]
        return torch.tensor([number + (tag.role or 0.0) * 10 if isinstance(tag, Copy) else number])


POSITIVE, NEGATIVE = [{"uuid": "c", "number": 1.0}], [{"uuid": "n", "number": 2.0}]
SIDES = {"positive": POSITIVE, "negative": NEGATIVE}


def step(wanted, positive=None, handler=None):
    return StepBranches(wanted, positive or {C: 1}, SIDES, handler)


def call(branches, model, conds):
    assert branches.should_use_context(None, conds, None, None, {})
    return branches.execute(model, None, conds, None, None, {})


def test_copies_go_into_the_guiders_own_call_and_it_gets_what_it_asked_for():
    model, branches = Model(), step([CU, CI])
    outputs = call(branches, model, [POSITIVE, NEGATIVE])
    assert model.asked == [[["c"], ["n"], [Copy("c", 0, "owner", 0.0)], [Copy("c", 0, "owner", 1.0)]]]
    assert [x.item() for x in outputs] == [1.0, 2.0]
    assert {branch: x.item() for branch, x in branches.outputs.items()} == {C: 1.0, CU: 1.0, CI: 11.0}
    assert not branches.missing


def test_a_later_call_of_the_same_step_is_left_alone():
    model, branches = Model(), step([CI])
    call(branches, model, [POSITIVE, NEGATIVE])
    call(branches, model, [POSITIVE])
    assert model.asked[1] == [["c"]]


def test_a_positive_that_nobody_needs_is_not_evaluated():
    model, branches = Model(), step([], {CI: 1})
    outputs = call(branches, model, [POSITIVE, NEGATIVE])
    assert model.asked == [[[Copy("c", 0, "owner", 1.0)], ["n"]]]
    assert [x.item() for x in outputs] == [11.0, 2.0]


def test_the_guider_gets_a_combination_for_its_positive():
    outputs = call(step([], {C: 1, N: 1, NI: -1}), Model(), [POSITIVE, NEGATIVE])
    assert [x.item() for x in outputs] == [1.0 + 2.0 - 12.0, 2.0]


def test_conditionings_are_told_wherever_they_stand_and_whoever_copied_them():
    model, branches = Model(), step([CI])
    call(branches, model, [[dict(NEGATIVE[0])], [{"uuid": "x", "number": 5.0}], [dict(POSITIVE[0])]])
    assert model.asked[0][3] == [Copy("c", 2, "owner", 1.0)]


def test_what_no_call_evaluates_is_missing():
    branches = step([CI], {C: 1, N: 1, NI: -1})
    call(branches, Model(), [POSITIVE, None])
    assert branches.missing == {N, NI}


def test_copies_that_several_owners_ask_for_are_kept_apart_and_the_originals_as_they_are():
    theirs = CI._replace(owner="another")
    model, branches = Model(), step([C, CI], {CU: 1, theirs: 1, C: -1})
    outputs = call(branches, model, [POSITIVE, NEGATIVE])
    assert [tag.owner for _, _, *copies in model.asked for (tag,) in copies] == ["owner", "another", "owner"]
    assert branches.outputs[C].item() == 1.0
    assert outputs[0].item() == 1.0 + 11.0 - 1.0


@pytest.mark.parametrize(("kind", "calls"), [(EnumHookType.Weight, 1), (EnumHookType.TransformerOptions, 3)])
def test_copies_that_bring_code_are_calls_of_their_own(kind, calls):
    hooks = HookGroup()
    hooks.add(Hook(hook_type=kind))
    positive = [{**POSITIVE[0], "hooks": hooks}]
    model, branches = Model(), StepBranches([CU, CI], {C: 1}, {"positive": positive, "negative": NEGATIVE}, None)
    outputs = call(branches, model, [positive, NEGATIVE])
    assert len(model.asked) == calls
    assert [x.item() for x in outputs] == [1.0, 2.0]
    assert {branch: x.item() for branch, x in branches.outputs.items()} == {C: 1.0, CU: 1.0, CI: 11.0}


def test_a_handler_behind_gets_the_copies_too():
    class Windows:
        def should_use_context(self, model, conds, *_):
            self.conds = len(conds)
            return True

        def execute(self, calc, *call):
            return [2 * x for x in calc(*call)]

    windows = Windows()
    branches = step([CI], handler=windows)
    outputs = call(branches, Model(), [POSITIVE, NEGATIVE])
    assert windows.conds == 3
    assert [x.item() for x in outputs] == [2.0, 4.0]
    assert branches.outputs[CI].item() == 22.0


@pytest.mark.parametrize("factors", [{C: 1}, {C: 1, CI: -1}, {C: 1, N: 1, NI: -1}])
def test_a_combination_is_the_sum_of_factors_and_outputs(factors):
    outputs = {branch: torch.randn(2) for branch in (C, CI, N, NI)}
    torch.testing.assert_close(combined(factors, outputs), sum(outputs[b] * f for b, f in factors.items()))
