"""`calicoctl doctor`."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import click

from calico_plugin.cli.session import common, session_of
from calico_plugin.errors import CalicoError, InvalidInput
from calico_plugin.model.problem import did_you_mean

_SHOWN = 3


@click.command()
@click.option("-o", "--output", "form", default="text", help="text or json.")
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check; may be given several times.")
@click.option(
    "--explain", "text", metavar="TEXT", help="Explain an error text (- for standard input); look at nothing else."
)
@common
@click.pass_context
def doctor(context: click.Context, form: str, only: tuple[str, ...], text: str | None, **given: Any) -> None:
    """Look at this host and the cluster; say what is wrong, what it means, and which command mends it.

    Nothing is changed. Run it as root to see everything. Exit status: 1 when something fails, 0 otherwise (warnings
    included).

    \b
    calicoctl doctor
    calicoctl doctor --only bgp --only etcd
    calicoctl doctor --explain 'plugin "calico" not found'
    """
    if form not in ("text", "json"):
        raise InvalidInput("--output", form, "must be text or json")
    if text is not None:
        _explain(text, form)
        return
    session = session_of(context, given)
    session.allow_version_mismatch = True
    from calico_plugin.cli import progress
    from calico_plugin.cli.doctor import finding, report, run
    from calico_plugin.cli.doctor.context import Context

    known = [check.name for check in run.CHECKS]
    for name in only:
        if name not in known:
            raise InvalidInput("--only", name, f"unknown check{did_you_mean(name, known)}; known: {', '.join(known)}")
    checks = [check for check in run.CHECKS if not only or check.name in only]
    with progress.working("Looking at this host and the cluster"):
        found = list(run.run(Context(session), checks))
    if form == "json":
        click.echo(report.document(found))
    else:
        width = shutil.get_terminal_size((110, 24)).columns
        click.echo(report.text(found, width, sys.stdout.isatty()), nl=False)
    if finding.failed(found):
        raise click.exceptions.Exit(1)


class Unexplained(CalicoError):
    """A text that is not known."""


def _explain(text: str, form: str) -> None:
    import json

    from calico_plugin.cli.doctor.explain import explain

    matches = explain(text if text != "-" else sys.stdin.read())
    if form == "json":
        documents = [
            {"text": one.known.example, "sure": one.sure, "meaning": one.known.meaning, "command": one.known.command}
            for one in matches
        ]
        click.echo(json.dumps(documents, indent=2))
    for match in matches[:_SHOWN] if form == "text" else ():
        if not match.sure:
            click.echo(f"Not known in these words; most like it is: {match.known.example}")
        click.echo(f"{match.known.meaning}\n-> {match.known.command}")
    if not matches:
        raise Unexplained("This text is not known. `calicoctl doctor` looks at this host; `-l debug` shows more")
