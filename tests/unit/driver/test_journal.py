"""Deletes that etcd has not heard of survive the process."""

from __future__ import annotations

from pathlib import Path

from calico_plugin.driver.journal import ADDRESS, ENDPOINT, Journal


def test_entries_survive_and_endpoints_come_first(tmp_path: Path) -> None:
    """An address must not be given back while its endpoint still stands."""
    journal = Journal(tmp_path)
    assert not journal.pending.is_set() and journal.entries() == ()
    journal.add(ADDRESS, "10.9.0.1")
    journal.add(ADDRESS, "fd00::1")
    journal.add(ENDPOINT, "e" * 64)
    journal.add(ENDPOINT, "e" * 64)
    again = Journal(tmp_path)
    assert again.pending.is_set()
    assert [(entry.kind, entry.name) for entry in again.entries()] == [
        (ENDPOINT, "e" * 64),
        (ADDRESS, "fd00::1"),
        (ADDRESS, "10.9.0.1"),
    ]
    assert again.has(ADDRESS, "fd00::1") and not again.has(ADDRESS, "fd00::2")


def test_it_settles_only_when_nothing_is_left(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(ENDPOINT, "one")
    journal.settle()
    assert journal.pending.is_set()
    journal.remove(ENDPOINT, "one")
    journal.remove(ENDPOINT, "one")
    journal.settle()
    assert not journal.pending.is_set() and journal.entries() == ()
