"""`calicoctl policy` on a real etcd: why something is allowed, what a change would do, what applies in what order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import EndpointNames
from calico_plugin.model.resources import Metadata, WorkloadEndpoint
from calico_plugin.model.resources.endpoint import WorkloadEndpointPort, WorkloadEndpointSpec
from tests.contract.test_cli_behaviour import Cli, cli

__all__ = ["cli"]

WEB, DB, LONE = "a1" * 32, "b2" * 32, "c3" * 32

PROFILE = """\
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: net}
spec:
  labelsToApply: {net: ""}
  ingress: [{action: Allow, source: {selector: has(net)}}]
  egress: [{action: Allow}]
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: h1}
spec: {bgp: {ipv4Address: 172.16.0.1/24}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: h2}
spec: {bgp: {ipv4Address: 172.16.0.2/24}}
"""
DATABASE = """\
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: database}
spec:
  selector: role == 'db'
  order: 10
  ingress:
  - {action: Log, protocol: UDP}
  - {action: Allow, protocol: TCP, source: {selector: role == 'web'}, destination: {ports: [5432]}}
"""
FENCE = """\
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 100, defaultAction: Pass}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: fence}
spec:
  tier: security
  selector: all()
  types: [Ingress]
  ingress:
  - {action: Deny, source: {nets: [203.0.113.0/24]}}
  - {action: Pass}
"""


def endpoint(
    kv: EtcdKV, node: str, eid: str, address: str, profiles: tuple[str, ...] = ("net",),
    published: tuple[WorkloadEndpointPort, ...] = (), **labels: str,
) -> None:
    """A container as the driver writes it."""
    own = {names.LABEL_NAMESPACE: names.NAMESPACE, names.LABEL_ORCHESTRATOR: names.ORCHESTRATOR}
    ports = (WorkloadEndpointPort(name="sql", protocol="TCP", port=5432),) if labels.get("role") == "db" else ()
    value = WorkloadEndpoint(
        metadata=Metadata(
            name=names.workload_endpoint(node, eid), namespace=names.NAMESPACE, labels={**own, **labels}),
        spec=WorkloadEndpointSpec(
            orchestrator=names.ORCHESTRATOR, workload=names.WORKLOAD, node=node, endpoint=eid,
            ip_networks=(f"{address}/32",), profiles=profiles, interface_name=names.host_interface(eid),
            ports=(*ports, *published)),
    )
    kv.put(keys.resource(value.kind, value.name, value.namespace), codec.encode(value), Deadline(5))


@pytest.fixture
def cluster(cli: Cli, kv: EtcdKV, clean_environ: pytest.MonkeyPatch) -> Cli:
    """A web and a database container on two hosts, a lone one outside their network, and two policies."""
    clean_environ.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    for text in (PROFILE, DATABASE, FENCE):
        status, _, err = cli("apply -q -f -", text)
        assert status == 0, err
    endpoint(kv, "h1", WEB, "10.65.0.1", role="web")
    endpoint(kv, "h2", DB, "10.65.1.1", role="db")
    endpoint(kv, "h1", LONE, "10.65.0.9", profiles=())
    return cli


def explained(cluster: Cli, line: str) -> tuple[int, dict[str, Any]]:
    status, out, err = cluster(f"policy explain {line} -o json")
    assert out, err
    document: dict[str, Any] = json.loads(out)
    return status, document


def test_explain_names_tier_policy_and_rule_at_both_ends(cluster: Cli) -> None:
    """Leaving by the profile, entering by the policy's second rule, after the security tier has passed."""
    status, found = explained(cluster, f"{WEB[:8]} {DB[:8]} tcp 5432")
    assert (status, found["verdict"]) == (0, "allow")
    leaving, entering = found["ends"]
    assert (leaving["direction"], leaving["node"], leaving["interface"]) == ("egress", "h1", names.host_interface(WEB))
    assert leaving["decidedBy"] == {
        "verdict": "allow", "tier": "", "kind": "Profile", "name": "net", "rule": 0, "text": {"action": "Allow"}}
    decided = entering["decidedBy"]
    assert (decided["tier"], decided["kind"], decided["name"], decided["rule"]) == (
        "default", "GlobalNetworkPolicy", "database", 1)
    assert decided["text"]["destination"] == {"ports": [5432]}
    assert [one["name"] for one in entering["before"]] == ["fence"]
    assert entering["next"] == {
        "verdict": "deny", "tier": "default", "kind": "", "name": "",
        "reason": "end of tier: no rule of its policies matched"}


