"""`calicoctl policy list --for CONTAINER`: what applies to an endpoint, in order, for each direction."""

from __future__ import annotations

from functools import partial
from typing import Any, Iterator, Mapping

import click

from calico_plugin.cli.policy import called, host, judge, places, world
from calico_plugin.cli.policy.command import form_of
from calico_plugin.cli.policy.judge import Decision
from calico_plugin.cli.policy.places import Place
from calico_plugin.cli.session import common, session_of
from calico_plugin.errors import InvalidInput
from calico_plugin.model.desired import Ruleset, Verdict
from calico_plugin.policy.chains import FROM_WORKLOAD, TO_WORKLOAD

_WORDS = {
    Verdict.ACCEPT: "Allow", Verdict.DROP: "Deny", Verdict.REJECT: "Deny", Verdict.RETURN: "Pass",
    Verdict.CONTINUE: "Log",
}
Counters = Mapping[tuple[str, str], int]


@click.command("list")
@click.option("--for", "wanted", metavar="CONTAINER", required=True,
              help="A container of this host, an endpoint's id, an address, or labels (a=b,c=d).")
@click.option("--counters", is_flag=True, help="Packets that each rule has matched on this host (root).")
@click.option("-o", "--output", "form", default="text", help="text or json.")
@common
@click.pass_context
def list_(context: click.Context, wanted: str, counters: bool, form: str, **given: Any) -> None:
    """List the rules that apply to a container, in the order in which they are tried.

    --counters reads this host's own table, so the container must be here. Only the first packet of a connection meets a
    rule. Rules of a policy are counted for all containers that it governs together, from when its rules were last
    written.
    """
    from calico_plugin.cli.output import dump_json

    form_of(form)
    session = session_of(context, given)
    cluster = world.read(session.kv, session.deadline(), host.environments())
    elsewhere = partial(called.read, session.kv, session.deadline())
    place = places.find(wanted, "--for", cluster, host.containers, (), elsewhere)
    if place.resource is None:
        raise InvalidInput("--for", wanted, "must be an endpoint or labels: policy of other addresses does not exist")
    node = place.node or place.resource.spec.node
    if counters and node != host.node_name():
        raise InvalidInput("--counters", None, f"the container is on node {node}; run it there")
    rules = cluster.with_resources(place.resource).engine(node).compile()
    counted = host.counters(rules) if counters else None
    found = {direction: list(applied(cluster, rules, place, direction, counted)) for direction in ("ingress", "egress")}
    if form == "json":
        click.echo(dump_json({"endpoint": place.resource.name, "name": place.name, "node": place.node, **{
            direction: [_document(*one) for one in entries] for direction, entries in found.items()}}))
    else:
        click.echo(_text(place, found), nl=False)


def applied(
    cluster: world.World, rules: Ruleset, place: Place, direction: str, counted: Counters | None
) -> Iterator[tuple[Decision, int | None]]:
    """Every written rule of the endpoint's list once, in order, with its packets."""
    start = rules.maps[TO_WORKLOAD if direction == "ingress" else FROM_WORKLOAD].elements.get(place.interface)
    if start is None:
        yield Decision("Deny", rule="the agent does not know the endpoint (see `calicoctl policy problems`)"), None
        return
    seen = set()
    for chain, verdict, origin in _written(rules, start):
        if (chain, origin) in seen:
            continue
        seen.add((chain, origin))
        read = judge.read_origin(origin)
        told = Decision(_WORDS.get(verdict, "Deny"), read.tier, read.kind, read.name, read.rule,
                        judge.rule_text(cluster, read, direction))
        yield told, None if counted is None else counted.get((chain, origin), 0)


def _written(rules: Ruleset, chain: str) -> Iterator[tuple[str, Verdict, str]]:
    found = rules.chains[chain]
    for name in found.sorts:
        yield from _written(rules, name)
    for rule in found.rules if not found.sorts else ():
        if rule.verdict in (Verdict.JUMP, Verdict.GOTO):
            yield from _written(rules, rule.target)
        elif rule.origin:
            yield chain, rule.verdict, rule.origin


def _document(told: Decision, packets: int | None) -> dict[str, Any]:
    document = {**judge.decision_document(told)}
    document["action"] = document.pop("verdict")
    return document if packets is None else {**document, "packets": packets}


def _text(place: Place, found: Mapping[str, list[tuple[Decision, int | None]]]) -> str:
    lines = [str(place)]
    for direction, entries in found.items():
        lines += ["", f"{direction}:"]
        last = None
        for number, (told, packets) in enumerate(entries, 1):
            holder = (told.tier, told.kind, told.name)
            if holder != last and any(holder):
                lines.append("  " + ", ".join(_holder(told)))
            last = holder
            counted = "" if packets is None else f"{packets:>10} packets"
            what = f"rule {told.rule}" if told.rule.isdigit() else told.rule
            lines.append(f"  {number:>3}. {told.verdict:<6}{counted} {what}  {told.text}".rstrip())
    return "\n".join(lines) + "\n"


def _holder(told: Decision) -> Iterator[str]:
    if told.tier:
        yield f"tier {told.tier}"
    if told.kind:
        yield f"{told.kind} {told.name}"
