"""Random resources and flows from a seed: every rule field, in the mixtures that nobody would write by hand."""

from __future__ import annotations

import random
from ipaddress import ip_network
from typing import Any

from calico_plugin.policy import PolicyOptions
from calico_plugin.policy.explain import Flow
from tests.unit.policy.worlds import OPEN, endpoint, policy

ADDRESSES = {
    4: {"web": "10.65.0.10", "api": "10.65.0.20", "db": "10.65.1.30"},
    6: {"web": "fd65::10", "api": "fd65::20", "db": "fd65::30"},
}
OUTSIDE = {4: ("203.0.113.7", "198.51.100.5", "203.0.113.70"), 6: ("2001:db8::7", "2001:db8:c::1", "fd65::99")}
NETS = {
    4: ("10.65.0.0/24", "10.65.0.20/32", "198.51.100.0/24", "203.0.113.64/26", "0.0.0.0/0", "128.0.0.0/1"),
    6: ("fd65::/64", "fd65::20/128", "2001:db8:c::/48", "::/0", "8000::/1", "2001:db8::/127"),
}
SELECTORS = (
    "app=='web'", "app!='web'", "has(env)", "!has(env)", "app in {'api','db'}", "env not in {'prod'}", "all()",
    "has(net)",
    "app starts with 'a' || net=='corp'", "net=='corp' && !has(app)", "app contains 'b' && env=='prod'",
)
PORTS: tuple[int | str, ...] = (80, 443, "8000:9000", "http", "dns", "nobody")