def test_explain_denied_is_status_1_and_says_what_would_be_next(cluster: Cli) -> None:
    """Wrong port: the end of the tier denies; without it, the profile would allow."""
    status, found = explained(cluster, "10.65.0.1 10.65.1.1 tcp 80")
    assert (status, found["verdict"]) == (1, "deny")
    entering = found["ends"][1]
    assert "end of tier" in entering["decidedBy"]["reason"]
    assert (entering["next"]["kind"], entering["next"]["name"]) == ("Profile", "net")


def test_explain_logs_and_rules_by_address(cluster: Cli) -> None:
    """A Log rule that matched is told; an address outside has no policy of its own; a named port is looked up."""
    _, found = explained(cluster, f"{WEB[:8]} {DB[:8]} udp 53")
    assert [(one["verdict"], one["name"]) for one in found["ends"][1]["before"]] == [
        ("pass", "fence"), ("log", "database")]
    status, found = explained(cluster, f"203.0.113.7 {DB[:8]} tcp 5432")
    assert status == 1 and [end["direction"] for end in found["ends"]] == ["ingress"]
    assert found["ends"][0]["decidedBy"]["name"] == "fence"
    status, found = explained(cluster, f"{WEB[:8]} {DB[:8]} tcp sql")
    assert (status, found["port"]) == (0, 5432)


def test_explain_of_labels(cluster: Cli) -> None:
    """A container that does not exist is judged as one that would have the labels; its network is that of its like."""
    assert explained(cluster, f"role=web {DB[:8]} tcp 5432")[0] == 0
    assert explained(cluster, f"role=api {DB[:8]} tcp 5432")[0] == 1
    status, found = explained(cluster, "role=web,env=prod role=db tcp 5432 --network net")
    assert status == 0 and found["source"]["kind"] == "labels"
    _, found = explained(cluster, f"role=nobody {DB[:8]} tcp 5432")
    assert found["ends"][0]["verdict"] == "deny" and "--network" in found["notes"][0]


def test_explain_of_hosts(cluster: Cli) -> None:
    """A host always reaches its own containers, another host's are policed; containers do not reach the host."""
    assert explained(cluster, f"h2 {DB[:8]} tcp 80")[0] == 0
    assert explained(cluster, f"h1 {DB[:8]} tcp 80")[0] == 1
    status, found = explained(cluster, f"{WEB[:8]} 172.16.0.1 tcp 22")
    assert status == 1 and "defaultEndpointToHostAction" in found["ends"][1]["decidedBy"]["reason"]


def test_explain_of_published_ports(cluster: Cli, kv: EtcdKV) -> None:
    """The container's own address is policed as ever; what comes by the host's port is told beside it."""
    web, db = (WorkloadEndpointPort(protocol="TCP", port=port, host_port=8000 + port) for port in (80, 5432))
    endpoint(kv, "h1", WEB, "10.65.0.1", published=(web,), role="web")
    endpoint(kv, "h2", DB, "10.65.1.1", published=(db,), role="db")
    cluster("delete -q gnp fence")
    status, found = explained(cluster, f"198.51.100.7 {WEB[:8]} tcp 80")
    assert status == 1 and found["notes"][1:] == [
        "node h1 publishes it as 0.0.0.0:8080/tcp: who comes that way is allowed, because no policy selects it"]
    assert explained(cluster, f"198.51.100.7 {WEB[:8]} tcp 81")[1]["notes"][1:] == []
    status, found = explained(cluster, f"198.51.100.7 {DB[:8]} tcp 5432")
    assert status == 1 and found["notes"][1:] == [
        "node h2 publishes it as 0.0.0.0:13432/tcp: who comes that way is denied as well"]
    status, found = explained(cluster, "198.51.100.7 172.16.0.2 tcp 13432")
    assert found["notes"][1:] == ["0.0.0.0:13432/tcp of node h2 is published: ask for 10.65.1.1 port 5432"]
    status, out, _ = cluster(f"policy list --for {WEB[:8]}")
    assert status == 0 and "PublishedPorts" in out
    status, out, _ = cluster("get workloadendpoints -a -o custom-columns=NODE,PORTS")
    assert status == 0 and "0.0.0.0:8080/tcp -> 10.65.0.1:80" in out


