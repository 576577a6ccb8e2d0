"""Our second nftables table: it hands DNS queries that look like ones for containers' names to a queue of ours.

Queries of containers are met as they come in, after `prerouting-spoof` of the first table has seen to it that they
carry an address of their own, before connection tracking; those that this host sends (Docker's own forwarder) as
they leave. Only what begins like a name that we know is handed over, and of each link only so many a second; all
else, and everything while nobody listens to the queue, passes as if the table were not there.

A rule of nft's own (`queue`) needs the kernel's nft_queue; where that is missing the target of iptables does, through
nft_compat. Either is loaded by the kernel itself where it is a module.
"""

from __future__ import annotations

import struct
from typing import Collection, Iterable

from calico_plugin.dataplane.libnftables import Runner, Session
from calico_plugin.dataplane.nfwire import Link, Message, attribute, nested, number, string
from calico_plugin.errors import DataplaneError
from calico_plugin.model.names import INTERFACE_PREFIX, NAME_TABLE

TABLE = f"inet {NAME_TABLE}"
PREFIXES = "prefixes"
_ASK = "ask"
# After the first table's -300, before connection tracking at -200.
_PRIORITY = -250
_PER_SECOND, _BURST = 1000, 1000
# linux/netfilter/nf_tables.h, nf_tables_compat.h, xt_NFQUEUE.h
_NEW_RULE, _NEW_ELEMENT, _DELETE_ELEMENT = 6, 12, 14
_CREATE, _APPEND = 0x400, 0x800
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_ELEMENT, _EXPRESSION_NAME, _EXPRESSION_DATA = 1, 1, 2
_TARGET_NAME, _TARGET_REVISION, _TARGET_INFO = 1, 2, 3
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT_KEY, _DATA_VALUE = 1, 1
_QUEUE_BYPASS = 1


class NameTable:
    """Owner of `table inet calico-names`; use from one thread. `number` is the queue's.

    `mask` is laid over the first bytes of a name before they are compared. `transactions` counts what was committed.
    """

    def __init__(self, number: int, mask: bytes, session: Runner | None = None, link: Link | None = None) -> None:
        self._number, self._mask = number, mask
        self._session, self._link = session or Session(), link or Link()
        self.transactions = 0

    def exists(self) -> bool:
        """Raises DataplaneError."""
        return self._link.has_table(NAME_TABLE)

    def write(self, prefixes: Collection[bytes]) -> None:
        """Make the table anew. Raises DataplaneError."""
        try:
            self._run(script(self._mask, prefixes, f"queue num {self._number} bypass"))
        except DataplaneError:
            self._run(script(self._mask, prefixes))
            self._commit([_compat_rule(self._number)])

    def change(self, added: Collection[bytes], removed: Collection[bytes]) -> None:
        """Prefixes that came and went. Raises DataplaneError; then nothing was done."""
        pairs = ((_DELETE_ELEMENT, removed), (_NEW_ELEMENT, added))
        messages = [_elements(kind, prefixes) for kind, prefixes in pairs if prefixes]
        if messages:
            self._commit(messages)

    def remove(self) -> None:
        """Raises DataplaneError."""
        if self.exists():
            self._run(f"delete table {TABLE}")

    def close(self) -> None:
        """The table stays."""
        self._session.close()
        self._link.close()

    def _run(self, text: str) -> None:
        self._session.run(text)
        self.transactions += 1

    def _commit(self, messages: Iterable[Message]) -> None:
        self._link.run(messages)
        self.transactions += 1


def script(mask: bytes, prefixes: Collection[bytes], queue: str = "") -> str:
    """The whole table in nft's language; without `queue` its last rule is missing."""
    name = f"udp dport 53 @th,160,32 & 0x{mask.hex()} @{PREFIXES}"
    chains = {
        _ASK: [queue] if queue else [],
        # A container must not keep the others' queries out.
        "from-link": [
            f"update @askers {{ iifname limit rate {_PER_SECOND}/second burst {_BURST} packets }} jump {_ASK}",
        ],
        "from-containers": [
            f"type filter hook prerouting priority {_PRIORITY}; policy accept;",
            f'iifname "{INTERFACE_PREFIX}*" {name} goto from-link',
            f'meta iifkind "bridge" {name} goto from-link',
        ],
        "from-host": [
            f"type filter hook output priority {_PRIORITY}; policy accept;",
            # Our answers: nothing shall be tracked that could make a connection of what is none.
            'oifname "lo" udp sport 53 fib saddr type != local notrack',
            f"meta skuid 0 {name} limit rate {_PER_SECOND}/second burst {_BURST} packets jump {_ASK}",
        ],
    }
    members = ", ".join(f"0x{prefix.hex()}" for prefix in sorted(prefixes))
    return "\n".join([
        f"add table {TABLE}",
        f"delete table {TABLE}",
        f"table {TABLE} {{",
        f"set {PREFIXES} {{ typeof @th,160,32; " + (f"elements = {{ {members} }}; }}" if members else "}"),
        "set askers { type ifname; flags dynamic; timeout 10s; size 65535; }",
        *(f"chain {chain} {{\n" + "\n".join(lines) + "\n}" for chain, lines in chains.items()),
        "}",
    ])


def _compat_rule(queue: int) -> Message:
    """`-j NFQUEUE --queue-num N --queue-bypass` in chain `ask`."""
    target = (
        string(_TARGET_NAME, "NFQUEUE"),
        number(_TARGET_REVISION, 3),
        attribute(_TARGET_INFO, struct.pack("=HHHxx", queue, 1, _QUEUE_BYPASS)),
    )
    expression = string(_EXPRESSION_NAME, "target") + nested(_EXPRESSION_DATA, *target)
    body = (
        string(_RULE_TABLE, NAME_TABLE),
        string(_RULE_CHAIN, _ASK),
        nested(_RULE_EXPRESSIONS, nested(_ELEMENT, expression)),
    )
    return _NEW_RULE, _CREATE | _APPEND, b"".join(body)


def _elements(kind: int, prefixes: Collection[bytes]) -> Message:
    members = (nested(_ELEMENT, nested(_ELEMENT_KEY, attribute(_DATA_VALUE, prefix))) for prefix in sorted(prefixes))
    body = (
        string(_LIST_TABLE, NAME_TABLE),
        string(_LIST_SET, PREFIXES),
        nested(_LIST_ELEMENTS, *members),
    )
    return kind, _CREATE if kind == _NEW_ELEMENT else 0, b"".join(body)
