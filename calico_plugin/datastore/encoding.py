"""etcd's messages <-> our values: nothing here does I/O."""

from __future__ import annotations

from typing import Sequence

from etcd3.etcdrpc import Compare as CompareMessage
from etcd3.etcdrpc import DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, kv_pb2

from calico_plugin.datastore.kv import Change, Compare, Delete, KeyValue, Put


def key_value(message: kv_pb2.KeyValue) -> KeyValue:
    return KeyValue(
        message.key.decode(), message.value, message.mod_revision, message.create_revision, message.lease
    )


def first(messages: Sequence[kv_pb2.KeyValue]) -> KeyValue | None:
    return key_value(messages[0]) if messages else None


def change_of(event: kv_pb2.Event) -> Change:
    # A key that was put and has no previous value has prev_kv empty: its mod_revision is 0.
    previous = key_value(event.prev_kv) if event.prev_kv.mod_revision else None
    if event.type == kv_pb2.Event.DELETE:
        return Change(event.kv.key.decode(), None, event.kv.mod_revision, previous)
    item = key_value(event.kv)
    return Change(item.key, item, item.revision, previous)


def range_of_prefix(prefix: str) -> tuple[bytes, bytes]:
    """(key, range_end) of all keys that start with a prefix; the empty prefix is everything."""
    key = prefix.encode()
    return (key, end_of_prefix(key)) if key else (b"\0", b"\0")


def end_of_prefix(key: bytes) -> bytes:
    """The first key after all that start with `key`."""
    stem = key.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else b"\0"


def compare_message(compare: Compare) -> CompareMessage:
    if compare.prefix:
        # Over a range, a compare must hold for each key in it; over none it is made with mod_revision 0.
        key, end = range_of_prefix(compare.key)
        return CompareMessage(
            result=CompareMessage.LESS,
            target=CompareMessage.MOD,
            key=key,
            range_end=end,
            mod_revision=compare.revision + 1,
        )
    # An absent key compares as mod_revision 0.
    return CompareMessage(
        result=CompareMessage.EQUAL, target=CompareMessage.MOD, key=compare.key.encode(), mod_revision=compare.revision
    )


def operation(change: Put | Delete) -> RequestOp:
    if isinstance(change, Put):
        return RequestOp(request_put=PutRequest(key=change.key.encode(), value=change.value))
    return RequestOp(request_delete_range=DeleteRangeRequest(key=change.key.encode(), prev_kv=True))


def read_operation(key: str, revision: int = 0) -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=key.encode(), revision=revision))
