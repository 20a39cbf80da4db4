"""The contact sheet: what every run made, under the values that it was made with. Needs Pillow."""

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import SECONDS, STEADINESS
from .manifest import DONE, write_whole
from .pictures import show
from .variations import one_line, short_names, varied

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Json = dict[str, Any]
INK, MUTED, WRONG, PAPER, RULE = "#1f2933", "#616e7c", "#b42318", "#ffffff", "#d9dee3"
_FRAMES, _SMALL, _LARGE = 4, 112, 240  # a clip's frames, their side, that of a picture alone
_GAP, _SPACE, _MARGIN = 4, 24, 24
_TEXT, _LINE, _MOST_LINES = 14, 18, 4
_WIDTH, _WIDEST = 1920, 4000
_MOST_ON_A_PAGE = 60


def draw_sheets(records: Sequence[Json], folder: Path) -> list[Path]:
    """Write the contact sheet of a batch, in as many pages as it takes; returns their paths."""
    axes = varied([record["values"] for record in records])
    shown = {record["key"]: show(record, folder, _FRAMES) if record["status"] == DONE else [] for record in records}
    sheet = _Sheet(axes, shown)
    if sheet.is_grid(records):
        pages = [sheet.grid(records)]
    else:
        starts = range(0, len(records), _MOST_ON_A_PAGE)
        pages = [sheet.flow(records[start : start + _MOST_ON_A_PAGE]) for start in starts]
    paths = [folder / f"contact_sheet{f'_{number}' if number > 1 else ''}.png" for number in range(1, len(pages) + 1)]
    for path, page in zip(paths, pages, strict=True):
        page.save(drawn := BytesIO(), format="png")
        write_whole(path, drawn.getvalue())
    for path in {*folder.glob("contact_sheet_*.png")}.difference(paths):
        if re.fullmatch(r"contact_sheet_\d+", path.stem):  # of an earlier, longer table
            path.unlink()
    return paths


