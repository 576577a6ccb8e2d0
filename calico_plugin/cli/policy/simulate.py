"""`calicoctl policy simulate`: which pairs of running endpoints change their verdict. Nothing is written."""

from __future__ import annotations

import time
from itertools import product
from typing import Any, Iterator, Mapping

import click

from calico_plugin.cli import progress
from calico_plugin.cli.policy import compare, flows, host, judge, places, world
from calico_plugin.cli.policy.command import form_of
from calico_plugin.cli.policy.compare import Change, Probe, Side
from calico_plugin.cli.session import Session, common, session_of
from calico_plugin.cli.verbs import file_options, from_file
from calico_plugin.errors import CalicoError, InvalidInput
from calico_plugin.model.keys import ResourceKey

_FEW_NAMES = 3
_SHOWN = 50
_TELL_SECONDS = 2.0


class Incomplete(CalicoError):
    """The limit was reached."""


@click.command()
@file_options
@click.option("--delete", is_flag=True, help="The file's objects are taken away instead of applied.")
@click.option("--staged", is_flag=True, help="Take the staged policies (of the cluster and the file) as enforced.")
@click.option("--probe", "probes", multiple=True, metavar="PROTO[/PORT]",
              help="Try this besides what the rules name; may be given several times.")
@click.option("--limit", default=500_000, show_default=True, type=click.IntRange(1),
              help="Stop after so many comparisons (some minutes).")
@click.option("-o", "--output", "form", default="text", help="text or json.")
@common
@click.pass_context
def simulate(
    context: click.Context, delete: bool, staged: bool, probes: tuple[str, ...], limit: int, form: str, **given: Any
) -> None:
    """Tell which pairs of running endpoints a change would allow or deny something; nothing is written.

    The file is checked as by apply. For each pair, the protocols and ports that any rule names are tried, and
    tcp 80, udp 53 and a ping. Connections to and from addresses outside are not looked at. Exit status: 0, whatever
    would change; 1 on an error, or when --limit ended it early.

    \b
    calicoctl policy simulate -f change.yaml
    calicoctl policy simulate --staged
    calicoctl policy simulate -f old.yaml --delete -o json
    """
    form_of(form)
    if not given["filename"] and not staged:
        raise InvalidInput("--filename", None, "give a file with -f FILE, or --staged for those of the cluster")
    session = session_of(context, given)
    before, after = _worlds(session, given, delete, staged)
    with progress.working("Compiling the rules before and after"):
        sides = Side(before), Side(after)
    tried = [*compare.probes_of(*sides), *map(_probe, probes)]
    run = _Run(sides, list(dict.fromkeys(tried)), limit)
    known = _names(after)
    found = list(run.changes(after))
    problems = _new_problems(before, after)
    if form == "json":
        from calico_plugin.cli.output import dump_json

        click.echo(dump_json(_document(found, run, known, problems)))
    else:
        click.echo(_text(found, run, known, problems), nl=False)
    if run.stopped:
        raise Incomplete(f"stopped after {limit} comparisons: give a larger --limit")


def _worlds(session: Session, given: dict[str, Any], delete: bool, staged: bool) -> tuple[world.World, world.World]:
    """The cluster, and as it would be. The file goes through all checks of `apply`, against a copy in memory."""
    session.dry_run = True
    before = world.read(session.kv, session.deadline())
    wanted = (from_file(given, new=False) or []) if given["filename"] else []
    for resource in wanted:
        if delete:
            session.resources.delete(resource.kind, resource.name, session.deadline(), resource.namespace)
        else:
            session.resources.initialise(session.deadline())
            session.resources.apply(resource, session.deadline())
    after = world.read(session.kv, session.deadline())
    return before, after.with_staged() if staged else after


def _probe(text: str) -> Probe:
    protocol, _, port = text.partition("/")
    number = flows.protocol_of(protocol)
    if port and not (port.isdigit() and int(port) < 65536):
        raise InvalidInput("--probe", text, "write PROTO/PORT, as tcp/8080, or PROTO")
    if number in (1, 58):
        return Probe(number, icmp_type=int(port) if port else {1: 8, 58: 128}[number])
    if number in flows.WITH_PORTS and not port:
        raise InvalidInput("--probe", text, "write PROTO/PORT, as tcp/8080")
    return Probe(number, int(port) if port else None)


