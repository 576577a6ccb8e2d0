"""Results as a table for people and as JSON for tools (``build/bench/<name>.json``)."""
from __future__ import annotations

import json
import math
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

FOLDER = Path("build/bench")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass
class Report:
    """Rows of one benchmark, all with the same columns."""

    name: str
    title: str
    rows: list[dict[str, object]] = field(default_factory=list)

    def add(self, **row: object) -> None:
        """Add a row; floats are shown with two digits after the point."""
        self.rows.append(row)

    def table(self) -> str:
        """All rows as aligned text."""
        if not self.rows:
            return f"{self.title}: nothing measured"
        heads = list(self.rows[0])
        cells = [heads, *([_text(row.get(head, "")) for head in heads] for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
        return "\n".join([self.title, "-" * len(self.title), *lines, ""])

    def finish(self) -> Path:
        """Print the table, write the JSON, and return its path."""
        print(self.table(), flush=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"{self.name}.json"
        data = {"name": self.name, "title": self.title, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "kernel": platform.release(), "rows": self.rows}
        path.write_text(json.dumps(data, indent=1) + "\n")
        return path


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
