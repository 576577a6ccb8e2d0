"""`calicoctl ipam release --from-report`: take back what `ipam check -o` found leaked (node-and-cli 4.8)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

import msgspec

from calico_plugin import __version__
from calico_plugin.cli import progress
from calico_plugin.cli.session import Session
from calico_plugin.errors import CalicoError, Conflict, InvalidInput
from calico_plugin.ipam import Release
from calico_plugin.ipam.cidr import parse_address
from calico_plugin.model.resources import ClusterInformation


class Entry(msgspec.Struct, frozen=True, rename="camel"):
    """One address of a report."""

    ip: str
    handle: str = ""
    sequence_number: int | None = None
    in_use: bool = True


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """What of a report is needed to act on it."""

    version: str = ""
    cluster_guid: str = msgspec.field(name="clusterGUID", default="")
    cluster_information_revision: str = ""
    allocations: Mapping[str, Sequence[Entry]] = {}


class Unsafe(CalicoError):
    """The reports do not fit the cluster as it is now."""


def release(session: Session, paths: Sequence[str], force: bool) -> tuple[int, list[str]]:
    """Release what is leaked in all reports; how many, and why others were not."""
    reports = [read(Path(path)) for path in paths]
    _check(session, reports, force)
    done, kept = 0, []
    for item in progress.track(leaked_in_all(reports), "release"):
        try:
            done += len(session.allocator.release([item], session.deadline()).addresses)
        except Conflict as error:
            kept.append(str(error))
    return done, kept


def read(path: Path) -> Report:
    """Raises InvalidInput for a file that is no report."""
    try:
        return msgspec.convert(json.loads(path.read_text(encoding="utf-8")), Report)
    except OSError as error:
        raise InvalidInput("--from-report", str(path), f"cannot be read: {error.strerror}") from error
    except (ValueError, msgspec.ValidationError) as error:
        raise InvalidInput("--from-report", str(path), f"is no report of `ipam check -o`: {error}") from error


def leaked_in_all(reports: Sequence[Report]) -> list[Release]:
    """Allocations that no report saw in use: the same handle and sequence number in each."""
    sets: list[set[Any]] = [set(_leaked(report)) for report in reports]
    both = set.intersection(*sets) if sets else set()
    return [Release(parse_address(ip), sequence, handle) for ip, sequence, handle in sorted(both, key=str)]


def _leaked(report: Report) -> Iterable[tuple[str, int | None, str]]:
    for entries in report.allocations.values():
        yield from ((entry.ip, entry.sequence_number, entry.handle) for entry in entries if not entry.in_use)


def _check(session: Session, reports: Sequence[Report], force: bool) -> None:
    stored = session.store.resources(ClusterInformation).get("default", session.deadline())
    for report in reports:
        if report.cluster_guid != stored.value.spec.cluster_guid:
            raise Unsafe(f"a report is of another cluster ({report.cluster_guid}): make it anew with `ipam check -o`")
        if report.version != __version__ and not force:
            raise Unsafe(
                f"a report was made by version {report.version}, this is {__version__}: make it anew, or use --force"
            )
    if force:
        return
    if stored.value.spec.datastore_ready is not False:
        raise Unsafe("the datastore is not locked: `calicoctl datastore migrate lock`, check again, or use --force")
    if all(report.cluster_information_revision != str(stored.revision) for report in reports):
        raise Unsafe("no report was made since the datastore was locked: make one with `ipam check -o`, or use --force")