def test_explain_in_words(cluster: Cli) -> None:
    """For people: the verdict first, then each end."""
    status, out, _ = cluster(f"policy explain {WEB[:8]} {DB[:8]} tcp 5432")
    assert status == 0
    assert out.startswith(f"{WEB[:12]} -> {DB[:12]}, tcp 5432: allowed\n")
    assert "decided by  allow: tier default, GlobalNetworkPolicy database, rule 1" in out
    assert "next        deny: tier default, end of tier" in out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nobody 10.65.1.1 tcp 80", "SRC = 'nobody'"),
        ("10.65.0.1 10.65.1.1 tpc 80", "did you mean"),
        ("10.65.0.1 10.65.1.1 tcp", "PORT"),
        ("10.65.0.1 10.65.1.1 tcp 99999", "PORT = '99999'"),
        ("10.65.0.1 fd00::1 tcp 80", "IP version"),
        ("10.65.0.1", "Missing argument"),
        ("role=web 10.65.1.1 tcp 80 --network nte", "--network = 'nte'"),
    ],
)
def test_explain_errors_are_no_verdict(cluster: Cli, line: str, expected: str) -> None:
    """Status 2, a message on standard error, nothing on standard output."""
    status, out, err = cluster(f"policy explain {line}")
    assert (status, out) == (2, "") and expected.lower() in err.lower()


def test_explain_without_a_datastore_is_no_verdict(cli: Cli, clean_environ: pytest.MonkeyPatch) -> None:
    """An etcd that does not answer is status 2, too."""
    clean_environ.setenv("ETCD_ENDPOINTS", "http://127.0.0.1:1")
    status, out, err = cli("policy explain 10.65.0.1 10.65.1.1 tcp 80")
    assert (status, out) == (2, "") and "etcd" in err


DENY_WEB = """\
apiVersion: projectcalico.org/v3
kind: {kind}
metadata: {{name: no-web}}
spec:
  selector: role == 'db'
  order: 1
  ingress: [{{action: Deny, source: {{selector: role == 'web'}}}}]
"""


def simulated(cluster: Cli, line: str, stdin: str = "") -> dict[str, Any]:
    status, out, err = cluster(f"policy simulate {line} -o json", stdin)
    assert status == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


def test_simulate_names_the_pairs_that_change(cluster: Cli, kv: EtcdKV) -> None:
    """Only web -> db on the allowed port changes; nothing is written."""
    found = simulated(cluster, "-f -", DENY_WEB.format(kind="GlobalNetworkPolicy"))
    changed = found["changed"]
    assert [(one["what"], [end["name"] for end in one["sources"]], [end["name"] for end in one["destinations"]])
            for one in changed] == [("tcp 5432", [WEB[:12]], [DB[:12]])]
    assert (changed[0]["before"]["verdict"], changed[0]["after"]["verdict"]) == ("allow", "deny")
    assert changed[0]["after"]["decidedBy"]["name"] == "no-web"
    assert found["complete"] and found["endpoints"] == 3
    assert kv.get(keys.resource("GlobalNetworkPolicy", "no-web"), Deadline(5)) is None


def test_simulate_of_no_change_says_so(cluster: Cli) -> None:
    """The same policy again turns nothing."""
    status, out, _ = cluster("policy simulate -f -", DATABASE)
    assert status == 0 and out.startswith("No pair of endpoints changes")


def test_simulate_delete(cluster: Cli) -> None:
    """Without its policy the database falls to its profile: all of its network reaches all ports."""
    found = simulated(cluster, "--delete -f -", DATABASE)
    assert {one["what"] for one in found["changed"]} >= {"tcp 80", "udp 53", "icmp type 8"}
    assert all(one["after"]["verdict"] == "allow" for one in found["changed"])


def test_simulate_staged_policies(cluster: Cli) -> None:
    """A staged policy changes nothing until --staged takes it as enforced."""
    staged = DENY_WEB.format(kind="StagedGlobalNetworkPolicy")
    assert simulated(cluster, "-f -", staged)["changed"] == []
    assert [one["what"] for one in simulated(cluster, "--staged -f -", staged)["changed"]] == ["tcp 5432"]
    assert cluster("apply -q -f -", staged)[0] == 0
    assert [one["what"] for one in simulated(cluster, "--staged")["changed"]] == ["tcp 5432"]


