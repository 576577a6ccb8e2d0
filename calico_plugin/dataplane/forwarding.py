"""The answer to Docker's `FORWARD` policy DROP: accept rules for `cali*` links, where Docker promises to leave them.

An nftables accept binds no other table, so what our own table lets pass must be accepted once more in iptables. The
rules go to `DOCKER-USER`, which Docker keeps (it re-inserts the jump at its start and with each network), or to
`FORWARD` itself when only that one drops. They are judged by our comment alone; our own drops are final, so their
place does not matter for policy.

A host has up to four filters: iptables-nft and iptables-legacy, IPv4 and IPv6. Only those are looked at that exist:
merely listing a legacy table would make the kernel create it. Each look starts a process (5 ms), so the caller paces
it.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Sequence

from calico_plugin.errors import DataplaneError
from calico_plugin.model.names import INTERFACE_PREFIX

COMMENT = "calico: accepted here, policed in table inet calico"
DOCKER_CHAIN, FORWARD = "DOCKER-USER", "FORWARD"
SECONDS = 10.0
_LOCK_SECONDS = "5"


@dataclass(frozen=True, slots=True)
class Filter:
    """One iptables command, and the file that names its tables when it is a legacy one."""

    command: str
    legacy_tables: Path | None = None


FILTERS = (
    Filter("iptables-nft"),
    Filter("ip6tables-nft"),
    Filter("iptables-legacy", Path("/proc/net/ip_tables_names")),
    Filter("ip6tables-legacy", Path("/proc/net/ip6_tables_names")),
)

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def run_command(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command; one that is not installed reads like one that found nothing."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(list(words), 127, "", f"{words[0]} is not installed")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(list(words), 124, "", f"no answer within {SECONDS:g} s")


def ensure(run: Run = run_command, filters: Iterable[Filter] = FILTERS) -> tuple[str, ...]:
    """Put the accept rules where they are missing; one sentence for each place that was changed.

    Raises DataplaneError.
    """
    changed = []
    for one in filters:
        chain, lines = _place(run, one)
        missing = [rule for rule in _rules() if not _holds(lines, rule)] if chain else []
        for rule in missing:
            _change(run, [one.command, "-w", _LOCK_SECONDS, "-I", chain, "1", *rule])
        if missing:
            changed.append(f"accept rules for {INTERFACE_PREFIX}* put into {chain} ({one.command})")
    return tuple(changed)


def missing(run: Run = run_command, filters: Iterable[Filter] = FILTERS) -> tuple[str, ...]:
    """Places where an accept rule is missing, as `FORWARD (iptables-nft)`; nothing is changed."""
    found = []
    for one in filters:
        chain, lines = _place(run, one)
        if chain and not all(_holds(lines, rule) for rule in _rules()):
            found.append(f"{chain} ({one.command})")
    return tuple(found)


def remove(run: Run = run_command, filters: Iterable[Filter] = FILTERS) -> int:
    """Take all accept rules away (`calicoctl node reset`); how many there were. Raises DataplaneError."""
    removed = 0
    for one in filters:
        for chain in (DOCKER_CHAIN, FORWARD):
            for rule in _rules():
                while _holds(_listing(run, one, chain), rule):
                    _change(run, [one.command, "-w", _LOCK_SECONDS, "-D", chain, *rule])
                    removed += 1
    return removed


def _rules() -> tuple[tuple[str, ...], ...]:
    links = f"{INTERFACE_PREFIX}+"
    return tuple((way, links, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT") for way in ("-i", "-o"))


def _place(run: Run, one: Filter) -> tuple[str, list[str]]:
    """The chain where our rules belong in this filter, and its rules; no chain where nothing stands in the way."""
    lines = _listing(run, one, DOCKER_CHAIN)
    if lines:
        return DOCKER_CHAIN, lines
    lines = _listing(run, one, FORWARD)
    return (FORWARD, lines) if f"-P {FORWARD} DROP" in lines else ("", [])


def _holds(lines: list[str], rule: tuple[str, ...]) -> bool:
    start = f" {rule[0]} {rule[1]} "
    return any(start in line and COMMENT in line for line in lines)


def _listing(run: Run, one: Filter, chain: str) -> list[str]:
    """The chain's rules as `iptables -S` prints them; none when the filter or the chain does not exist."""
    if one.legacy_tables is not None and not _names_filter(one.legacy_tables):
        return []
    done = run([one.command, "-w", _LOCK_SECONDS, "-S", chain])
    return done.stdout.splitlines() if done.returncode == 0 else []


def _names_filter(tables: Path) -> bool:
    try:
        return "filter" in tables.read_text().split()
    except OSError:
        return False


def _change(run: Run, words: Sequence[str]) -> None:
    done = run(words)
    if done.returncode != 0:
        raise DataplaneError(f"{' '.join(words[:6])}: {done.stderr.strip() or f'exit {done.returncode}'}")
