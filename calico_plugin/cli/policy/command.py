"""`calicoctl policy`: its commands, and explain."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, NoReturn

import click

from calico_plugin.cli.session import common, session_of
from calico_plugin.errors import CalicoError, InvalidInput

ERROR = 2
_FORMS = ("text", "json")


class Verdict(click.Command):
    """A command whose exit status is a verdict, 0 or 1: whatever goes wrong is 2, with its message."""

    def make_context(self, *given: Any, **more: Any) -> click.Context:
        try:
            return super().make_context(*given, **more)
        except click.UsageError as error:
            error.show()
            raise click.exceptions.Exit(ERROR) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except (CalicoError, click.ClickException) as error:
            _fail(str(error) if isinstance(error, CalicoError) else error.format_message())
        except Exception as error:  # the edge: a bug of ours must not look like a verdict
            _fail(f"Internal error: {type(error).__name__}: {error} (please report it with the output of -l debug)")


def _fail(text: str) -> NoReturn:
    click.echo(text, err=True)
    raise click.exceptions.Exit(ERROR)


class Parts(click.Group):
    """Each command is imported when it is used."""

    names = ("explain", "simulate", "list", "problems", "log")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.names:
            return None
        if cmd_name == "explain":
            return explain
        module = {"list": "listing", "log": "logged"}.get(cmd_name, cmd_name)
        loaded = importlib.import_module(f"calico_plugin.cli.policy.{module}")
        command = getattr(loaded, {"list": "list_"}.get(cmd_name, cmd_name))
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Parts)
def policy() -> None:
    """Policy: why a connection is allowed or denied, what a change would do, what applies to a container."""


def form_of(form: str) -> str:
    """Raises InvalidInput."""
    if form not in _FORMS:
        raise InvalidInput("--output", form, "must be text or json")
    return form


@click.command(cls=Verdict)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.argument("protocol", metavar="PROTO")
@click.argument("port", default="", required=False)
@click.option("-o", "--output", "form", default="text", help="text or json.")
@click.option("--source-port", type=click.IntRange(1, 65535), help="The source's port (default: 49152).")
@click.option("--network", "networks", multiple=True, metavar="NETWORK",
              help="Docker network (or profile) of a container that is told by labels; may be given several times.")
@common
@click.pass_context
def explain(
    context: click.Context, source: str, destination: str, protocol: str, port: str, form: str,
    source_port: int | None, networks: tuple[str, ...], **given: Any
) -> None:
    """Say whether policy allows a connection, which rule decides at each end, and which would decide without it.

    SRC and DST: a container (NAME, or NAME@NETWORK when it has several), an endpoint's id or its first characters, an
    address, a host's name, or labels (role=web,env=prod: a container that would have them). PROTO: tcp, udp, sctp,
    icmp, icmpv6 or a number. PORT: the destination's, also by name; for ICMP the type, or type/code.

    Exit status: 0 allowed, 1 denied, 2 on an error, with a message on standard error.

    \b
    calicoctl policy explain web db tcp 5432
    calicoctl policy explain role=web,env=prod 192.168.3.7 tcp 5432 -o json
    calicoctl policy explain 203.0.113.9 web icmp
    """
    from calico_plugin.cli.output import dump_json
    from calico_plugin.cli.policy import called, flows, host, judge, places, world

    form_of(form)
    session = session_of(context, given)
    number = flows.protocol_of(protocol)
    cluster = world.read(session.kv, session.deadline(), host.environments())
    profiles = tuple(places.profile_of(network, cluster) for network in networks)
    elsewhere = partial(called.read, session.kv, session.deadline())
    ends = [
        places.find(text, side, cluster, host.containers, profiles, elsewhere)
        for side, text in (("SRC", source), ("DST", destination))
    ]
    packet = flows.flow(ends[0], ends[1], number, port, source_port)
    answer = judge.judge(cluster, ends[0], ends[1], packet)
    if form == "json":
        click.echo(dump_json(judge.document(answer, ends[0], ends[1])))
    else:
        click.echo(judge.text(answer, ends[0], ends[1], flows.words(packet)), nl=False)
    if not answer.allowed:
        raise click.exceptions.Exit(1)
