"""A packet at both ends of a connection: the agents' own compiled rules, walked, and told in words people wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Iterable, Mapping

import msgspec

from calico_plugin.cli.policy import through
from calico_plugin.cli.policy.passage import EXPECTED, Passed, governed, hosts_of, passage
from calico_plugin.cli.policy.places import HOST, LABELS, Place
from calico_plugin.cli.policy.world import World
from calico_plugin.model.desired import DENIES, Chain, Ruleset, Verdict
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources.policy import GlobalNetworkPolicy, NetworkPolicy, Profile
from calico_plugin.policy import explain
from calico_plugin.policy.explain import Flow, Step, Walk

ALLOW, DENY, PASS, LOG = "allow", "deny", "pass", "log"
_WORDS = {
    Verdict.ACCEPT: ALLOW, Verdict.UNTRACK: ALLOW, Verdict.SPARE: ALLOW, Verdict.DROP: DENY, Verdict.REJECT: DENY,
    Verdict.RETURN: PASS, Verdict.CONTINUE: LOG,
}
_NONE = "no rule"
_UNKNOWN = "the agent does not know the endpoint (see `calicoctl policy problems`)"
_DARK = "the labels of its container are not known yet (see `calicoctl node status` on its host)"


@dataclass(frozen=True)
class Decision:
    """What one rule did. `tier`, `kind`, `name` are empty for what nobody wrote; `rule` is an index or words; `text` is
    the rule as it was written.
    """

    verdict: str
    tier: str = ""
    kind: str = ""
    name: str = ""
    rule: str = ""
    text: str = ""

    def __str__(self) -> str:
        parts = [f"tier {self.tier}"] if self.tier else []
        parts += [f"{self.kind} {self.name}"] if self.kind else []
        if self.rule.isdigit():
            parts.append(f"rule {self.rule}")
        elif self.rule:
            parts.append(self.rule)
        return f"{self.verdict}: {', '.join(parts) or _NONE}"


@dataclass(frozen=True)
class Judgement:
    """One end. `before`: rules that matched without deciding (Pass, Log); `next`: who would decide if the deciding rule
    were not there.
    """

    direction: str
    place: str
    verdict: str
    decision: Decision
    before: tuple[Decision, ...] = ()
    next: Decision | None = None
    interface: str = ""
    node: str = ""


@dataclass(frozen=True)
class Answer:
    """`passing`: what host endpoints on the way have to say, in the order in which the packet meets them."""

    flow: Flow
    ends: tuple[Judgement, ...]
    notes: tuple[str, ...] = ()
    passing: tuple[Judgement, ...] = ()

    @property
    def allowed(self) -> bool:
        return all(end.verdict == ALLOW for end in (*self.ends, *self.passing))


def judge(world: World, source: Place, destination: Place, flow: Flow) -> Answer:
    """Both ends, each on its own node. `flow` has the addresses of the two."""
    imagined = [place.resource for place in (source, destination) if place.kind == LABELS and place.resource]
    bench = _Bench(world.with_resources(*imagined))
    passed = passage(bench.world, bench.rules, source, destination, flow)
    leaving = bench.leaving(source, destination, passed.flows.get(source.node, flow))
    entering = bench.entering(source, destination, passed.flows.get(destination.node, flow))
    ends = tuple(end for end in (leaving, entering) if end)
    notes = [f"{place.name}: {place.note}" for place in (source, destination) if place.note]
    notes += passed.assumed
    notes += through.notes(world, bench.rules, destination, flow)
    notes += bench.notes()
    return Answer(flow, ends, tuple(notes), tuple(map(bench.passing, passed.stops)))


class _Bench:
    """Compiles a node's rules when they are first asked for."""

    def __init__(self, world: World) -> None:
        self.world = self._world = world
        self._rulesets: dict[str, Ruleset] = {}

    def rules(self, node: str) -> Ruleset:
        if node not in self._rulesets:
            unnamed = (host.spec.expected_ips for host in hosts_of(self._world, node) if not host.spec.interface_name)
            expected = frozenset(address for addresses in unnamed for address in addresses)
            engine = self._world.engine(node, {EXPECTED: expected} if expected else {})
            self._rulesets[node] = engine.compile()
        return self._rulesets[node]

    def notes(self) -> Iterable[str]:
        """Where one calico-node has settings in its environment, others may have some that cannot be seen from here."""
        known = self._world.environments
        for node in self._rulesets.keys() - known.keys() if known else ():
            told = "; ".join(f"{name} has {', '.join(sorted(members))}" for name, members in known.items())
            yield f"{node}: FELIX_… variables of its calico-node are not known on this host ({told})"

    def passing(self, passed: Passed) -> Judgement:
        """At one of the host endpoints on the way."""
        stop = passed.stop
        inward = stop.stage.endswith("-in")
        rules = self.rules(stop.node)
        return self._judged(
            "ingress" if inward else "egress", passed.words, stop.entering if inward else stop.leaving, stop.node,
            rules, passed.walk, stop.stage, passed.flow)

    def leaving(self, source: Place, destination: Place, flow: Flow) -> Judgement | None:
        if source.kind == HOST:
            if destination.node == source.node:
                return None
            return self._at_host("egress", source, flow)
        if source.resource is None:
            return None
        node = source.resource.spec.node or source.node
        rules = self.rules(node)
        flow = replace(flow, to_host=destination.kind == HOST and destination.node == source.node)
        found = explain.egress(rules, source.interface, flow)
        return self._told("egress", source, node, rules, found, replace(flow, in_interface=source.interface))

    def entering(self, source: Place, destination: Place, flow: Flow) -> Judgement | None:
        if destination.kind == HOST:
            if source.resource is not None and source.node == destination.node:
                return self._to_own_host(source, destination, flow)
            return None if source.node == destination.node else self._at_host("ingress", destination, flow)
        if destination.resource is None:
            return None
        if source.kind == HOST and source.node == destination.node:
            decision = Decision(ALLOW, rule="a host may always talk to its own containers")
            return Judgement("ingress", str(destination), ALLOW, decision, (), None, destination.interface, source.node)
        node = destination.resource.spec.node or destination.node
        rules = self.rules(node)
        found = explain.ingress(rules, destination.interface, flow)
        there = replace(flow, out_interface=destination.interface)
        return self._told("ingress", destination, node, rules, found, there)

    def _told(
        self, direction: str, place: Place, node: str, rules: Ruleset, found: Walk | None, flow: Flow
    ) -> Judgement:
        if found is None:
            waits = place.resource is not None and place.resource.awaits_labels
            decision = Decision(DENY, rule=_DARK if waits else _UNKNOWN)
            return Judgement(direction, str(place), DENY, decision, (), None, place.interface, node)
        start = found.steps[0].chain if found.steps else ""
        return self._judged(direction, str(place), place.interface, node, rules, found, start, flow)

    def _judged(
        self, direction: str, place: str, interface: str, node: str, rules: Ruleset, found: Walk, start: str, flow: Flow
    ) -> Judgement:
        written = [step for step in found.steps if step.rule.origin]
        decisive = written[-1] if written and found.verdict is not Verdict.RETURN else None
        verdict = DENY if found.verdict in DENIES else ALLOW
        told = self._decision(decisive, direction) if decisive else Decision(verdict)
        before = [self._decision(step, direction) for step in written if step is not decisive]
        later = None
        if decisive and start:
            again = explain.walk(without(rules, decisive), start, flow)
            more = [step for step in again.steps if step.rule.origin and _WORDS.get(step.rule.verdict) in (ALLOW, DENY)]
            later = self._decision(more[-1], direction) if more else None
        return Judgement(direction, place, verdict, told, tuple(before), later, interface, node)

    def _to_own_host(self, source: Place, destination: Place, flow: Flow) -> Judgement:
        """After the container's own egress policy: `defaultEndpointToHostAction` (policy 4.4)."""
        rules = self.rules(source.node)
        found = explain.walk(rules, "input-to-host", replace(flow, in_interface=source.interface))
        verdict = DENY if found.verdict in DENIES else ALLOW
        words = "Drop" if verdict == DENY else "not Drop; the host's own rules decide"
        decision = Decision(verdict, rule=f"defaultEndpointToHostAction: {words}")
        return Judgement("ingress", str(destination), verdict, decision, (), None, "", destination.node)

    def _at_host(self, direction: str, place: Place, flow: Flow) -> Judgement | None:
        interface = governed(self._world, place)
        if not interface:
            return None
        rules = self.rules(place.node)
        walk = explain.to_host if direction == "ingress" else explain.from_host
        found = walk(rules, interface, flow)
        if found is None:
            return None
        start = found.steps[0].chain if found.steps else ""
        inward = direction == "ingress"
        there = replace(flow, in_interface=interface) if inward else replace(flow, out_interface=interface)
        return self._judged(direction, str(place), "", place.node, rules, found, start, there)

    def _decision(self, step: Step, direction: str) -> Decision:
        read = read_origin(step.rule.origin)
        verdict = _WORDS.get(step.rule.verdict, DENY)
        return replace(read, verdict=verdict, text=rule_text(self._world, read, direction))


