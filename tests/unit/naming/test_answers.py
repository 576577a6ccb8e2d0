"""What DNS says to queries for names of containers."""

from __future__ import annotations

from typing import Sequence

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest

from calico_plugin.naming.answers import TTL_SECONDS, answer


class Some:
    """Knows a few names."""

    def __init__(self, **known: Sequence[str]) -> None:
        self.known = known

    def addresses(self, name: str) -> Sequence[str] | None:
        return self.known.get(name)

    def titles(self, address: str) -> Sequence[str] | None:
        return next(([f"{name}.net1"] for name, found in self.known.items() if address in found), None)


NAMES = Some(web=["10.0.0.1"], dual=["10.0.0.2", "fd00::2"], many=[f"10.1.0.{number}" for number in range(200)])


def ask(name: str, kind: str, **options: object) -> dns.message.Message | None:
    query = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
    said = answer(query.to_wire(), NAMES)
    if said is None:
        return None
    response = dns.message.from_wire(said)
    assert query.is_response(response)
    return response


def data(response: dns.message.Message | None) -> list[str]:
    assert response is not None and response.rcode() == dns.rcode.NOERROR
    assert response.flags & dns.flags.RA and not response.flags & dns.flags.TC
    return sorted(str(one) for rrset in response.answer for one in rrset)


def test_addresses() -> None:
    """Of the version that was asked for, with a short life."""
    assert data(ask("web", "A")) == ["10.0.0.1"]
    assert data(ask("dual", "A")) == ["10.0.0.2"] and data(ask("dual", "AAAA")) == ["fd00::2"]
    response = ask("web", "A")
    assert response is not None and response.answer[0].ttl == TTL_SECONDS <= 10


@pytest.mark.parametrize("kind", ["AAAA", "MX", "TXT", "HTTPS", "SRV", "ANY"])
def test_a_known_name_without_such_data_is_no_unknown_name(kind: str) -> None:
    """NOERROR and nothing."""
    assert data(ask("web", kind)) == []


def test_case_is_kept_and_does_not_matter() -> None:
    response = ask("WeB", "A")
    assert data(response) == ["10.0.0.1"] and response is not None
    assert response.question[0].name.to_text() == "WeB."


def test_reversed() -> None:
    assert data(ask(dns.reversename.from_address("10.0.0.1").to_text(), "PTR")) == ["web.net1."]
    assert data(ask(dns.reversename.from_address("fd00::2").to_text(), "PTR")) == ["dual.net1."]
    for name in ("9.0.0.10.in-addr.arpa.", "0.0.10.in-addr.arpa.", "nobody.", "in-addr.arpa."):
        assert ask(name, "PTR") is None, name
    assert data(ask("web", "PTR")) == [] == data(ask("1.0.0.10.in-addr.arpa.", "A"))


def test_many_addresses_take_turns_and_fit() -> None:
    """Never cut short, since a client would then ask the server by TCP; with and without EDNS."""
    seen: set[str] = set()
    for _ in range(60):
        for options in ({}, {"use_edns": 0, "payload": 1232}):
            query = dns.message.make_query("many", "A", **options)  # type: ignore[arg-type]
            said = answer(query.to_wire(), NAMES)
            assert said is not None and len(said) <= 512
            found = data(dns.message.from_wire(said))
            assert 1 < len(found) == len(set(found))
            seen.update(found)
    assert len(seen) > 150


def test_edns_is_answered_by_edns() -> None:
    with_it, without = ask("web", "A", use_edns=0), ask("web", "A", use_edns=False)
    assert with_it is not None and with_it.edns == 0
    assert without is not None and without.edns == -1


def altered(**changes: object) -> bytes:
    query = dns.message.make_query("web", "A")
    for name, value in changes.items():
        setattr(query, name, value)
    return query.to_wire()


UPDATE = dns.message.make_query("web", "A")
UPDATE.set_opcode(dns.opcode.NOTIFY)
LONG = dns.message.make_query("web", "A", use_edns=0, pad=600).to_wire()
CHAOS = dns.message.make_query("web", "A", rdclass="CH")


@pytest.mark.parametrize(
    "query",
    [b"", b"\0" * 11, LONG, altered(flags=dns.flags.QR), UPDATE.to_wire(), CHAOS.to_wire(), altered()[:20],
     altered() + b"\xff\xff", altered(question=[]), dns.message.make_query("nobody", "A").to_wire()],
    # The queries have a random id, the tests may not: workers compare the names of theirs.
    ids=["empty", "short", "long", "answer", "notify", "chaos", "cut", "trailing", "no question", "unknown name"],
)
def test_what_is_no_query_for_a_name_of_ours_is_not_answered(query: bytes) -> None:
    """It goes on to the server unchanged."""
    assert answer(query, NAMES) is None


def test_any_bytes() -> None:
    """Nothing that is sent raises."""
    whole = altered()
    for place in range(len(whole)):
        for value in (0, 1, 63, 64, 192, 255):
            answer(whole[:place] + bytes([value]) + whole[place + 1:], NAMES)
            answer(whole[:place], NAMES)
