"""What `get` and its watch both need: what was asked for, and what tables tell besides the objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from calico_plugin.cli import tables
from calico_plugin.cli.session import Session
from calico_plugin.model.resources import BGPConfiguration


@dataclass(frozen=True)
class Wanted:
    """One thing to read: a list of a kind when `name` is empty."""

    kind: str
    name: str = ""
    namespace: str = ""


def facts(session: Session, headings: Sequence[str]) -> tables.Facts:
    """The AS number that nodes inherit is read only when a column shows it."""
    if "ASN" not in headings:
        return tables.Facts()
    stored = session.store.resources(BGPConfiguration).find("default", session.deadline())
    number = stored.value.spec.as_number if stored else None
    return tables.Facts(number) if number is not None else tables.Facts()