def without(rules: Ruleset, step: Step) -> Ruleset:
    """As if the written rule of a step were not there: all its lines in that chain."""
    chain = rules.chains[step.chain]
    kept = tuple(
        rule for index, rule in enumerate(chain.rules) if index != step.index and rule.origin != step.rule.origin)
    return replace(rules, chains={**rules.chains, step.chain: Chain(chain.name, kept, chain.hook)})


def read_origin(origin: str) -> Decision:
    """`tier|kind|name|rule N`, `Profile|name|rule N` or words (model.desired.Rule)."""
    parts = origin.split("|")
    if parts[0] == "Profile" and len(parts) == 3:
        name = "" if parts[1] == "__PROFILE__" else parts[1]
        return Decision("", "", "Profile" if name else "", name, _index(parts[2]))
    if len(parts) == 4:
        if parts[3] == "end of tier":
            return Decision("", parts[0], rule="end of tier: no rule of its policies matched")
        return Decision("", parts[0], parts[1], parts[2], _index(parts[3]))
    return Decision("", rule=origin.replace("|", " "))


def _index(words: str) -> str:
    return words.removeprefix("rule ")


def rule_text(world: World, decision: Decision, direction: str) -> str:
    """The rule as it was written, in one line of JSON; empty for what is no rule of a resource."""
    if not decision.rule.isdigit():
        return ""
    namespace, _, name = decision.name.rpartition("/")
    resource = world.resources.get(ResourceKey(decision.kind, name, namespace))
    if not isinstance(resource, (GlobalNetworkPolicy, NetworkPolicy, Profile)):
        return ""
    rules = getattr(resource.spec, direction)
    index = int(decision.rule)
    return json.dumps(msgspec.to_builtins(rules[index]), ensure_ascii=False) if index < len(rules) else ""


