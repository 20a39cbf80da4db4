"""Schedules: what they mean at every frame, and what they say when they are wrong."""

import re

import numpy as np
import pytest
import torch
from coherence.frames.schedule import frame_schedule, parse_schedule, schedule_text
from hypothesis import given, settings
from hypothesis import strategies as st


def values(text: str, frames: int, default: float = 0.5) -> list[float]:
    return frame_schedule(text, default, frames, 0, 1).tolist()


def test_schedule_is_linear_between_its_pairs_and_constant_outside() -> None:
    expected = [0.2, 0.2, 0.2, 0.3, 0.4, 0.4]
    assert values("2:0.2, 4:0.4", 6) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "  ", "\n", ","])
def test_empty_schedule_is_the_default(text: str) -> None:
    assert values(text, 3) == [0.5, 0.5, 0.5]


def test_schedule_does_not_mind_order_space_or_line_breaks() -> None:
    assert values(" 4 : 0.4\n2:.2,", 6) == values("2:0.2,4:0.4", 6)


def test_schedule_is_float64() -> None:
    schedule = frame_schedule("0:0.1, 9:1", 0, 10, 0, 1)
    assert schedule.dtype == torch.float64
    assert schedule[3].item() == pytest.approx(0.4, abs=1e-15)


@given(
    pairs=st.dictionaries(st.integers(0, 99), st.floats(0, 1), min_size=1, max_size=6),
    frames=st.integers(1, 120),
)
@settings(deadline=None)
def test_schedule_passes_through_its_pairs_and_stays_between_them(pairs: dict[int, float], frames: int) -> None:
    schedule = values(", ".join(f"{frame}:{value!r}" for frame, value in pairs.items()), frames)
    assert all(schedule[frame] == value for frame, value in pairs.items() if frame < frames)
    slack = 1e-15
    assert all(min(pairs.values()) - slack <= value <= max(pairs.values()) + slack for value in schedule)


@given(st.integers(1, 40), st.integers(0, 40))
@settings(deadline=None)
def test_value_at_a_frame_does_not_depend_on_the_number_of_frames(frames: int, more: int) -> None:
    text = "3:0.1, 17:0.9, 30:0"
    assert values(text, frames) == values(text, frames + more)[:frames]


LISTS = (
    [0.1, 0.4, 0],
    (0.1, 0.4, 0.0),
    torch.tensor([0.1, 0.4, 0], dtype=torch.float64),
    "[0.1, 0.4, 0]",
    " [.1,0.4,0,]\n",
)


@pytest.mark.parametrize("schedule", LISTS, ids=repr)
def test_list_holds_a_value_for_each_frame_and_its_last_from_there_on(schedule) -> None:
    assert values(schedule_text(schedule), 5) == [0.1, 0.4, 0, 0, 0]


@pytest.mark.parametrize("empty", [[], (), "[]", "", "[ ]"])
def test_empty_list_is_the_default(empty) -> None:
    assert values(schedule_text(empty), 3) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("number", [0.25, torch.tensor(0.25).item(), np.float32(0.25)])
def test_number_holds_for_every_frame(number) -> None:
    assert values(schedule_text(number), 3) == [0.25, 0.25, 0.25]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_list_is_read_to_the_last_digit(schedule: list[float]) -> None:
    assert values(schedule_text(schedule), len(schedule)) == schedule
    assert values(schedule_text(str(schedule)), len(schedule)) == schedule


def test_pairs_stay_as_they_are() -> None:
    assert schedule_text("0:0.1, 8:1") == "0:0.1, 8:1"


def test_wrong_value_of_a_list_is_named_with_its_frame() -> None:
    with pytest.raises(ValueError, match=re.escape("'1:1.5': the value must lie between 0 and 1")):
        parse_schedule(schedule_text([0.5, 1.5]), 0, 1)


@pytest.mark.parametrize(
    ("text", "piece", "cure"),
    [
        ("0:0.1, eight:0.2", "eight:0.2", "expected frame:value"),
        ("0:0.1, 8", "'8'", "expected frame:value"),
        ("0:0.1, 8:", "'8:'", "expected frame:value"),
        ("0:0.1; 8:0.2", "0:0.1; 8:0.2", "Separate pieces with commas"),
        ("1.5:0.1", "1.5:0.1", "expected frame:value"),
        ("-1:0.1", "-1:0.1", "frames count from 0"),
        ("0:1.2", "0:1.2", "between 0 and 1"),
        ("0:nan", "0:nan", "between 0 and 1"),
        ("4:0.1, 4:0.2", "4:0.2", "frame 4 is already 0.1"),
    ],
)
def test_schedule_error_names_the_piece_and_the_cure(text: str, piece: str, cure: str) -> None:
    with pytest.raises(ValueError, match=re.escape(cure)) as error:
        parse_schedule(text, 0, 1)
    assert piece in str(error.value)