class _Run:
    """Counts what was compared, and stops at the limit."""

    def __init__(self, sides: tuple[Side, Side], probes: list[Probe], limit: int) -> None:
        self.sides, self.probes, self.limit = sides, probes, limit
        self.done = self.classes = self.endpoints = 0
        self.stopped = False

    def changes(self, cluster: world.World) -> Iterator[Change]:
        self.endpoints = len(cluster.endpoints)
        by_family = {family: compare.classes(cluster, *self.sides, family) for family in (4, 6)}
        self.classes = max(map(len, by_family.values()))
        told = time.monotonic()
        for family, groups in by_family.items():
            for change in compare.changes(product(groups, groups), *self.sides, self.probes, family):
                if self.done >= self.limit:
                    self.stopped = True
                    return
                self.done += 1
                if change is not None:
                    yield change
                if progress.wanted() and time.monotonic() - told > _TELL_SECONDS:
                    told = time.monotonic()
                    click.echo(f"\r{self.done} comparisons", err=True, nl=False)
        if progress.wanted() and self.done:
            click.echo("\r" + " " * 60 + "\r", err=True, nl=False)


def _names(cluster: world.World) -> dict[ResourceKey, str]:
    """What people call the endpoints: the container's name where this host's Docker knows it, labels besides."""
    known = host.names_of_endpoints()
    return {
        key: known.get(endpoint.spec.endpoint) or places.short_name(endpoint)
        for key, endpoint in cluster.endpoints.items()
    }


def _new_problems(before: world.World, after: world.World) -> dict[str, str]:
    """What the agents would not understand, and do today."""
    old = before.engine(world.SIMULATED).problems()
    new = after.engine(world.SIMULATED).problems()
    return {str(key): why for key, why in new.items() if key not in old}


def _document(
    found: list[Change], run: _Run, known: Mapping[ResourceKey, str], problems: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "changed": [
            {
                "sources": [_endpoint(key, known) for key in change.sources],
                "destinations": [_endpoint(key, known) for key in change.destinations],
                "pairs": change.pairs,
                "ipVersion": change.family,
                "what": str(change.probe),
                "before": _verdict(change.before),
                "after": _verdict(change.after),
            }
            for change in found
        ],
        "pairs": len({pair for change in found for pair in _pairs(change)}),
        "endpoints": run.endpoints,
        "probes": [str(probe) for probe in run.probes],
        "comparisons": run.done,
        "complete": not run.stopped,
        "problems": dict(problems),
    }


def _pairs(change: Change) -> Iterator[tuple[ResourceKey, ResourceKey]]:
    return (pair for pair in product(change.sources, change.destinations) if pair[0] != pair[1])


def _endpoint(key: ResourceKey, known: Mapping[ResourceKey, str]) -> dict[str, str]:
    return {"name": known[key], "endpoint": key.name, "namespace": key.namespace}


def _verdict(verdicts: compare.Verdicts) -> dict[str, Any]:
    return {"verdict": judge.ALLOW if verdicts.allowed else judge.DENY,
            "decidedBy": judge.decision_document(verdicts.decision)}


def _text(found: list[Change], run: _Run, known: Mapping[ResourceKey, str], problems: Mapping[str, str]) -> str:
    lines = []
    for change in found[:_SHOWN]:
        word = "allowed" if change.after.allowed else "denied"
        lines.append(f"{_some(change.sources, known)} -> {_some(change.destinations, known)}, {change.probe}"
                     f"{' (IPv6)' if change.family == 6 else ''}: {word}")
        lines.append(f"    before  {change.before.decision}")
        lines.append(f"    after   {change.after.decision}")
    if len(found) > _SHOWN:
        lines.append(f"… and {len(found) - _SHOWN} more; -o json has all")
    lines += [f"would not be understood: {key}: {why}" for key, why in problems.items()]
    summary = f"{len(found)} changes" if found else "No pair of endpoints changes"
    lines.append(f"{summary} ({run.endpoints} endpoints, {len(run.probes)} kinds of packets)")
    return "\n".join(lines) + "\n"


def _some(keys: tuple[ResourceKey, ...], known: Mapping[ResourceKey, str]) -> str:
    shown = ", ".join(sorted(known[key] for key in keys)[:_FEW_NAMES])
    return f"{shown} and {len(keys) - _FEW_NAMES} more" if len(keys) > _FEW_NAMES else shown
