"""How wide tables may be: people at a terminal get them fitted, everything else gets them whole."""

from __future__ import annotations

import shutil
import sys
from typing import Sequence

SHORTEST = 8
"""No column is made narrower than this."""
_MARK = "…"


def width() -> int | None:
    """Columns of the terminal that standard output is; None when it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fit(
    headings: Sequence[str], rows: Sequence[Sequence[str]], between: int, room: int | None
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, the widest columns cut until a line has at most `room` characters.

    `between` is what stands between two columns. The first column, by which people call things, is cut last.
    """
    table = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(headings))]
    if room is not None:
        widths = _narrowed(widths, room - between * len(widths))
    cut = [[_shortened(cell, size) for cell, size in zip(row, widths)] for row in table]
    return cut[0], cut[1:]


def _narrowed(widths: list[int], room: int) -> list[int]:
    result = list(widths)
    while sum(result) > room:
        others = [index for index in range(1, len(result)) if result[index] > SHORTEST]
        if not others and (not result or result[0] <= SHORTEST):
            break
        widest = max(others, key=lambda index: result[index]) if others else 0
        result[widest] -= 1
    return result


def _shortened(cell: str, size: int) -> str:
    return cell if len(cell) <= size else cell[: size - 1] + _MARK
