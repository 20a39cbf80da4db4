"""Sheet and plot are drawn whatever texts users write: dollars, lines, letters that no font has."""

import json

import pytest
from coherence.batching.figures import numbers_in
from coherence.batching.manifest import Manifest
from coherence.batching.plot import draw_plot
from coherence.batching.sheet import draw_sheets
from coherence.batching.variations import one_line
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

TEXTS = st.lists(st.text(max_size=40), min_size=2, max_size=4, unique=True)


def records_of(values: list, column: str = "Prompt.text", failed: int = 0) -> list[dict]:
    """A finished run for each value; the last ``failed`` of them failed."""
    records = []
    for number, value in enumerate(values, start=1):
        record = {"key": f"{number}", "run": number, "label": str(value), "values": {column: value}, "status": "done"}
        record |= {"files": [], "figures": {"seconds": 1.0}, "error": str(value)}
        records.append(record | ({"status": "failed"} if number > len(values) - failed else {}))
    return records


@settings(max_examples=4, deadline=None)
@given(texts=TEXTS, node=st.text(max_size=8))
@example(texts=["$$$ money $$$", "$x_{", "\\frac{1"], node="$")
@example(texts=["two\nlines", "\r\n", "\ud800", "\x00"], node="_")
def test_sheet_and_plot_are_drawn_whatever_the_texts(texts, node, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    records = records_of(texts, f"{node}.text")
    for record in records:
        record["values"]["n.seed"] = 1
        record["figures"] |= {f"{node}: {texts[0]}": float(record["run"])}
    twins = [record | {"key": f"b{record['run']}", "values": record["values"] | {"n.seed": 2}} for record in records]
    assert draw_plot(records + twins, folder)
    assert len(draw_sheets(records + twins, folder)) == 1, "a grid of all combinations"
    for path in draw_sheets(records_of(texts, failed=1), folder):
        with Image.open(path) as sheet:
            assert sheet.width > 400


def test_pages_of_an_earlier_table_do_not_stay(tmp_path):
    many = [record | {"figures": {"seconds": float(record["run"])}} for record in records_of([*range(130)])]
    assert len(draw_sheets(many, tmp_path)) == 3
    assert draw_plot(many, tmp_path)
    kept = ["0001_a.png", "contact_sheet_before.png"]
    for name in kept:
        (tmp_path / name).touch()
    draw_sheets(many[:1], tmp_path)
    assert draw_plot(many[:1], tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "contact_sheet.png"])


def test_a_comparison_has_a_row_for_every_figure(tmp_path):
    def height(figures):
        records = records_of([1, 2])
        for record in records:
            record["figures"] = {f"figure {n}": float(n * record["run"]) for n in range(1, figures + 1)}
        with Image.open(draw_plot(records, tmp_path)) as plot:
            return plot.height

    assert height(12) > 1.8 * height(6)


def test_every_mean_of_a_report_is_a_figure():
    """Those of what lies beside the means, too, as the picture's content and the flow's agreement."""
    clip = {"mean": {"ssim": 0.9}, "ssim": [0.8, 1.0], "content": {"mean": {"prompt": 0.3}, "prompt": [0.2, 0.4]}}
    report = {"frames": 3, "clip": clip, "drift": {"hue": 0.5}}
    expected = {"frames": 3, "clip ssim": 0.9, "clip content prompt": 0.3, "drift hue": 0.5}
    assert dict(numbers_in(json.dumps(report))) == expected


@given(text=st.text(max_size=20))
@example(text="\ud800")
def test_the_manifest_holds_any_text(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "manifest.jsonl"
    Manifest(path).add("finished", key=text, status="failed", error=text)
    assert Manifest(path).finished[text]["error"] == text


@pytest.mark.parametrize(("value", "shown"), [("a\nb", "a b"), (3, "3"), (None, "None"), ("\ud800!", "?!")])
def test_a_value_is_shown_in_one_line(value, shown):
    assert one_line(value) == shown
