"""docs/policy.md played: networks, profiles, labels, a three-tier application, on two hosts with real containers."""
from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.connectivity import Container
from tests.lab.machine import Machine
from tests.lab.wait import wait_for

PAGE = Path(__file__).parents[2] / "docs" / "policy.md"
LABELS = "CALICO_LIBNETWORK_LABEL_ENDPOINTS"
ROUNDS, AT_ONCE = 10, 5


def manifest(name: str) -> str:
    """A manifest of the page, by the file name in its first line."""
    found = re.search(rf"```yaml\n# {re.escape(name)}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture(scope="module")
def labelled(lab):
    """calico-node takes over containers' labels while this module runs."""
    for settings in ({LABELS: "true"}, {}):
        for host in lab.hosts:
            lab.node(host).stop()
            lab.node(host).run(**settings)
        if settings:
            yield lab


@pytest.fixture
def apply(lab):
    """Apply manifests; what they made is deleted after the test."""
    made: list[str] = []

    def put(text: str) -> None:
        lab["host1"].run("calicoctl", "apply", "-f", "-", env=lab.node("host1").environment(), stdin=text.encode())
        made.append(text)

    yield put
    for text in reversed(made):
        lab["host1"].run("calicoctl", "delete", "-s", "-f", "-", env=lab.node("host1").environment(),
                         stdin=text.encode(), check=False)


def connects(source: Container, target: str, port: int) -> bool:
    """Whether a TCP connection is made within a second."""
    words = ("docker", "exec", source.name, "sh", "-c", f"nc -w 1 {target} {port} < /dev/null")
    return source.machine.run(*words, check=False).returncode == 0


def explained(lab, source: str, target: str, *what: str) -> tuple[int, dict]:
    """Exit status and answer of `calicoctl policy explain` on host1."""
    done = lab["host1"].run("calicoctl", "policy", "explain", source, target, *what, "-o", "json",
                            env=lab.node("host1").environment(), check=False)
    assert done.returncode in (0, 1), done.stdout
    return done.returncode, json.loads(done.stdout)


def ask(lab, *words: str, stdin: str = "") -> dict:
    """The JSON answer of a `calicoctl policy` command on host1."""
    done = lab["host1"].run("calicoctl", "policy", *words, "-o", "json", env=lab.node("host1").environment(),
                            stdin=stdin.encode())
    return json.loads(done.stdout)


@dataclass
class Firsts:
    """Fresh containers whose first packets ask for a connection to a forbidden and to an allowed port of a target; and
    what of that came out of the target's link, on the wire. `source`: where they run, if not on the target's host.
    """

    host: Machine
    network: str
    target: Container
    source: Machine | None = None
    place: str = "/run/firsts.pcap"

    def start(self, rounds: int, *options: str) -> str:
        """What tcpdump saw."""
        self.host.run("rm", "-f", self.place)
        # At once: what the kernel has not handed over yet would be lost when tcpdump ends.
        capture = self.host.popen("tcpdump", "-n", "-U", "--immediate-mode", "-i", self.target.interface(), "-w",
                                  self.place, "tcp[tcpflags] & (tcp-syn | tcp-ack) == tcp-syn")
        wait_for("tcpdump", lambda: self.host.run("test", "-e", self.place, check=False).returncode == 0, 10)
        address = self.target.address()
        # Nobody listens there: an allowed connection is refused at once.
        script = f"nc -w 1 {address} 5301 & nc -w 1 {address} 5300; sleep 0.3"
        words = " ".join(options)
        commands = [f'docker run --rm --net {self.network} {words} busybox sh -c "{script}"'] * AT_ONCE
        together = " & ".join(f"{{ {command}; }}" for command in commands) + " & wait"
        for _ in range(rounds // AT_ONCE):
            (self.source or self.host).run("sh", "-c", together, seconds=90, check=False)
        capture.terminate()
        capture.wait(10)
        return self.host.run("tcpdump", "-n", "-r", self.place, check=False).stdout

    def check(self, rounds: int, *options: str) -> None:
        seen = self.start(rounds, *options)
        address = self.target.address()
        assert f"{address}.5301" not in seen, seen
        assert seen.count(f"> {address}.5300:") == rounds, seen


def only_5300(name: str, selector: str) -> str:
    return f"""\
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: {name}}}
spec:
  selector: {selector}
  types: [Egress]
  egress:
  - {{action: Allow, protocol: TCP, destination: {{ports: [5300]}}}}
"""


@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(100, marks=pytest.mark.long)])
def test_first_packets_meet_exactly_their_policy(lab, network, run, apply, rounds):
    """On the wire to the target there is no forbidden packet of any fresh container, and every allowed one."""
    net = network("cal_firsts")
    target = run("host1", "firsts-target", net)
    apply(only_5300("firsts", f"has({net})"))
    wait_for("the policy", lambda: "firsts" in json.dumps(ask(lab, "list", "--for", "firsts-target")), 10)
    wait_for("the policy in force", lambda: "po-gnp/firsts" in lab["host1"].run(
        "nft", "list", "table", "inet", "calico").stdout, 10)
    Firsts(lab["host1"], net, target).check(rounds)