# -- as documents and text --------------------------------------------------------------------------------------------
def document(answer: Answer, source: Place, destination: Place) -> dict[str, Any]:
    flow = answer.flow
    return {
        "verdict": ALLOW if answer.allowed else DENY,
        "source": {"name": source.name, "address": flow.source, "kind": source.kind, "node": source.node},
        "destination": {
            "name": destination.name, "address": flow.destination, "kind": destination.kind, "node": destination.node},
        "protocol": flow.protocol,
        "port": flow.destination_port,
        "ends": [_end(end) for end in answer.ends],
        "passing": [_end(end) for end in answer.passing],
        "notes": list(answer.notes),
    }


def _end(end: Judgement) -> dict[str, Any]:
    return {
        "direction": end.direction, "endpoint": end.place, "node": end.node, "interface": end.interface,
        "verdict": end.verdict, "decidedBy": decision_document(end.decision),
        "before": [decision_document(one) for one in end.before],
        "next": decision_document(end.next) if end.next else None,
    }


def decision_document(decision: Decision) -> Mapping[str, Any]:
    rule = {"rule": int(decision.rule)} if decision.rule.isdigit() else {"reason": decision.rule or _NONE}
    known = {"verdict": decision.verdict, "tier": decision.tier, "kind": decision.kind, "name": decision.name, **rule}
    return {**known, "text": json.loads(decision.text)} if decision.text else known


def text(answer: Answer, source: Place, destination: Place, what: str) -> str:
    lines = [f"{source.name} -> {destination.name}, {what}: {'allowed' if answer.allowed else 'denied'}"]
    titled = [(f"{'leaving' if end.direction == 'egress' else 'entering'} {end.place}", end) for end in answer.ends]
    for title, end in (*titled, *((end.place, end) for end in answer.passing)):
        lines += ["", f"{title}: {end.verdict}"]
        lines += [line for one in end.before for line in _lines("then", one)]
        lines += _lines("decided by", end.decision)
        lines += _lines("next", end.next) if end.next else []
    if not answer.ends and not answer.passing:
        lines += ["", "no policy of Calico's is at either end"]
    lines += ["", *(f"note: {note}" for note in answer.notes)] if answer.notes else []
    return "\n".join(lines) + "\n"


def _lines(label: str, decision: Decision) -> list[str]:
    first = f"  {label:<12}{decision}"
    return [first, f"  {'':<12}{decision.text}"] if decision.text else [first]
