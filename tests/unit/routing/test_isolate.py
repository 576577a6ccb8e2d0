"""What BIRD refuses is found by its line, and left out."""

from __future__ import annotations

from typing import Mapping

import pytest

from calico_plugin.routing.apply import Outcome, Refused
from calico_plugin.routing.bird import Rendered
from calico_plugin.routing.isolate import MOST, culprit, load_without_the_bad
from calico_plugin.routing.sessions import Plan

BLOCKS = {
    "Mesh_1": ["protocol bgp Mesh_1 from calico_peer {", "  neighbor 10.0.0.2 as 1;", "  ipv4 {", "  };", "}"],
    "'bgp_f_importFilterV4'": ["function 'bgp_f_importFilterV4'(bool same_as) {", "  reject;", "}"],
    "Node_2": ["protocol bgp Node_2 from calico_peer {", "  bad;", "}"],
}


def text(without: Mapping[str, str] = {}) -> str:
    kept = [line for name, lines in BLOCKS.items() if name not in without for line in lines]
    return "\n".join(["router id 1.1.1.1;", "protocol device {", "}", "", *kept, ""])


def line_of(content: str, wanted: str) -> int:
    return content.splitlines().index(wanted) + 1


def test_culprit_is_the_block_around_the_line() -> None:
    """Its first line, one inside, and its closing brace; nothing for what no resource has made."""
    whole = text()
    start = line_of(whole, "protocol bgp Mesh_1 from calico_peer {")
    assert [culprit(whole, line) for line in range(start, start + 5)] == ["Mesh_1"] * 5
    assert culprit(whole, line_of(whole, "  reject;")) == "'bgp_f_importFilterV4'"
    assert [culprit(whole, line) for line in (0, 1, 2, 3, 4, 999)] == [""] * 6


def render(without: Mapping[str, str]) -> Rendered:
    return Rendered(text(without), Plan(None), tuple(without.values()))


def test_bad_blocks_stay_out() -> None:
    """Each refusal costs one block, with BIRD's words."""

    def load(content: str) -> Outcome:
        for bad in ("  bad;", "  reject;"):
            if bad in content.splitlines():
                raise Refused(f"BIRD refused configure: /x/bird.new:{line_of(content, bad)}:3 no {bad.strip()}")
        return Outcome.LOADED

    rendered, outcome = load_without_the_bad(render, load)
    assert outcome is Outcome.LOADED and "Mesh_1" in rendered.text and "Node_2" not in rendered.text
    assert rendered.problems == ("no bad;", "no reject;")


def test_what_cannot_be_blamed_is_raised() -> None:
    """A line outside the blocks, a text without line, and a refusal that does not go away."""
    for message in ("/x:1:3 bad router id", "no line at all", "/x:5:1 always"):
        calls = []

        def load(content: str) -> Outcome:
            calls.append(content)
            raise Refused(message)

        with pytest.raises(Refused, match=message.rpartition(" ")[2]):
            load_without_the_bad(render, load)
        assert 0 < len(calls) <= MOST + 1
