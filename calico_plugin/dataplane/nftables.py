"""Driver of our nftables table: the difference between what is there and what should be, one transaction each time.

* What is right is not touched: after a restart the kernel's table is read once and compared.
* One transaction holds sets, members, chains, dispatch and removals: packets see the old table or the new one, no mix.
* A refused transaction changes nothing; the table is then read again and the difference tried once more, then the table
  is made anew in one transaction, at last with those chains closed (drop) that the kernel does not take; then
  DataplaneError.

Use from one thread::

    table = Table()                      # opens its sockets in the calling thread's network namespace
    table.bootstrap(empty_ruleset)       # only if there is no table yet: everything on cali* is dropped
    report = table.apply(ruleset)        # falsy when nothing had to be written
    drifted = table.audit()              # names of objects that others changed; repaired
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from calico_plugin.dataplane import nfdump
from calico_plugin.dataplane.libnftables import Runner, Session
from calico_plugin.dataplane.nfencode import Encoder
from calico_plugin.dataplane.nfread import counted
from calico_plugin.dataplane.nfsteps import Script, State, difference
from calico_plugin.dataplane.nftscript import TABLE, render, script_text
from calico_plugin.dataplane.nfwire import Link, Message
from calico_plugin.errors import DataplaneError
from calico_plugin.model.desired import Chain, Rule, Ruleset, Verdict
from calico_plugin.model.names import NFT_TABLE

__all__ = ["Applied", "Table", "render"]


@dataclass(frozen=True, slots=True)
class Applied:
    """What one `apply` wrote: numbers of objects, their names, how many tries it took, chains that the kernel refused.

    Refused chains drop everything (that of address translation does nothing): name -> the kernel's words. Falsy when
    nothing had to be written.
    """

    sets: int = 0
    members: int = 0
    chains: int = 0
    elements: int = 0
    removed: int = 0
    names: tuple[str, ...] = ()
    attempts: int = 1
    refused: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names)


class Table:
    """Owner of `table inet calico`."""

    def __init__(self, session: Runner | None = None, link: Link | None = None) -> None:
        self._session = session or Session()
        self._link = link or Link()
        self._state: State | None = None
        self._desired = Ruleset()
        self._closed: dict[str, tuple[Chain, str]] = {}

    def exists(self) -> bool:
        """Whether the kernel has our table. Raises DataplaneError."""
        return self._link.has_table(NFT_TABLE)

    def bootstrap(self, ruleset: Ruleset) -> bool:
        """Install `ruleset` (of an engine that knows nothing: all `cali*` traffic dropped) unless the table exists."""
        if self.exists():
            return False
        self.apply(ruleset)
        return True

    def read(self) -> State:
        """What the kernel has. Raises DataplaneError."""
        return nfdump.read(self._link)

    def counters(self, ruleset: Ruleset) -> dict[tuple[str, str], int]:
        """(chain, what a person wrote: `Rule.origin`) -> packets that matched since the chain was last written.

        `ruleset` says what the table's rules stand for. First packets of connections only: later ones meet no policy.
        Raises DataplaneError.
        """
        found: dict[tuple[str, str], int] = {}
        for name, numbers in counted(self._session.run(f"list table {TABLE}")).items():
            chain = ruleset.chains.get(name)
            written = (rule.origin for rule in (chain.rules if chain else ()) if rule.origin)
            for origin, packets in zip(written, (number for number in numbers if number is not None)):
                found[(name, origin)] = found.get((name, origin), 0) + packets
        return found

    def apply(self, ruleset: Ruleset) -> Applied:
        """Make the kernel's table equal to `ruleset`. Raises DataplaneError; then the last try changed nothing."""
        if self._state is None:
            self._state = self.read()
        self._desired = ruleset
        usable = self._without_closed(ruleset)
        try:
            done = self._write(difference(self._state, usable), usable, 1)
        except DataplaneError:
            self._closed = {}
            done = self._retry(ruleset)
        return replace(done, refused=tuple((name, why) for name, (_, why) in sorted(self._closed.items())))

    def audit(self) -> tuple[str, ...]:
        """Compare the kernel with what was applied last, repair, and name what differed. Raises DataplaneError.

        Chains that the kernel refused are tried again.
        """
        self._state = self.read()
        self._closed = {}
        return self.apply(self._desired).names

    def translates(self) -> bool:
        """Whether the kernel took all chains of address translation."""
        return not any(chain.hook is not None and chain.hook.type == "nat" for chain, _ in self._closed.values())

    def close(self) -> None:
        """Release libnftables; the table stays."""
        self._session.close()
        self._link.close()

    def _retry(self, ruleset: Ruleset) -> Applied:
        self._state = self.read()
        try:
            return self._write(difference(self._state, ruleset), ruleset, 2)
        except DataplaneError:
            pass
        try:
            return self._write(difference(self._state, ruleset, whole=True), ruleset, 3)
        except DataplaneError as error:
            return self._write_closed(ruleset, error)

    def _write_closed(self, ruleset: Ruleset, error: DataplaneError) -> Applied:
        """A chain that the kernel refuses must not keep the others out: it drops, and is named."""
        refused = self._refused(ruleset, list(ruleset.chains))
        if not refused or any(_stand_in(ruleset.chains[name]) is None for name in refused):
            self._state = None
            raise error
        self._closed = {name: (ruleset.chains[name], why) for name, why in refused.items()}
        usable = self._without_closed(ruleset)
        return self._write(difference(State(), usable, whole=True), usable, 4)

    def _without_closed(self, ruleset: Ruleset) -> Ruleset:
        """With stand-ins for chains that are still as the kernel refused them; the others get another chance."""
        self._closed = {
            name: (chain, why) for name, (chain, why) in self._closed.items() if ruleset.chains.get(name) == chain}
        stand_ins = (_stand_in(chain) for chain, _ in self._closed.values())
        closed = {chain.name: chain for chain in stand_ins if chain is not None}
        return replace(ruleset, chains={**ruleset.chains, **closed}) if closed else ruleset

    def _refused(self, ruleset: Ruleset, names: list[str]) -> dict[str, str]:
        """Which of these chains the kernel takes exception to, by halves; nothing is touched. Members do not matter."""
        why = self._complaint(ruleset, names)
        if not why:
            return {}
        if len(names) == 1:
            return {names[0]: why}
        middle = len(names) // 2
        return {**self._refused(ruleset, names[:middle]), **self._refused(ruleset, names[middle:])}

    def _complaint(self, ruleset: Ruleset, names: list[str]) -> str:
        """The kernel's words about these chains in a table of otherwise empty objects, or nothing."""
        bare = Ruleset(
            {name: replace(item, members=frozenset()) for name, item in ruleset.sets.items()},
            {**{name: Chain(name) for name in ruleset.chains}, **{name: ruleset.chains[name] for name in names}},
            {name: replace(item, elements={}) for name, item in ruleset.maps.items()},
        )
        try:
            self._session.check(script_text(difference(State(), bare, whole=True)))
        except DataplaneError as error:
            return str(error)
        return ""

    def _write(self, script: Script, ruleset: Ruleset, attempts: int) -> Applied:
        if script.steps:
            try:
                self._link.run(_encoded(script))
            except DataplaneError:
                self._state = None
                raise
        self._state = State.of(ruleset)
        return _applied(script, attempts)


def _encoded(script: Script) -> list[Message]:
    """A rule that cannot be encoded is treated as one that the kernel refuses."""
    try:
        return list(Encoder().messages(script.steps))
    except (ValueError, KeyError, struct.error, OSError) as error:
        raise DataplaneError(f"nftables: a rule or member cannot be written: {error!r}") from error


def _stand_in(chain: Chain) -> Chain | None:
    """What takes the place of a chain that the kernel refuses. A base chain sees all of the host's packets, so it must
    not just drop: without address translation we can live (the kernel may lack it), without the others we cannot.
    """
    if chain.hook is None:
        return replace(chain, rules=(Rule(Verdict.DROP, origin="refused by the kernel"),))
    return replace(chain, rules=()) if chain.hook.type == "nat" else None


def _applied(script: Script, attempts: int) -> Applied:
    return Applied(
        script.sets, script.members, script.chains, script.elements, script.removed, script.names, attempts)
