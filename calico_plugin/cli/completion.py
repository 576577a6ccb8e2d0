"""Shell completion: the scripts for bash and zsh, and what they are answered.

The scripts call calicoctl itself with `_CALICOCTL_COMPLETE` set. Kinds and options are known without a datastore; names
of objects are read from etcd, for at most a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from calico_plugin.cli.session import Session

SHELLS = ("bash", "zsh")
VARIABLE = "_CALICOCTL_COMPLETE"
_SECONDS = 1.0
_FORMS = ("ps", "wide", "yaml", "json", "custom-columns=", "go-template=", "go-template-file=")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    source <(calicoctl completion bash)                                    # this shell
    calicoctl completion bash > /etc/bash_completion.d/calicoctl           # all shells to come
    calicoctl completion zsh > /usr/local/share/zsh/site-functions/_calicoctl
    """
    script = get_completion_class(shell)
    assert script is not None
    root = context.find_root()
    made = script(root.command, {}, "calicoctl", VARIABLE)
    # click's own `source` runs bash to look at its version, and refuses to print on a host without one.
    click.echo(made.source_template % made.source_vars())


def kinds(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Kinds by their usual short word."""
    from calico_plugin.cli.kinds import WORDS

    return [CompletionItem(word) for word in sorted(WORDS) if word.startswith(incomplete.lower())]


def names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of objects of the kind that stands before."""
    try:
        return [CompletionItem(name) for name in _names(context) if name.startswith(incomplete)]
    except Exception:  # the edge: completion must never write into the line that somebody types
        return []


def _names(context: click.Context) -> list[str]:
    from calico_plugin.cli import suggest
    from calico_plugin.cli.kinds import kind_of

    kind = kind_of(str(context.params.get("kind") or ""))
    namespace = context.params.get("namespace")
    session = _session(context)
    try:
        found = suggest.names(session, kind, _SECONDS)
    finally:
        session.close()
    return sorted({key.name for key in found if not namespace or key.namespace == namespace})


def _session(context: click.Context) -> Session:
    """While completing, the root command has not run: there is no session yet."""
    from calico_plugin.cli.session import Session

    return Session(context.params.get("command_config") or context.find_root().params.get("config"), True)


def forms(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What `-o` takes."""
    return [CompletionItem(form) for form in _FORMS if form.startswith(incomplete)]
