"""BGPFilter rules in BIRD's language."""

from __future__ import annotations

import pytest

from calico_plugin.model.resources import BGPFilter, Metadata
from calico_plugin.model.resources.bgp import BGPFilterRule, CommunityMatch, PrefixLength
from calico_plugin.routing.filters import filter_function, rule_line, rule_lines


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (BGPFilterRule(action="Reject"), "reject;"),
        (
            BGPFilterRule(action="Accept", cidr="10.0.0.0/8", match_operator="In"),
            "if (net ~ [ 10.0.0.0/8{8,32} ]) then accept;",
        ),
        (
            BGPFilterRule(action="Accept", cidr="10.1.2.3/8", match_operator="NotEqual"),
            "if (net != 10.0.0.0/8) then accept;",
        ),
        (
            BGPFilterRule(
                action="Accept", cidr="10.0.0.0/8", match_operator="In", prefix_length=PrefixLength(min=4, max=40)
            ),
            "if (net ~ [ 10.0.0.0/8{8,32} ]) then accept;",
        ),
        (
            BGPFilterRule(action="Reject", source="RemotePeers", interface="eth*"),
            'if (defined(source) && source = RTS_BGP) && (defined(ifname) && ifname ~ "eth*") then reject;',
        ),
        (
            BGPFilterRule(
                action="Accept",
                communities=CommunityMatch(values=("64512:7",)),
                as_path_prefix=(65000, "1.1"),
                operations=(
                    {"addCommunity": {"value": "1:2:3"}},
                    {"prependASPath": {"prefix": [65001, 65002]}},
                ),
            ),
            "if ((64512,7) ~ bgp_community) && (bgp_path ~ [= 65000 65537 * =]) then "
            "{ bgp_large_community.add((1,2,3)); bgp_path.prepend(65002); bgp_path.prepend(65001); accept; }",
        ),
    ],
)
def test_rules(rule: BGPFilterRule, line: str) -> None:
    """Each match field and operation has its form; bounds are clamped to the CIDR's own length and the family's."""
    assert rule_line(rule, 4) == line


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (BGPFilterRule(action="Perhaps"), "neither Accept nor Reject"),
        (BGPFilterRule(action="Accept", cidr="10.0.0.0/8"), "go together"),
        (BGPFilterRule(action="Accept", cidr="fd00::/8", match_operator="In"), "is not IPv4"),
        (BGPFilterRule(action="Accept", interface='eth"'), "interface pattern"),
        (BGPFilterRule(action="Accept", priority=0), "priority"),
        (BGPFilterRule(action="Accept", operations=({"setPriority": {"value": "x"}},)), "priority"),
        (BGPFilterRule(action="Reject", operations=({"addCommunity": {"value": "1:2"}},)), "Accept only"),
        (BGPFilterRule(action="Accept", communities=CommunityMatch(values=("1:2:3:4",))), "neither a:b"),
    ],
)
def test_what_is_not_understood_rejects(rule: BGPFilterRule, why: str) -> None:
    """The rule becomes a reject, and the problem names filter, rule and reason."""
    problems: list[str] = []
    assert rule_lines(BGPFilter(metadata=Metadata(name="f")), [rule], 4, problems) == ("reject;",)
    assert problems[0].startswith("BGPFilter(f): rule 1: ") and why in problems[0]


def test_names_fit_birds_limit() -> None:
    """At most 64 characters, and different for different filters."""
    long = "a" * 60
    assert filter_function("tor-in", "import", 4) == "'bgp_tor-in_importFilterV4'"
    made = filter_function(long, "export", 6)
    assert len(made.strip("'")) <= 64 and made != filter_function(long + "b", "export", 6)
