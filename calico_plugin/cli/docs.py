"""Writes docs/calicoctl.md from the commands themselves: `python -m calico_plugin.cli.docs > docs/calicoctl.md`
(`make docs`). A test says when that was forgotten.
"""

from __future__ import annotations

import inspect
import re
from typing import Iterator

import click

from calico_plugin.cli.main import root
from calico_plugin.model.resources import KINDS

PROGRAM = "calicoctl"

_HEAD = """\
# calicoctl

<!-- Made by `make docs` from the commands themselves: change their help texts, not this file. -->

Manages Calico's networks, policies and addresses on plain Docker hosts. The objects are Calico v3's own: what this
program writes, the original `calicoctl` reads, and the other way round.

* **Where etcd is** comes from `/etc/calico/calicoctl.cfg` (or `--config`), and only when there is no such file from
  `ETCD_ENDPOINTS`, `ETCD_CA_CERT_FILE`, `ETCD_CERT_FILE`, `ETCD_KEY_FILE`, `ETCD_USERNAME` and `ETCD_PASSWORD`. `sudo`
  drops the environment: use `sudo -E`.
* **Exit status** is 0 for success and for help, 1 for everything else (`diff`: also when something would change;
  commands of `policy` whose 1 is an answer have 2 for errors).
* **Errors and notes go to standard error**, results to standard output. Piped tables have fixed columns; on a terminal
  they are cut to its width.
* **Options**: `--flag value` and `--flag=value` are the same, `-o=wide` is `-o wide`, and a long option may be cut
  short as long as it is clear which one is meant (`--skip-em`).
* **Files**: YAML or JSON, one object, a list, a `…List`, or several documents; `-f DIRECTORY` reads `*.yaml`, `*.yml`
  and `*.json`, `-f -` standard input. All objects are checked before the first is written. Manifests of Calico 1.x and
  2.x (`apiVersion: v1`) are converted, and a line on standard error says what they became.
* **apply** tells on standard error what became of each object: `IPPool(web-net) created`, `configured` or `unchanged`.
* **--dry-run** of create, apply, replace, delete, patch, label and `ipam split` takes all steps and checks of the real
  run against a copy of the datastore's content in memory, tells what would change, and writes nothing.
"""


def document() -> str:
    """The whole text."""
    return "\n".join((_HEAD, *_kinds(), *_command(root, PROGRAM, 2, None), *_checks(), *_texts())).rstrip() + "\n"


def _kinds() -> Iterator[str]:
    from calico_plugin.cli.kinds import WORDS

    yield "## Kinds\n\nAny of these words, in any case:\n"
    yield "| kind | words | namespaced |\n|---|---|---|"
    for kind in sorted(KINDS.values(), key=lambda kind: kind.name):
        words = sorted((word for word, name in WORDS.items() if name == kind.name), key=lambda word: (len(word), word))
        yield f"| {kind.name} | {', '.join(f'`{word}`' for word in words)} | {'yes' if kind.namespaced else ''} |"
    yield ""


def _command(command: click.Command, path: str, depth: int, parent: click.Context | None) -> Iterator[str]:
    # With its parent, as when it is run: commands keep what their first context made of them.
    context = click.Context(command, parent=parent, info_name=path, **({} if parent else root.context_settings))
    if path != PROGRAM:
        yield f"{'#' * depth} {path}\n"
        pieces = " ".join(command.collect_usage_pieces(context))
        yield f"```\n{path} {pieces}\n```\n"
        yield f"{_help(command.help or '')}\n"
    else:
        yield "## Options before the command\n"
    yield from _options(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(inner, f"{path} {name}", depth + (path != PROGRAM), context)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    shown = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    records = [record for parameter in shown if (record := parameter.get_help_record(context))]
    if not records:
        return
    yield "| option | |\n|---|---|"
    for names, text in records:
        yield f"| `{_cell(names)}` | {_cell(text)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _help(text: str) -> str:
    """Paragraphs as they are; those marked with \\b, which keep their lines, as code."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            parts.append(f"```\n{inspect.cleandoc(paragraph[1:].lstrip(chr(10)))}\n```")
        else:
            parts.append(" ".join(paragraph.split()))
    return "\n\n".join(parts)


def _checks() -> Iterator[str]:
    from calico_plugin.cli.doctor import run

    yield "## What the doctor looks at\n"
    yield "| check | |\n|---|---|"
    for check in run.CHECKS:
        yield f"| `{check.name}` | {' '.join((inspect.getdoc(check.run) or '').split())} |"
    yield ""


def _texts() -> Iterator[str]:
    from calico_plugin.cli.doctor.texts import KNOWN

    yield "## Error texts that the doctor explains\n\nWith `calicoctl doctor --explain TEXT`:\n"
    for known in KNOWN:
        yield f"* `{known.example}`: {known.meaning}\n  Do: `{known.command}`"
    yield ""


if __name__ == "__main__":
    click.echo(document(), nl=False)