def test_simulate_checks_the_file_as_apply_does(cluster: Cli) -> None:
    """A selector that does not parse is refused with field and position; so is a tier that does not exist."""
    status, _, err = cluster("policy simulate -f -", DENY_WEB.format(kind="GlobalNetworkPolicy").replace("'db'", "db"))
    assert status == 1 and "spec.selector" in err
    missing = DENY_WEB.format(kind="GlobalNetworkPolicy").replace("order: 1", "tier: nowhere")
    status, _, err = cluster("policy simulate -f -", missing)
    assert status == 1 and "nowhere" in err
    assert cluster("policy simulate")[0] == 1


def test_simulate_work_does_not_grow_with_the_square_of_endpoints(cluster: Cli, kv: EtcdKV) -> None:
    """Containers of one role count once; a limit that is reached is an error, and what was found is told."""
    for number in range(60):
        endpoint(kv, "h1", f"{number:02x}" * 32, f"10.65.2.{number}", role="web")
    found = simulated(cluster, "-f -", DENY_WEB.format(kind="GlobalNetworkPolicy"))
    assert len(found["changed"]) == 1 and found["changed"][0]["pairs"] == 61 and found["comparisons"] < 500
    status, out, err = cluster("policy simulate --limit 3 -f -", DENY_WEB.format(kind="GlobalNetworkPolicy"))
    assert status == 1 and "--limit" in err


def test_list_is_in_order_of_evaluation(cluster: Cli) -> None:
    """Tiers, policies, their rules, ends of tiers, profiles; each direction."""
    status, out, _ = cluster(f"policy list --for {DB[:8]} -o json")
    assert status == 0
    found = json.loads(out)
    listed = [(one["action"], one["name"], one.get("rule")) for one in found["ingress"]]
    assert listed[:5] == [("Deny", "fence", 0), ("Pass", "fence", 1), ("Pass", "", None), ("Log", "database", 0),
                          ("Allow", "database", 1)]
    assert [one["name"] for one in found["egress"] if one["kind"] == "Profile"] == ["net"]
    status, out, _ = cluster("policy list --for role=db")
    assert status == 0 and "tier default, GlobalNetworkPolicy database" in out


MANY = """\
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: many-{number:02}}}
spec:
  selector: role == 'db'
  order: 1
  ingress:
  - {{action: Deny, source: {{nets: [10.{number}.0.0/16]}}}}
  - {{action: {action}, protocol: TCP, source: {{selector: role == 'web'}}, destination: {{ports: [{port}]}}}}
---
"""


def test_many_policies_of_one_container(cluster: Cli) -> None:
    """Found by maps in the kernel: listed in order, explained and simulated as any others."""
    crowd = "".join(MANY.format(number=number, action="Allow", port=7000 + number) for number in range(40))
    assert cluster("apply -q -f -", crowd)[0] == 0
    found = json.loads(cluster(f"policy list --for {DB[:8]} -o json")[1])["ingress"]
    listed = [(one["name"], one["rule"]) for one in found if one["name"].startswith("many-")]
    assert listed == [(f"many-{number:02}", rule) for number in range(40) for rule in (0, 1)]
    status, document = explained(cluster, f"{WEB[:8]} {DB[:8]} tcp 7033")
    assert status == 0 and document["ends"][1]["decidedBy"]["name"] == "many-33"
    status, document = explained(cluster, f"10.33.0.1 {DB[:8]} tcp 80")
    assert status == 1 and document["ends"][0]["decidedBy"]["name"] == "many-33"
    changed = simulated(cluster, "-f -", MANY.format(number=5, action="Deny", port=7005))["changed"]
    assert [(one["what"], one["after"]["decidedBy"]["name"]) for one in changed] == [("tcp 7005", "many-05")]
    assert simulated(cluster, "-f -", MANY.format(number=5, action="Allow", port=7005))["changed"] == []


def test_list_counters_only_on_the_containers_host(cluster: Cli, clean_environ: pytest.MonkeyPatch) -> None:
    """The counters are in the table of the container's own host."""
    clean_environ.setenv("NODENAME", "h1")
    status, _, err = cluster(f"policy list --for {DB[:8]} --counters")
    assert status == 1 and "h2" in err


