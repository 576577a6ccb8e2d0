"""Writes of endpoints: those that arrive together share one etcd transaction.

The first caller writes at once; who arrives while it is waiting for etcd goes into the next transaction, which the
first of them carries. A caller alone never waits for company. A shared transaction that does not hold (one key exists
already) is repeated one by one, so that nobody pays for another's trouble.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Sequence

from calico_plugin.datastore.kv import KV, Compare, Delete, Put
from calico_plugin.deadline import Deadline
from calico_plugin.errors import AlreadyExists, CalicoError

# etcd's own limit is 128 operations in a transaction.
_OPERATIONS = 96


@dataclass(slots=True, eq=False)
class _Unit:
    """One caller's write and, later, its outcome."""

    compares: Sequence[Compare]
    operations: Sequence[Put | Delete]
    deadline: Deadline
    done: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    revision: int = 0
    error: CalicoError | None = None


class Commits:
    """Shared by all threads of the process."""

    def __init__(self, kv: KV) -> None:
        self._kv = kv
        self._lock = threading.Lock()
        self._queue: list[_Unit] = []
        self._busy = False

    def create(self, key: str, value: bytes, deadline: Deadline, remove: Sequence[str] = ()) -> int:
        """Put `key` where nothing is, and delete the keys in `remove`; the new revision. Raises AlreadyExists."""
        return self._submit((Compare(key, 0),), (Put(key, value), *map(Delete, remove)), deadline)

    def delete(self, keys: Sequence[str], deadline: Deadline) -> int:
        """Delete the keys, whether they are there or not; the revision after it."""
        return self._submit((), tuple(map(Delete, keys)), deadline)

    def _submit(self, compares: Sequence[Compare], operations: Sequence[Put | Delete], deadline: Deadline) -> int:
        unit = _Unit(compares, operations, deadline)
        with self._lock:
            if self._busy:
                self._queue.append(unit)
            else:
                self._busy, unit.leads = True, True
        if not unit.leads:
            # The leader is bounded by its own deadline, which is no longer than any call's.
            unit.done.wait()
        if unit.leads:
            self._lead(unit)
        if unit.error is not None:
            raise unit.error
        return unit.revision

    def _lead(self, own: _Unit) -> None:
        """Commit `own` with all that wait, then hand over to the first of those that came meanwhile."""
        with self._lock:
            batch, self._queue = _batch(own, self._queue)
        try:
            self._commit(batch)
        finally:
            with self._lock:
                following = self._queue.pop(0) if self._queue else None
                self._busy = following is not None
            for unit in batch:
                if unit is not own:
                    unit.done.set()
            if following is not None:
                following.leads = True
                following.done.set()

    def _commit(self, batch: Sequence[_Unit]) -> None:
        if len(batch) > 1:
            try:
                revision = self._transaction(batch)
            except CalicoError as error:
                for unit in batch:
                    unit.error = error
                return
            if revision:
                for unit in batch:
                    unit.revision = revision
                return
        for unit in batch:
            self._alone(unit)

    def _alone(self, unit: _Unit) -> None:
        try:
            unit.revision = self._transaction((unit,))
            if not unit.revision:
                # Only a create compares, and only its own key.
                key = unit.compares[0].key
                unit.error = AlreadyExists(key, self._kv.get(key, unit.deadline))
        except CalicoError as error:
            unit.error = error

    def _transaction(self, units: Sequence[_Unit]) -> int:
        """Revision of the transaction, 0 when it did not hold."""
        commit = self._kv.commit(
            [compare for unit in units for compare in unit.compares],
            [operation for unit in units for operation in unit.operations],
            units[0].deadline,
        )
        return commit.revision if commit.succeeded else 0


def _batch(own: _Unit, queue: list[_Unit]) -> tuple[list[_Unit], list[_Unit]]:
    """Who goes along with `own`, and who waits: etcd takes each key only once in a transaction."""
    batch, later = [own], []
    keys = {operation.key for operation in own.operations}
    for unit in queue:
        added = {operation.key for operation in unit.operations}
        if keys & added or len(keys) + len(added) > _OPERATIONS:
            later.append(unit)
        else:
            batch.append(unit)
            keys |= added
    return batch, later
