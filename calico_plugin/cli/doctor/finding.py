"""What a check says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Iterable


class Level(str, Enum):
    """SKIP: could not be looked at for a reason that another finding tells, or makes no sense here."""

    OK = "ok"
    SKIP = "skip"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """`summary` is what was seen; of a problem, `meaning` is what it does to users and `command` what mends it."""

    check: str
    level: Level
    summary: str
    meaning: str = ""
    command: str = ""

    def document(self) -> dict[str, str]:
        """For JSON; `level` as its word."""
        return {**asdict(self), "level": self.level.value}


def failed(findings: Iterable[Finding]) -> bool:
    return any(finding.level is Level.FAIL for finding in findings)
