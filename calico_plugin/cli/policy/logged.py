"""`calicoctl policy log`: packets that this host's rules tell of, with the rule that did."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from calico_plugin.cli.policy import host, judge
from calico_plugin.cli.policy.command import form_of
from calico_plugin.cli.session import common, session_of

if TYPE_CHECKING:
    from calico_plugin.cli.policy.host import Logged

_SECONDS = 10.0
_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite"}


@dataclass(frozen=True)
class Entry:
    """A logged packet in words: `what` is log, allow or deny."""

    time: str
    direction: str
    what: str
    decision: judge.Decision
    source: str
    destination: str
    protocol: str

    def __str__(self) -> str:
        ends = f"{self.source} > {self.destination} {self.protocol}"
        rule = str(self.decision).partition(": ")[2]
        return f"{self.time} {self.direction:<7} {self.what:<5} {ends}  {rule}"


@click.command("log")
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted (default: for 10 seconds).")
@click.option("--count", type=click.IntRange(1), help="End after so many packets.")
@click.option("-o", "--output", "form", default="text", help="text or json (a line for each packet).")
@common
@click.pass_context
def log(context: click.Context, follow: bool, count: int | None, form: str, **given: Any) -> None:
    """Show packets that meet a rule with action Log on this host, and the rule (root).

    With flowLogsLocalReporter Enabled in the FelixConfiguration, also each connection that a rule allows or denies.
    Samples: at most 50 a second for each rule. Several may follow at once.

    \b
    calicoctl policy log --follow
    calicoctl patch felixconfiguration default -p '{"spec":{"flowLogsLocalReporter":"Enabled"}}'
    """
    form_of(form)
    session_of(context, given)
    over = None if follow else time.monotonic() + _SECONDS
    shown = 0
    with host.logged_packets() as listener:
        while over is None or time.monotonic() < over:
            for packet in listener.read(None if over is None else max(0.0, over - time.monotonic())):
                if packet.lost:
                    click.echo("some packets were not shown: they came too fast", err=True)
                    continue
                _show(entry(packet), form)
                shown += 1
                if count is not None and shown >= count:
                    return


def _show(one: Entry, form: str) -> None:
    if form == "text":
        click.echo(str(one))
        return
    document = {
        "time": one.time, "direction": one.direction, "what": one.what, "source": one.source,
        "destination": one.destination, "protocol": one.protocol, **judge.decision_document(one.decision),
    }
    document.pop("verdict")
    click.echo(json.dumps(document, ensure_ascii=False))


def entry(packet: Logged) -> Entry:
    """The prefix is `<direction> <what> <origin>` (policy.chains.flow_prefix)."""
    direction, _, rest = packet.prefix.partition(" ")
    what, _, origin = rest.partition(" ")
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    protocol = _NAMES.get(packet.protocol, f"protocol {packet.protocol}")
    if packet.icmp_type is not None:
        protocol = f"{protocol} type {packet.icmp_type}"
    ends = (_end(packet.source, packet.source_port), _end(packet.destination, packet.destination_port))
    return Entry(now, direction, what, judge.read_origin(origin), *ends, protocol)


def _end(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