class World:
    """One random cluster. The same seed gives the same one."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def maybe(self, chance: float = 0.5) -> bool:
        return self.rng.random() < chance

    def resources(self) -> list[dict[str, Any]]:
        tiers = [{"kind": "Tier", "metadata": {"name": name}, "spec": {
            "order": self.rng.choice([1, 5, 2_000_000]), "defaultAction": self.rng.choice(["Deny", "Pass"])}}
            for name in ("sec", "late")]
        return [OPEN, *tiers, *self._profiles(), *self._endpoints(), *self._sets(), *self._policies()]

    def _profiles(self) -> list[dict[str, Any]]:
        return [{"kind": "Profile", "metadata": {"name": name}, "spec": {
            "labelsToApply": {name: "", "env": "dev"}, "ingress": self._rules(2), "egress": self._rules(2)}}
            for name in ("net1", "net2")]

    def _endpoints(self) -> list[dict[str, Any]]:
        found = []
        for name, four in ADDRESSES[4].items():
            labels = {"app": name, **({"env": "prod"} if self.maybe() else {})}
            profiles = self.rng.choice([["open"], ["net1"], ["net2", "open"], ["net1", "net2"], ["ghost"], []])
            ports = [{"name": port, "protocol": protocol, "port": number} for port, protocol, number in (
                ("http", "TCP", 80), ("http", "TCP", 8080), ("dns", "UDP", 443)) if self.maybe()]
            networks = [f"{four}/32", f"{ADDRESSES[6][name]}/128"]
            found.append(endpoint(name, four, labels, ipNetworks=networks, profiles=profiles, ports=ports))
        return found

    def _sets(self) -> list[dict[str, Any]]:
        return [{"kind": "GlobalNetworkSet", "metadata": {"name": name, "labels": {"net": name}}, "spec": {
            "nets": [net for family in (4, 6) for net in NETS[family] if self.maybe(0.3)]}} for name in ("corp", "lab")]

    def _policies(self) -> list[dict[str, Any]]:
        found = []
        for number in range(self.rng.randrange(self.rng.choice([4, 6, 14]))):
            spec = {
                "tier": self.rng.choice(["default", "default", "sec", "late", "gone"]),
                "selector": self.rng.choice(SELECTORS), "ingress": self._rules(4), "egress": self._rules(3),
            }
            if self.maybe():
                spec["order"] = self.rng.choice([1, 1, 2.5, -3])
            if self.maybe(0.3):
                spec["types"] = self.rng.choice([["Ingress"], ["Egress"], ["Ingress", "Egress"]])
            document = policy(f"p{number}", **spec)
            if self.maybe(0.2):
                document["kind"], document["metadata"]["namespace"] = "NetworkPolicy", "libnetwork"
            found.append(document)
        return found

    def _rules(self, most: int) -> list[dict[str, Any]]:
        return [self._rule() for _ in range(self.rng.randrange(most))]

    def _rule(self) -> dict[str, Any]:
        rule: dict[str, Any] = {"action": self.rng.choice(["Allow", "Allow", "Deny", "Pass", "Log"])}
        if self.maybe(0.6):
            rule["protocol"] = self.rng.choice(["TCP", "TCP", "UDP", "ICMP", "ICMPv6", "SCTP", 6, 17, 50])
        if self.maybe(0.1):
            rule["notProtocol"] = self.rng.choice(["TCP", 17])
        family = self.rng.choice([4, 4, 6])
        if self.maybe(0.1):
            rule["ipVersion"] = {"ICMP": 4, "ICMPv6": 6}.get(rule.get("protocol", ""), family)
        if rule.get("protocol") in ("ICMP", "ICMPv6") and self.maybe():
            field = self.rng.choice(["icmp", "notICMP"])
            rule[field] = self.rng.choice([{"type": 8}, {"type": 8, "code": 0}, {"type": 128}, {"type": 3, "code": 4}])
        for side in ("source", "destination"):
            if self.maybe(0.7):
                rule[side] = self._entity(rule.get("protocol"), rule.get("ipVersion", family))
        return rule

    def _entity(self, protocol: object, family: int) -> dict[str, Any]:
        entity: dict[str, Any] = {}
        for field, chance in (("nets", 0.3), ("notNets", 0.15)):
            if self.maybe(chance):
                nets = [net for net in NETS[family] if field == "nets" or not net.endswith("/0")]
                entity[field] = self.rng.sample(nets, self.rng.randrange(1, 4))
        for field, chance in (("selector", 0.4), ("notSelector", 0.2), ("namespaceSelector", 0.1)):
            if self.maybe(chance):
                entity[field] = self.rng.choice(SELECTORS if field != "namespaceSelector" else ("all()", "global()"))
        for field, chance in (("ports", 0.4), ("notPorts", 0.15)):
            if self.maybe(chance):
                ports = PORTS if protocol in ("TCP", "UDP", "SCTP", 6, 17) else PORTS[3:]
                if protocol is None or ports is PORTS:
                    entity[field] = self.rng.sample(ports, self.rng.randrange(1, 4))
        return entity

    def flow(self) -> tuple[str, str, int, int, int]:
        """source, destination, protocol, source port, destination port (or ICMP code, type); one end is local."""
        family = self.rng.choice([4, 6])
        local = list(ADDRESSES[family].values())
        ends = [self.rng.choice(local), self.rng.choice([*local, *OUTSIDE[family]])]
        self.rng.shuffle(ends)
        protocol = self.rng.choice([6, 6, 6, 17, 17, 132, 1 if family == 4 else 58, 50])
        if protocol == 50:
            return ends[0], ends[1], protocol, 0, 0
        if protocol in (1, 58):
            return ends[0], ends[1], protocol, 0, 8 if family == 4 else 128
        ports = [40000, 80, 443, 8080, 8500, 53]
        return ends[0], ends[1], protocol, self.rng.choice(ports), self.rng.choice(ports)


class Crowd:
    """Many policies over the same endpoints, whose rules can be looked up: nets, ports and labels that overlap."""

    def __init__(self, seed: int, options: PolicyOptions | None = None) -> None:
        self.rng = random.Random(seed)
        self.options = options or PolicyOptions(
            block_size=self.rng.choice([4, 16, 256]), sort_from=self.rng.choice([2, 2, 8, 16]),
            log_group=self.rng.choice([0, 88]), flow_log=True)
        # Some crowds are of one kind, most are mixed.
        kinds = ("net", "port", "label", "net and port", "label and port", "named", "protocol", "open", "pass")
        self.weights = {kind: self.rng.choice([0, 1, 4, 9]) for kind in kinds[:-2]} | {
            kind: self.rng.choice([0, 0, 0.2, 1]) for kind in kinds[-2:]}
        if not any(self.weights.values()):
            self.weights["net"] = 1

    def resources(self) -> list[dict[str, Any]]:
        tiers = [{"kind": "Tier", "metadata": {"name": "sec"}, "spec": {"order": 5, "defaultAction": "Pass"}}]
        return [OPEN, *tiers, *self._endpoints(), *self._sets(), *self._policies()]

    def _endpoints(self) -> list[dict[str, Any]]:
        found = []
        for name, four in ADDRESSES[4].items():
            networks = [f"{four}/32", f"{ADDRESSES[6][name]}/128"]
            ports = [{"name": "http", "protocol": "TCP", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]
            found.append(endpoint(name, four, {"app": name}, ipNetworks=networks, ports=ports))
        for number in range(1, 13):
            far = endpoint(f"far{number}", f"10.1.0.{number}", {"app": f"a{number % 5}", "env": f"e{number % 3}"})
            far["metadata"]["name"] = f"n2-libnetwork-libnetwork-far{number}"
            far["spec"].update(node="n2", ipNetworks=[f"10.1.0.{number}/32", f"fd01::{number:x}/128"])
            found.append(far)
        return found

    def _sets(self) -> list[dict[str, Any]]:
        return [{"kind": "GlobalNetworkSet", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
            "nets": [self._net(self.rng.choice([4, 4, 6])) for _ in range(self.rng.randrange(4))]}}
            for name in ("a0", "corp")]

    def _policies(self) -> list[dict[str, Any]]:
        found = []
        for number in range(self.rng.choice([10, 40, 60])):
            rules = {side: [self._rule(far) for _ in range(self.rng.choice([1, 1, 2, 4]))]
                     for side, far in (("ingress", "source"), ("egress", "destination")) if self.rng.random() < 0.8}
            # Whom a policy governs and where it stands follows from its name, so that two crowds differ in rules only.
            found.append(policy(
                f"c{number}", selector="app in {'web','api'}" if number % 5 == 2 else "all()", order=number // 2,
                tier="sec" if number % 4 == 3 else "default", types=["Ingress", "Egress"], **rules))
        found.append(policy("rest", selector="all()", order=99, ingress=[{"action": "Allow"}], egress=[
            {"action": "Allow"}]))
        return found

    def _rule(self, far: str) -> dict[str, Any]:
        kind = self.rng.choices(list(self.weights), list(self.weights.values()))[0]
        rule: dict[str, Any] = {"action": self.rng.choice(["Allow", "Deny", "Deny", "Log"])}
        sides: dict[str, dict[str, Any]] = {"source": {}, "destination": {}}
        if "net" in kind:
            family = self.rng.choice([4, 4, 6])
            sides[far]["nets"] = [self._net(family) for _ in range(self.rng.choice([1, 1, 3]))]
        if "label" in kind:
            sides[far]["selector"] = self.rng.choice([
                f"app=='a{self.rng.randrange(6)}'", f"env=='e{self.rng.randrange(3)}'", "app=='corp'", "has(app)",
                f"app in {{'a{self.rng.randrange(5)}','web'}}"])
        if "port" in kind:
            rule["protocol"] = self.rng.choice(["TCP", "TCP", "UDP"])
            sides["destination"]["ports"] = [
                self.rng.choice([80, 443, 53, "50:90", "8000:9000", f"{self.rng.randrange(1, 100)}:443"])
                for _ in range(self.rng.choice([1, 1, 2]))]
        if kind == "named":
            sides["destination"]["ports"] = [self.rng.choice(["http", "dns"])]
        if kind == "protocol":
            rule["protocol"] = self.rng.choice(["ICMP", "ICMPv6", 50])
        if kind == "pass":
            rule["action"] = "Pass"
            sides[far]["nets"] = [self._net(4)]
        return {**rule, **{side: entity for side, entity in sides.items() if entity}}

    def _net(self, family: int) -> str:
        """Few networks inside each other, around the addresses that packets have."""
        if family == 4:
            length = self.rng.choice([8, 16, 24, 26, 30, 32])
            host = self.rng.choice(["10.65.0.10", "10.65.0.20", "10.1.0.3", "10.1.0.7", "203.0.113.7", "10.65.1.30"])
            return f"{host}/{length}" if length == 32 else str(ip_network(f"{host}/{length}", strict=False))
        length = self.rng.choice([32, 64, 120, 126, 128])
        return str(ip_network(f"{self.rng.choice(['fd65::10', 'fd65::20', 'fd01::3', '2001:db8::7'])}/{length}",
                              strict=False))

    def packet(self) -> Flow:
        """One end is local."""
        family = self.rng.choice([4, 4, 4, 6])
        local = list(ADDRESSES[family].values())
        far = [f"10.1.0.{number}" if family == 4 else f"fd01::{number:x}" for number in range(1, 13)]
        ends = [self.rng.choice(local), self.rng.choice([*local, *far, *OUTSIDE[family]])]
        self.rng.shuffle(ends)
        protocol = self.rng.choice([6, 6, 6, 17, 1 if family == 4 else 58, 50])
        if protocol in (1, 58):
            return Flow(ends[0], ends[1], protocol, icmp_type=8 if protocol == 1 else 128, icmp_code=0)
        if protocol == 50:
            return Flow(ends[0], ends[1], protocol)
        return Flow(ends[0], ends[1], protocol, 40000, self.rng.choice([80, 443, 53, 85, 8500, 9]))
