"""Whether an error says what was wrong: raised by the pack itself, in words for whoever set up the graph."""

import re
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEVER = (LookupError, AttributeError, TypeError, AssertionError, ArithmeticError, NameError, UnicodeError)
CLEAR = re.compile(
    r"expected|\b(use|choose|set|lower|raise|connect|give|write|leave|remove|take|put|set|change|encode|needs?|make|must)\b",
    re.IGNORECASE,
)


def unclear(error: BaseException) -> str:
    """What is wrong with ``error``; "" for a clear one."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    told = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
    return told if isinstance(error, NEVER) or not is_clear(str(error), where.filename) else ""


def is_clear(message: str, raised_in: str) -> bool:
    path = Path(raised_in)
    ours = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests")
    return ours and CLEAR.search(message) is not None
