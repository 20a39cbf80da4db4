"""What functions of other packs remember, for each clip its own."""

from functools import partial

import pytest
from coherence.samplers.own_state import OwnState, holders_of


def in_a_variable():
    count = 0

    def step():
        nonlocal count
        count += 1
        return count

    return step


def in_a_list():
    counts = []

    def step():
        counts.append(1)
        return len(counts)

    return step


def in_a_dictionary():
    return partial(lambda kept: kept.update(n=kept.get("n", 0) + 1) or kept["n"], {})


class Counter:
    n = 0

    def step(self):
        self.n += 1
        return self.n

    __call__ = step


def around_another():
    inner = in_a_variable()
    return lambda: inner()


FUNCTIONS = {
    "a variable": in_a_variable,
    "a list": in_a_list,
    "a dictionary": in_a_dictionary,
    "an object": Counter,
    "a method's object": lambda: Counter().step,
    "another function": around_another,
}


@pytest.mark.parametrize("place", FUNCTIONS)
def test_each_clip_counts_for_itself(place):
    step, state = FUNCTIONS[place](), OwnState()

    def call(clip):
        with state.of(clip, holders_of(step)):
            return step()

    assert [call(clip) for clip in (0, 1, 0, 0, 1)] == [1, 1, 2, 3, 2]
    assert step() == 1


def test_what_somebody_else_writes_meanwhile_is_for_all_clips():
    kept, state = {"n": 0}, OwnState()

    def call(clip):
        with state.of(clip, [kept]):
            kept["n"] += 1
            kept["new"] = clip
            return kept["n"]

    assert [call(0), call(1), call(0)] == [1, 1, 2]
    assert kept == {"n": 0}
    kept["n"] = 10
    assert [call(0), call(1)] == [11, 11]


def test_after_an_error_too_the_common_state_is_back():
    kept, state = {}, OwnState()

    def fail():
        with state.of(0, [kept]):
            kept["n"] = 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert kept == {}
    with state.of(0, [kept]):
        assert kept == {"n": 1}
