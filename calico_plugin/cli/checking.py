"""The check of one object, with the policy engine's selector grammar. Apart from `objects`: `get` needs no YAML."""

from __future__ import annotations

from calico_plugin.model.problem import Problem
from calico_plugin.model.resources import Resource


def check(resource: Resource) -> None:
    """Raises InvalidInput whose text holds every problem."""
    from calico_plugin.model import validation
    from calico_plugin.policy.selector import parse

    validation.check(resource, parse)


def problems_of(resource: Resource) -> tuple[Problem, ...]:
    """Everything that is wrong with an object, looked at alone."""
    from calico_plugin.model import validation
    from calico_plugin.policy.selector import parse

    return validation.problems(resource, parse)