def test_walkthrough(labelled, network, run, apply):
    """Every step of the page, and on the wire what `explain` says."""
    lab = labelled
    shop, office = network("shop"), network("office")

    def start(host: str, role: str, port: int) -> Container:
        return run(host, role, shop, "--label", f"org.projectcalico.label.role={role}",
                   command=f"nc -ll -p {port} -e cat")

    web, api, db = start("host1", "web", 80), start("host2", "api", 8080), start("host1", "db", 5432)
    desk = run("host1", "desk", office)
    at = {one.name: one.address() for one in (web, api, db, desk)}
    wait_for("the other host's routes", lambda: connects(web, at["api"], 8080), 20)

    # Two networks: profiles.
    assert explained(lab, "web", "db", "tcp", "5432")[0] == 0 and connects(web, at["db"], 5432)
    status, found = explained(lab, "desk", "db", "tcp", "5432")
    assert status == 1 and found["ends"][1]["decidedBy"]["reason"] == "no profile rule matched"
    assert not connects(desk, at["db"], 5432)

    # Three tiers: what would change, then the change.
    wait_for("labels", lambda: {(role, explained(lab, f"role={role}", "db", "tcp", "5432")[0])
                                for role in ("web", "api", "db")} == {("web", 0), ("api", 0), ("db", 0)}, 15)
    text = manifest("three-tiers.yaml")
    changed = {(source["name"], target["name"], one["what"])
               for one in ask(lab, "simulate", "-f", "-", stdin=text)["changed"]
               for source in one["sources"] for target in one["destinations"] if source != target}
    assert ("web", "db", "tcp 5432") in changed and not any(ends[2] == "tcp 5432" and ends[1] == "db"
                                                            and ends[0] not in ("web", "db") for ends in changed)
    apply(text)
    wait_for("the policies", lambda: not connects(web, at["db"], 5432), 10, 0.1)
    containers, ports = (web, api, db, desk), {"web": 80, "api": 8080, "db": 5432}
    allowed = {("api", "web"), ("db", "web"), ("desk", "web"), ("web", "api"), ("api", "db")}
    for source in containers:
        for name, port in ports.items():
            if source.name == name:
                continue
            expected = (source.name, name) in allowed
            assert connects(source, at[name], port) is expected, (source.name, name)
            status, found = explained(lab, at[source.name], at[name], "tcp", str(port))
            assert (status == 0) is expected, found
    status, found = explained(lab, "web", "db", "tcp", "5432")
    entering = found["ends"][1]
    assert "end of tier" in entering["decidedBy"]["reason"] and entering["next"]["kind"] == "Profile"

    # What applies to the database, and how often.
    rules = ask(lab, "list", "--for", "db", "--counters")["ingress"]
    counted = [one["packets"] for one in rules if one["name"] == "shop-db"]
    assert len(counted) == 1 and counted[0] > 0, rules

    # A staged change; then in force: the open connection is cut, the other goes on.
    staged = manifest("no-database.yaml")
    apply(staged)
    changes = ask(lab, "simulate", "--staged")["changed"]
    assert [(one["sources"][0]["endpoint"], one["destinations"][0]["name"], one["what"]) for one in changes] == [
        (_endpoint_name(lab, api), "db", "tcp 5432")]
    with_db, with_api = Talk(api, at["db"], 5432), Talk(web, at["api"], 8080)
    wait_for("both conversations", lambda: with_db.lines() > 2 and with_api.lines() > 2, 10)
    apply(staged.replace("StagedGlobalNetworkPolicy", "GlobalNetworkPolicy"))
    wait_for("the cut", lambda: with_db.is_silent(), 10)
    assert not with_api.is_silent()
    assert explained(lab, at["api"], "db", "tcp", "5432")[0] == 1


