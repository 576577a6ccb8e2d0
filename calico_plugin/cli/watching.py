"""`calicoctl get … --watch`: what is there, then every change, until interrupted.

Tables get a column EVENT (ADDED, MODIFIED, DELETED) in front; YAML gives one document and JSON one line for each event,
both with `type` and `object`. A lost connection is told on standard error and mended; what changed meanwhile is shown.
"""

from __future__ import annotations

import json
import signal
import threading
from contextlib import contextmanager
from types import FrameType
from typing import Any, Iterator, Sequence

import click

from calico_plugin.cli import objects, tables, yamlout
from calico_plugin.cli.output import Form, Row
from calico_plugin.cli.session import Session
from calico_plugin.cli.wanted import Wanted, facts
from calico_plugin.datastore.kv import Change, KeyValue
from calico_plugin.datastore.watch import Broken, Changes, Event, Listed, Watch, difference
from calico_plugin.errors import CorruptValue, InvalidInput
from calico_plugin.model import codec, keys
from calico_plugin.model.codec import Stored
from calico_plugin.model.resources import KINDS

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"
_EVENT = "EVENT"


def run(session: Session, wanted: Sequence[Wanted], form: Form, with_namespace: bool) -> None:
    """Print until interrupted. Raises InvalidInput for what cannot be watched."""
    kinds = {item.kind for item in wanted}
    if len(kinds) != 1 or form.name == "go-template":
        raise InvalidInput("--watch", None, "works for one kind, and not with go-template")
    kind, names = wanted[0].kind, {item.name for item in wanted} - {""}
    session.resources  # the version check
    watch = Watch(session.kv, [keys.kind_prefix(kind, wanted[0].namespace)])
    printer = _printer(session, kind, form, with_namespace)
    with _closed_by_interrupt(watch):
        for word, stored in _events(kind, watch):
            if not names or stored.value.name in names:
                printer.show(word, stored)


@contextmanager
def _closed_by_interrupt(watch: Watch) -> Iterator[None]:
    """Ctrl-C ends the watch as `close` does.

    An exception out of a signal may come up inside of gRPC, which can swallow it; and the handler runs in the very
    thread that may hold the watch's lock, so that another one has to close it.
    """

    def close(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=watch.close, name="close-watch", daemon=True).start()

    before = signal.signal(signal.SIGINT, close)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        watch.close()


def _events(kind: str, watch: Watch) -> Iterator[tuple[str, Stored[Any]]]:
    """Words and objects. What does not parse is told on standard error and left out."""
    known: dict[str, KeyValue] = {}
    for event in watch:
        for change in _changes(event, known):
            before = known.pop(change.key, None)
            if change.item:
                known[change.key] = change.item
            item = change.item or before or change.previous
            if item is None:
                continue
            word = DELETED if change.item is None else MODIFIED if before else ADDED
            try:
                stored = codec.decode_stored(KINDS[kind].type, item.key, item.value, item.revision)
            except CorruptValue as error:
                click.echo(f"Warning: {error}", err=True)
                continue
            yield word, stored


def _changes(event: Event, known: dict[str, KeyValue]) -> tuple[Change, ...]:
    if isinstance(event, Broken):
        click.echo(f"Warning: {event.error}; trying again", err=True)
        return ()
    if isinstance(event, Listed):
        ((_, items),) = event.items.items()
        return difference(known, items, event.revision)
    assert isinstance(event, Changes)
    return event.changes


class _Documents:
    def __init__(self, form: str) -> None:
        self._form = form

    def show(self, word: str, stored: Stored[Any]) -> None:
        event = {"type": word, "object": objects.shown(stored)}
        text = f"---\n{yamlout.dump(event)}" if self._form == "yaml" else json.dumps(event) + "\n"
        click.echo(text, nl=False)


class _Table:
    """Rows as they come: columns grow with the cells, the heading stands once."""

    def __init__(self, session: Session, kind: str, headings: Sequence[str]) -> None:
        self._kind, self._headings = kind, headings
        self._facts = facts(session, headings)
        self._row = Row((_EVENT.ljust(len(MODIFIED)), *headings))
        click.echo(self._row.line((_EVENT, *headings)))

    def show(self, word: str, stored: Stored[Any]) -> None:
        cells = tables.cells(self._kind, self._headings, stored.value, self._facts)
        click.echo(self._row.line((word, *cells)))


def _printer(session: Session, kind: str, form: Form, with_namespace: bool) -> _Documents | _Table:
    if not form.is_table:
        return _Documents(form.name)
    return _Table(session, kind, tables.columns(kind, form.name, form.headings, with_namespace))