def test_problems_names_what_is_not_understood(cluster: Cli, kv: EtcdKV) -> None:
    """Written past calicoctl: named with its field; the policy closes what it selects, as explain tells, too."""
    assert cluster("policy problems")[:2] == (0, "All resources are understood.\n")
    bad = {"kind": "GlobalNetworkPolicy", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "bad"},
           "spec": {"order": 1, "selector": "role = 'db'", "types": ["Ingress"], "ingress": [{"action": "Allow"}]}}
    kv.put(keys.resource("GlobalNetworkPolicy", "bad"), json.dumps(bad).encode(), Deadline(5))
    kv.put(keys.resource("GlobalNetworkPolicy", "worse"), b"{", Deadline(5))
    status, out, _ = cluster("policy problems")
    assert status == 1
    assert "GlobalNetworkPolicy(bad): spec.selector" in out and "GlobalNetworkPolicy(worse)" in out
    assert explained(cluster, f"{WEB[:8]} {DB[:8]} tcp 5432")[0] == 1


HOST = """\
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: h1-eth0, labels: {role: host}}
spec: {node: h1, interfaceName: eth0, expectedIPs: [172.16.0.1]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: untracked}
spec:
  selector: role == 'host'
  doNotTrack: true
  applyOnForward: true
  ingress:
  - {action: Allow, protocol: TCP, destination: {ports: [7000]}}
  - {action: Deny, protocol: TCP, destination: {ports: [7001]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: early}
spec:
  selector: role == 'host'
  preDNAT: true
  applyOnForward: true
  ingress:
  - {action: Allow, protocol: TCP, destination: {ports: [8000]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: forwarded}
spec:
  selector: role == 'host'
  applyOnForward: true
  ingress:
  - {action: Deny, source: {nets: [198.51.100.0/24]}}
  - {action: Allow}
"""


