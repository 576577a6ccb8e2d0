"""The Grafana dashboard reads only what the agent really serves, and all that operators alert on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Iterator

from calico_plugin.observe.metrics import Metrics

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "calico.json"
_METRIC = re.compile(r"\b(?:felix|calico|process)_[a-z0-9_]+")
# What the graphs must not lose: the main alerts of node-and-cli 5.2 and our own.
ALERTS = {
    "felix_resync_state",
    "felix_int_dataplane_failures",
    "calico_bgp_peers",
    "calico_bird_config_refused",
    "calico_bird_left_out",
    "calico_encapsulation_problems",
}


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def expressions() -> Iterator[str]:
    for panel in board()["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in board()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def served() -> set[str]:
    """Names of all series, also of those that have no value yet; summaries have two more."""
    summaries = {name + end for name, kind in kinds().items() if kind == "summary" for end in ("_sum", "_count")}
    return kinds().keys() | summaries


def kinds() -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", Metrics("h1").page().decode(), re.MULTILINE))


def test_every_metric_is_served() -> None:
    """A name in an expression that nobody serves would be an empty graph."""
    used = {name for expression in expressions() for name in _METRIC.findall(expression)}
    assert used - served() == set()
    assert ALERTS <= used


def test_rates_are_taken_of_what_only_grows() -> None:
    """A rate of a gauge would be nonsense, and a counter without a rate says nothing."""
    grows = {name for name, kind in kinds().items() if kind == "counter"}
    for expression in expressions():
        rated = set(re.findall(r"(?:rate|increase)\(([a-z0-9_]+)", expression))
        assert {name for name in rated if name in kinds()} <= grows, expression


def test_labels_are_those_of_the_metric() -> None:
    """Labels in selectors and legends exist (`instance` is Prometheus's own)."""
    metrics = Metrics("h1")
    known = {"instance"} | {label for one in vars(metrics).values() for label in getattr(one, "_labelnames", ())}
    for expression in expressions():
        for selector in re.findall(r"\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selector)) <= known, expression


def test_panels_are_whole() -> None:
    """Each has its own number and place, a title and a data source that the user chooses."""
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert panel["title"] and place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