def _endpoint_name(lab, container: Container) -> str:
    """The WorkloadEndpoint of a container."""
    found = json.loads(lab.node("host1").ctl("get", "wep", "-A", "-o", "json"))["items"]
    return next(one["metadata"]["name"] for one in found if one["spec"]["endpoint"] == container.endpoint())


class Talk:
    """A conversation in one TCP connection, five lines a second, echoed."""

    def __init__(self, source: Container, target: str, port: int) -> None:
        self._source, self._file = source, f"/tmp/talk-{port}"
        script = f"while sleep 0.2; do echo x; done | nc {target} {port} > {self._file}"
        source.machine.run("docker", "exec", "-d", source.name, "sh", "-c", script)

    def lines(self) -> int:
        """Echoes so far."""
        return len(self._source.run("sh", "-c", f"cat {self._file} || true"))

    def is_silent(self) -> bool:
        """No echo for a second."""
        before = self.lines()
        self._source.run("sleep", "1")
        return self.lines() == before


@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(100, marks=pytest.mark.long)])
def test_first_packets_meet_the_policy_of_their_labels(labelled, network, run, apply, rounds):
    """The same where only a label of the container leads to the policy: without it all would be allowed."""
    lab = labelled
    net = network("cal_labels")
    target = run("host1", "labels-target", net)
    apply(only_5300("labels", "role == 'asker'"))
    Firsts(lab["host1"], net, target).check(rounds, "--label", "org.projectcalico.label.role=asker")


@pytest.mark.long
def test_other_hosts_know_a_container_before_its_first_packet(labelled, network, run, apply):
    """The target's host must have the new container's address and label among those that it lets in: no first packet is
    lost, and none of a container with another label passes.
    """
    lab = labelled
    net = network("cal_across")
    target = run("host2", "across-target", net, "--label", "org.projectcalico.label.role=target")
    apply("""\
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: across}
spec:
  selector: role == 'target'
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: role == 'asker'}, destination: {ports: [5300]}}
""")
    wait_for("the policy in force", lambda: "pi-gnp/across" in lab["host2"].run(
        "nft", "list", "table", "inet", "calico").stdout, 10)
    Firsts(lab["host2"], net, target, lab["host1"]).check(50, "--label", "org.projectcalico.label.role=asker")
    seen = Firsts(lab["host2"], net, target, lab["host1"]).start(10, "--label", "org.projectcalico.label.role=other")
    assert target.address() not in seen, seen


@pytest.mark.long
def test_container_that_dockerd_starts_by_itself_is_dark_until_its_labels_are_known(labelled, network, run, apply):
    """While dockerd starts, its API tells nothing. The container comes back, its labels too, and nothing forbidden was
    ever on the wire: it asked for nothing else from its first moment.
    """
    lab = labelled
    net = network("cal_again")
    target = run("host2", "again-target", net)
    apply(only_5300("again", "role == 'asker'"))
    address = target.address()
    again = run("host1", "again", net, "--restart", "always", "--label", "org.projectcalico.label.role=asker",
                command=f"sh -c 'while true; do nc -w 1 {address} 5301; done'")
    capture = lab["host1"].popen("tcpdump", "-n", "-U", "--immediate-mode", "-i", "eth0", "-w", "/run/again.pcap",
                                 "tcp", "port", "5301", "or", "port", "5300")
    wait_for("tcpdump", lambda: lab["host1"].run("test", "-e", "/run/again.pcap", check=False).returncode == 0, 10)
    before = again.endpoint()
    lab.docker("host1").restart()
    wait_for("the container", lambda: again.inspect("{{.State.Running}}") == "true", 30)
    assert again.endpoint() != before
    wait_for("what it may do", lambda: again.machine.run(
        "docker", "exec", again.name, "sh", "-c", f"nc -w 1 {address} 5300 2>&1 < /dev/null; true",
        check=False).stdout.count("refused"), 30)
    capture.terminate()
    capture.wait(10)
    seen = lab["host1"].run("tcpdump", "-n", "-r", "/run/again.pcap", check=False).stdout
    assert ".5301" not in seen and ".5300" in seen, seen