class _Sheet:
    def __init__(self, axes: Mapping[str, list[Any]], shown: "Mapping[str, list[Image.Image]]") -> None:
        self._axes, self._shown = axes, shown
        self._names = short_names(list(axes))
        self._font, self._bold = _font(_TEXT), _font(_TEXT + 2)
        most = max((len(pictures) for pictures in shown.values()), default=1)
        self._frames = max(most, 1)
        self._side = _SMALL if self._frames > 1 else _LARGE
        # As high as the highest of the pictures when it fills its width.
        ratios = [picture.height / picture.width for pictures in shown.values() for picture in pictures]
        self._height = round(self._side * min(max(ratios, default=1.0), 1.5))
        self._width = max(self._frames * (self._side + _GAP) - _GAP, _LARGE)

    def is_grid(self, records: Sequence[Json]) -> bool:
        """Whether the runs are all combinations of two inputs, and few enough to be seen at once."""
        if len(self._axes) != 2:
            return False
        down, across = self._axes.values()
        places = {tuple(repr(record["values"].get(column)) for column in self._axes) for record in records}
        fits = len(across) * (self._width + _SPACE) <= _WIDEST and len(down) <= _MOST_ON_A_PAGE // 3
        return fits and len(places) == len(records) == len(down) * len(across)

    def grid(self, records: Sequence[Json]) -> "Image.Image":
        """Rows for the first input, columns for the second."""
        (down_name, down), (across_name, across) = self._axes.items()
        side = max(self._bold.getlength(self._say(down_name, value)) for value in down)
        left = _MARGIN + round(min(side, _LARGE)) + _SPACE
        row_height = self._height + _LINE + _SPACE
        page, draw = _page(
            left + len(across) * (self._width + _SPACE) - _SPACE + _MARGIN,
            _MARGIN + _LINE + _SPACE // 2 + len(down) * row_height - _SPACE + _MARGIN,
        )
        for column, value in enumerate(across):
            place = (left + column * (self._width + _SPACE), _MARGIN)
            draw.text(place, self._fit(self._say(across_name, value), self._width, self._bold), INK, self._bold)
        top = _MARGIN + _LINE + _SPACE // 2
        for row, value in enumerate(down):
            label = self._fit(self._say(down_name, value), _LARGE, self._bold)
            draw.text((_MARGIN, top + row * row_height + self._height // 2 - _LINE // 2), label, INK, self._bold)
        for record in records:
            row = down.index(record["values"].get(down_name))
            column = across.index(record["values"].get(across_name))
            self._cell(page, draw, record, left + column * (self._width + _SPACE), top + row * row_height)
        return page

    def flow(self, records: Sequence[Json]) -> "Image.Image":
        """Runs in the order of the table, each under its values."""
        labels = {record["key"]: self._label(record) for record in records}
        lines = max(len(label) for label in labels.values())
        columns = min(max((_WIDTH - 2 * _MARGIN + _SPACE) // (self._width + _SPACE), 1), len(records))
        rows = -(-len(records) // columns)
        height = lines * _LINE + 4 + self._height + _LINE + _SPACE
        page, draw = _page(
            2 * _MARGIN + columns * (self._width + _SPACE) - _SPACE, 2 * _MARGIN + rows * height - _SPACE
        )
        for place, record in enumerate(records):
            row, column = divmod(place, columns)
            left, top = _MARGIN + column * (self._width + _SPACE), _MARGIN + row * height
            label = labels[record["key"]]
            for number, line in enumerate(label):
                draw.text((left, top + (lines - len(label) + number) * _LINE), line, INK, self._font)
            self._cell(page, draw, record, left, top + lines * _LINE + 4)
        return page

    def _cell(self, page: "Image.Image", draw: "ImageDraw.ImageDraw", record: Json, left: int, top: int) -> None:
        """Pictures, or what went wrong; and a line of figures below."""
        for number, picture in enumerate(self._shown[record["key"]]):
            picture = picture.convert("RGB")
            picture.thumbnail((self._side, self._height))
            corner = (left + number * (self._side + _GAP), top)
            page.paste(picture, corner)
            # White pictures end somewhere, too.
            draw.rectangle((*corner, corner[0] + picture.width - 1, top + picture.height - 1), outline=RULE)
        below = top + self._height + 2
        if record["status"] == DONE:
            if not self._shown[record["key"]]:
                draw.rectangle((left, top, left + self._width, top + self._height), outline=RULE)
                draw.text((left + 8, top + 8), "no picture", MUTED, self._font)
            figures = record["figures"]
            told = f"{record['run']}:  {figures[SECONDS]:.1f} s"
            told += f",  SSIM {figures[STEADINESS]:.3f}" if STEADINESS in figures else ""
            draw.text((left, below), told, MUTED, self._font)
            return
        draw.rectangle((left, top, left + self._width, top + self._height), outline=WRONG)
        most = max(self._height // _LINE - 1, 1)
        for number, line in enumerate(self._wrap(record["error"], self._width - 16)[:most]):
            draw.text((left + 8, top + 6 + number * _LINE), line, WRONG, self._font)
        draw.text((left, below), f"{record['run']}:  failed", WRONG, self._font)

    def _label(self, record: Json) -> list[str]:
        said = [self._say(column, record["values"].get(column)) for column in self._axes] or [record["label"]]
        lines = [line for each in said for line in self._wrap(each, self._width)]
        return [*lines[: _MOST_LINES - 1], "…"] if len(lines) > _MOST_LINES else lines

    def _say(self, column: str, value: Any) -> str:
        return f"{self._names[column]} = {'(the workflow’s)' if value is None else one_line(value)}"

    def _fit(self, text: str, width: float, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont") -> str:
        if font.getlength(text) <= width:
            return text
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        return text + "…"

    def _wrap(self, text: str, width: float) -> list[str]:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if self._font.getlength(longer) <= width or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(word)
        return [self._fit(line, width, self._font) for line in lines]


def _page(width: int, height: int) -> "tuple[Image.Image, ImageDraw.ImageDraw]":
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (max(width, 2 * _LARGE), height), PAPER)
    return page, ImageDraw.Draw(page)


def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """matplotlib's, which knows more letters than Pillow's own."""
    from PIL import ImageFont

    try:
        from matplotlib import get_data_path
    except ImportError:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
