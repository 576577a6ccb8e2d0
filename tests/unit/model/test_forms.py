"""Single values: durations as Go writes them, AS numbers, ports, protocols."""

from __future__ import annotations

import pytest

from calico_plugin.model import forms


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("0", "0s"),
        ("0s", "0s"),
        ("90s", "1m30s"),
        ("120s", "2m0s"),
        ("3600s", "1h0m0s"),
        ("1h", "1h0m0s"),
        ("1.5s", "1.5s"),
        ("1.5h", "1h30m0s"),
        ("500ms", "500ms"),
        ("1500ms", "1.5s"),
        ("100us", "100µs"),
        ("1ns", "1ns"),
        ("-1m", "-1m0s"),
        ("1m30s500ms", "1m30.5s"),
        ("+5s", "5s"),
        (".5s", "500ms"),
    ],
)
def test_durations(text: str, stored: str) -> None:
    """A duration is stored in Go's form, and that form stays as it is."""
    assert forms.duration(text) == stored
    assert forms.duration(stored) == stored


@pytest.mark.parametrize("value", ["", "10", "1 minute", "s", "1x", "1s ", 30, None, "1s2", "--1s"])
def test_bad_durations(value: object) -> None:
    """What Go does not parse is refused with an example."""
    with pytest.raises(ValueError, match="duration"):
        forms.duration(value)


@pytest.mark.parametrize(
    ("value", "number"),
    [(64512, 64512), ("64512", 64512), ("1.10", 65546), ("0.1", 1), (0, 0), (4294967295, 4294967295)],
)
def test_as_numbers(value: int | str, number: int) -> None:
    """Plain, in quotes, or dotted."""
    assert forms.as_number(value) == number


@pytest.mark.parametrize("value", [-1, 4294967296, "65536.1", "1.65536", "x", "", True, 1.5, "1.2.3"])
def test_bad_as_numbers(value: object) -> None:
    """Out of range or no number."""
    with pytest.raises(ValueError, match="AS number"):
        forms.as_number(value)


@pytest.mark.parametrize(
    ("value", "stored"),
    [(80, 80), ("80", 80), ("8000:8100", "8000:8100"), ("80:80", 80), ("http", "http"), ("a-1", "a-1")],
)
def test_ports(value: int | str, stored: int | str) -> None:
    """Numbers, ranges and names; a range of one is a number."""
    assert forms.port(value) == stored


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (0, "1 to 65535"),
        (65536, "1 to 65535"),
        ("90:80", "write 80:90"),
        ("80-90", "write 80:90"),
        ("1:2:3", "port name"),
        ("HTTP", "port name"),
        ("123456789012345678", "1 to 65535"),
        ("a--b", "port name"),
        ("-", "port name"),
        ("", "port name"),
        (True, "port number"),
        (None, "port number"),
    ],
)
def test_bad_ports(value: object, hint: str) -> None:
    """Each mistake has its own advice."""
    with pytest.raises(ValueError, match=hint):
        forms.port(value)


@pytest.mark.parametrize(("value", "stored"), [("TCP", "TCP"), (6, 6), ("17", 17), (255, 255), ("UDPLite", "UDPLite")])
def test_protocols(value: int | str, stored: int | str) -> None:
    """Names in their exact spelling, numbers, numbers in quotes."""
    assert forms.protocol(value) == stored


def test_protocol_in_the_wrong_case_gets_the_right_one() -> None:
    """The most frequent slip."""
    with pytest.raises(ValueError, match="did you mean TCP"):
        forms.protocol("tcp")
    with pytest.raises(ValueError, match="1-255"):
        forms.protocol(0)
