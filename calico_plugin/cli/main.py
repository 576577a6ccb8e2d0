"""The root of calicoctl: its commands, the one place where errors become text and an exit status, and the settings that
all share.

Exit status: 0 for success (and help), 1 for everything else; a command whose 1 is an answer has 2 for errors. Errors go
to standard error; a traceback never does (bugs of ours are shown in one line, the whole with `--log-level debug`).
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import click
from click.shell_completion import CompletionItem

from calico_plugin.cli.session import Session
from calico_plugin.errors import CalicoError

# `-o=wide`, which kubectl's users type, is `-owide`.
_SHORT = re.compile(r"^-([A-Za-z])=(?=.)")
LEVELS = ("panic", "fatal", "error", "warn", "info", "debug")


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is imported when it is used: `target` is `module:attribute`, `help` its line in the list."""

    target: str
    help: str


COMMANDS: dict[str, Lazy] = {
    "create": Lazy("calico_plugin.cli.verbs:create", "Create objects from a file."),
    "apply": Lazy("calico_plugin.cli.verbs:apply", "Create objects, or make existing ones as a file says."),
    "replace": Lazy("calico_plugin.cli.verbs:replace", "Make existing objects as a file says."),
    "diff": Lazy("calico_plugin.cli.diff:diff", "Show what apply would change."),
    "delete": Lazy("calico_plugin.cli.verbs:delete", "Delete objects and what belongs to them."),
    "get": Lazy("calico_plugin.cli.get:get", "Show objects as a table, YAML, JSON or by a template."),
    "label": Lazy("calico_plugin.cli.label:label", "Set or remove a label of an object."),
    "patch": Lazy("calico_plugin.cli.patch:patch", "Change some members of an object."),
    "validate": Lazy("calico_plugin.cli.verbs:validate", "Check files without a datastore."),
    "convert": Lazy("calico_plugin.cli.convert:convert", "Turn v1 manifests into v3 manifests."),
    "ipam": Lazy("calico_plugin.cli.ipam:ipam", "Addresses: show, check, release, configure, split."),
    "node": Lazy("calico_plugin.cli.node.command:node", "This host: run, status, stop, reset, checksystem, diags."),
    "policy": Lazy("calico_plugin.cli.policy.command:policy", "Policy: explain, simulate, list, problems, log."),
    "datastore": Lazy("calico_plugin.cli.datastore:datastore", "The datastore: purge, lock, unlock, export."),
    "cluster": Lazy("calico_plugin.cli.cluster:cluster", "The cluster: diags."),
    "doctor": Lazy("calico_plugin.cli.doctor.command:doctor", "Find what is wrong with this host and the cluster."),
    "completion": Lazy("calico_plugin.cli.completion:completion", "Print the completion script for a shell."),
    "version": Lazy("calico_plugin.cli.version:version", "Show the versions of this program and of the cluster."),
}


# Commands of Calico 0.x to 2.x that tutorials still name -> what does the same now.
HISTORIC: dict[str, str] = {
    "config": "use `calicoctl patch` of bgpconfiguration default or felixconfiguration default",
    "pool": "use `calicoctl get ippool`, and `calicoctl create -f FILE` with an IPPool",
    "profile": "use `calicoctl get profile`, and `calicoctl apply -f FILE` with a Profile",
    "bgp": "use `calicoctl get bgppeer` and `calicoctl get bgpconfiguration`, and `calicoctl apply -f FILE`",
    "endpoint": "use `calicoctl get workloadendpoint -A`",
    "container": "use `docker network connect NETWORK CONTAINER`",
    "checksystem": "use `calicoctl node checksystem`",
    "diags": "use `calicoctl node diags`",
    "status": "use `calicoctl node status`",
    "reset": "use `calicoctl node reset`",
}


class LazyGroup(click.Group):
    """Imports a command only when it is called, so that `--help` and short commands start fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        module, attribute = lazy.target.split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            from calico_plugin.model.problem import did_you_mean

            if args[0] in HISTORIC:
                raise click.UsageError(f"{args[0]!r} was a command of older releases: {HISTORIC[args[0]]}", ctx)
            raise click.UsageError(f"Unknown command: {args[0]!r}{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, from the list alone: no command is imported to have its name completed."""
        found = [CompletionItem(name, help=lazy.help) for name, lazy in COMMANDS.items() if name.startswith(incomplete)]
        return found + [item for item in click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "-l", "--log-level", type=click.Choice(LEVELS), default="panic", help="How much to log (default: nothing)."
)
@click.option(
    "-c", "--config", type=click.Path(path_type=Path), help="Connection settings (default: /etc/calico/calicoctl.cfg)."
)
@click.option("--allow-version-mismatch", is_flag=True, help="Work on a cluster that another version of Calico runs.")
@click.option(
    "--context", "kubernetes_context", hidden=True, help="Accepted for compatibility; names a Kubernetes context."
)
@click.version_option(package_name="calico-docker", message="%(version)s")
@click.pass_context
def root(
    context: click.Context,
    log_level: str,
    config: Path | None,
    allow_version_mismatch: bool,
    kubernetes_context: str | None,
) -> None:
    """Manage Calico's networks, policies and addresses.

    Where etcd is comes from /etc/calico/calicoctl.cfg (or --config), else from ETCD_ENDPOINTS and the like in the
    environment.
    """
    if log_level not in ("panic", "fatal"):
        from calico_plugin.observe import log

        log.setup("calicoctl", log_level)
    session = Session(config, allow_version_mismatch)
    context.obj = session
    context.call_on_close(session.close)


def run(arguments: Sequence[str], program: str = "calicoctl") -> int:
    """Run one command line; the exit status."""
    try:
        words = [_SHORT.sub(r"-\1", word) for word in arguments]
        status = root.main(words, prog_name=program, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.NoSuchOption as error:
        if whole := _whole_option(error):
            return run(_replaced(arguments, error.option_name, whole), program)
        error.show()
    except click.ClickException as error:
        error.show()
    except CalicoError as error:
        click.echo(str(error), err=True)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted", err=True)
    except BrokenPipeError:
        # The reader (head, less) has gone: nothing is wrong, and nothing more can be said, also when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # the edge: whatever else happens is a bug of ours, told in one line
        _log_bug(arguments)
        advice = "please report it with the output of -l debug"
        click.echo(f"Internal error: {type(error).__name__}: {error} ({advice})", err=True)
    return 1


def _whole_option(error: click.NoSuchOption) -> str:
    """The one long option that a word begins, as the original's users abbreviate; "" when there is none or several."""
    assert error.ctx is not None
    known = {
        name
        for parameter in error.ctx.command.get_params(error.ctx)
        if isinstance(parameter, click.Option) and not parameter.hidden
        for name in parameter.opts
        if len(error.option_name) > 2 and name.startswith(error.option_name)
    }
    return known.pop() if len(known) == 1 else ""


def _replaced(arguments: Sequence[str], short: str, whole: str) -> list[str]:
    """With the first `--sh` or `--sh=value` written out; nothing of the command has been done yet."""
    words = list(arguments)
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == short:
            words[place] = f"{whole}{equals}{value}"
            break
    return words


def _log_bug(arguments: Sequence[str]) -> None:
    """Where an unexpected error came from, for who asked for a log; others get one line."""
    if "-l" in arguments or any(argument.startswith("--log-level") for argument in arguments):
        import structlog

        from calico_plugin.observe import log

        log.bug(structlog.get_logger(), "calicoctl failed")


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