def deciders(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(where, verdict, by whom) of the host endpoints on the way."""
    return [(one["endpoint"], one["verdict"], one["decidedBy"]["name"]) for one in found["passing"]]


def test_explain_walks_the_host_endpoints_on_the_way(cluster: Cli) -> None:
    """Before tracking, before translation, forwarded: each with the rule that decides; what denies anywhere denies."""
    assert deciders(explained(cluster, f"198.51.100.7 {LONE[:8]} tcp 80")[1]) == []
    assert cluster("apply -q -f -", HOST)[0] == 0
    status, found = explained(cluster, f"198.51.100.7 {WEB[:8]} tcp 80")
    assert status == 1 and deciders(found) == [("forwarded by node h1, coming in (eth0)", "deny", "forwarded")]
    assert found["passing"][0]["next"]["verdict"] == "allow" and found["notes"] != found["passing"]
    status, found = explained(cluster, f"{DB[:8]} {WEB[:8]} tcp 80")
    assert status == 0 and deciders(found) == [("forwarded by node h1, coming in (eth0)", "allow", "forwarded")]
    status, found = explained(cluster, f"198.51.100.7 {WEB[:8]} tcp 8000")
    assert ("arriving at node h1, before translation (eth0)", "allow", "early") in deciders(found)
    assert all(verdict == "allow" for _, verdict, _ in deciders(found))
    assert deciders(explained(cluster, f"198.51.100.7 {WEB[:8]} tcp 7001")[1])[0] == (
        "arriving at node h1, before connection tracking (eth0)", "deny", "untracked")


def test_explain_of_a_host_whose_policy_is_untracked(cluster: Cli) -> None:
    """What doNotTrack policy allows is spared the later policy of the endpoint, whose end would deny."""
    assert cluster("apply -q -f -", HOST)[0] == 0
    status, found = explained(cluster, "192.0.2.7 h1 tcp 7000")
    assert status == 0 and deciders(found) == [
        ("arriving at node h1, before connection tracking (eth0)", "allow", "untracked")]
    assert explained(cluster, "198.51.100.7 h1 tcp 7002")[0] == 1
    status, found = explained(cluster, "198.51.100.7 h1 tcp 22")
    assert status == 0 and "failsafe port" in json.dumps(found["passing"])
    assert "matched" not in json.dumps(found["passing"])
    text = cluster("policy explain 198.51.100.7 h1 tcp 7001")[1]
    assert "arriving at node h1, before connection tracking (eth0): deny" in text
    assert "GlobalNetworkPolicy untracked, rule 1" in text


def test_explain_of_the_hosts_own_ports(cluster: Cli) -> None:
    """No profile opens etcd and BGP of a host, here or elsewhere; other ports are the endpoint-to-host action's."""
    for node in ("h1", "h2"):
        status, found = explained(cluster, f"{WEB[:8]} {node} tcp 2379")
        assert status == 1 and "BGP and etcd" in found["ends"][0]["decidedBy"]["reason"], node
    assert explained(cluster, f"{WEB[:8]} h2 tcp 80")[0] == 0


def test_explain_says_what_it_took_for_granted(cluster: Cli) -> None:
    """Several governed interfaces: the one with the node's address."""
    assert cluster("apply -q -f -", HOST)[0] == 0
    other = HOST.split("---")[0].replace("h1-eth0", "h1-eth1").replace("eth0", "eth1").replace("172.16.0.1", "10.0.0.1")
    assert cluster("apply -q -f -", other)[0] == 0
    _, found = explained(cluster, f"198.51.100.7 {WEB[:8]} tcp 80")
    assert "node h1: the packet is taken to pass by eth0" in found["notes"]


def test_explain_of_an_endpoint_that_waits_for_its_labels(cluster: Cli, kv: EtcdKV) -> None:
    key = keys.resource("WorkloadEndpoint", names.workload_endpoint("h1", WEB), names.NAMESPACE)
    stored = codec.decode(WorkloadEndpoint, key, kv.get(key, Deadline(5)).value)
    marked = replace(stored, metadata=replace(stored.metadata, annotations={names.LABELS_AWAITED: "true"}))
    kv.put(key, codec.encode(marked), Deadline(5))
    status, found = explained(cluster, f"{LONE[:8]} {WEB[:8]} tcp 80")
    assert status == 1 and "labels of its container" in found["ends"][1]["decidedBy"]["reason"]


HOLD = "import sys; from pathlib import Path; from calico_plugin.node.lock import Lock\n" \
    "with Lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_explain_knows_the_environment_of_this_hosts_node(
    cluster: Cli, clean_environ: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`FELIX_…` variables win over what is stored; those of other hosts are not seen from here, and it says so."""
    clean_environ.setenv("CALICO_RUN_DIR", str(tmp_path))
    clean_environ.setenv("NODENAME", "h1")
    line = f"{WEB[:8]} 172.16.0.1 tcp 22"
    assert explained(cluster, line)[0] == 1
    environ = {**os.environ, "FELIX_DEFAULTENDPOINTTOHOSTACTION": "ACCEPT"}
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as node:
        assert node.stdout is not None and node.stdout.readline() == b"held\n"
        status, found = explained(cluster, line)
        _, across = explained(cluster, f"{WEB[:8]} {DB[:8]} tcp 5432")
        assert node.stdin is not None
        node.stdin.close()
    assert status == 0 and found["notes"] == []
    assert across["notes"] == [
        "h2: FELIX_… variables of its calico-node are not known on this host (h1 has defaultEndpointToHostAction)"]


def test_explain_knows_containers_of_other_hosts_by_name(cluster: Cli, kv: EtcdKV) -> None:
    """Names and aliases that the agents tell each other; one that means several is refused with what to write."""
    def tell(node: str, eid: str, network: str, *called: str) -> None:
        key = keys.endpoint_names(node, eid)
        kv.put(key, codec.encode(EndpointNames(container=eid, network=network, names=called)), Deadline(5))

    tell("h2", DB, "net", "sql", "db1", "postgres")
    tell("h1", WEB, "net", "shop", "web")
    status, found = explained(cluster, "shop postgres tcp 5432")
    assert status == 0 and found["destination"]["name"] == "postgres" and found["destination"]["node"] == "h2"
    assert explained(cluster, "shop@net sql@net tcp 80")[0] == 1
    assert cluster("policy list --for sql")[1].startswith("sql (10.65.1.1, node h2)")
    status, _, err = cluster("policy explain shop sqk tcp 80")
    assert status == 2 and "did you mean sql?" in err
    assert cluster("policy explain shop sql@other tcp 80")[0] == 2
    tell("h1", LONE, "other", "third", "postgres")
    status, _, err = cluster("policy explain shop postgres tcp 80")
    assert status == 2 and "2 endpoints are called so: write one of postgres@net, postgres@other" in err
    tell("h1", LONE, "net", "third", "postgres")
    status, _, err = cluster("policy explain shop postgres tcp 80")
    assert status == 2 and f"write one of {DB[:12]} (net), {LONE[:12]} (net)" in err
