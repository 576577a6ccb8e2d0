"""The experiment, played for a newcomer: two Docker hosts, one Calico, every command as one would type it.

``make demo`` runs it. KEEP=1 leaves the two hosts up and tells how to get a shell there. DOCKER=28 (or 26) plays it on
today's Docker, which has no cluster store. FORM=container runs calico-node as a container of each host's Docker,
instead of a process. The exit status is 0 only when every check came true; what was checked is summed up at the end.
"""
from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from typing import Iterator

from tests.lab import bare
from tests.lab import lab as labs
from tests.lab import rootfs, state
from tests.lab.diagnostics import dump
from tests.lab.lab import Lab
from tests.lab.releases import RELEASES, ensure
from tests.lab.spec import LabSpec
from tests.lab.stage import Stage, StepFailed, ticking

NAME = "demo"
DOCKERS = ("20", "26", "28")
FORMS = ("process", "container")
INSPECT = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
CREATE = "docker network create --driver calico --ipam-driver calico-ipam"


# -- the play ---------------------------------------------------------------------------------------------------------
def play(stage: Stage) -> None:
    """All steps up to, and without, the clean-up."""
    start_nodes(stage)
    make_network(stage)
    run_containers(stage)
    isolate(stage)
    watch_the_wire(stage)
    show_routes(stage)
    show_store(stage)
    apply_policy(stage)


def start_nodes(stage: Stage) -> None:
    """calicoctl node run and status on both hosts."""
    stage.title("Calico on both hosts")
    for host in stage.lab.hosts:
        said = stage.type(host, f"export ETCD_ENDPOINTS={stage.lab.spec.etcd_url}; {stage.node_run}", 120)
        stage.check(f"calico-node started on {host}", "Calico node started successfully" in said, needed=True)
        if stage.in_container:
            seen = stage.type(host, "docker ps")
            stage.check(f"it runs as a container of {host}'s Docker", "calico-node" in seen)
    for host, other in (("host1", "host2"), ("host2", "host1")):
        peer = str(stage.lab.spec.address(other).ip)
        stage.until(f"{host} has a BGP session with {other}", lambda: peer in stage.lab.node(host).established(), 30)
        stage.type(host, "calicoctl node status")


def make_network(stage: Stage) -> None:
    """One docker network create; both hosts see it."""
    stage.title("A network, made on one host")
    scope = "global" if stage.lab.spec.cluster_store else "local"
    create(stage, "cal_net1")
    seen = stage.type("host2", "docker network ls")
    stage.check(f"host2 sees cal_net1, driver calico, scope {scope}",
                bool(re.search(rf"cal_net1 +calico +{scope}", seen)), needed=True)


def run_containers(stage: Stage) -> None:
    """A container on each host; they reach each other by address and by name."""
    stage.title("A container on each host")
    stage.type("host1", "docker run --net cal_net1 --name workload-A -tid busybox")
    stage.type("host2", "docker run --net cal_net1 --name workload-B -tid busybox")
    there = address(stage, "host2", "workload-B")
    stage.check("workload-B has an address of Calico's pool", there.startswith("192.168."), needed=True)
    stage.until("host1 has learnt the way to it", lambda: there_is_a_route(stage, "host1", there), 20)
    stage.check("A reaches B by address", ping(stage, "host1", "workload-A", there))
    stage.check("A reaches B by name", ping(stage, "host1", "workload-A", "workload-B"))
    stage.check("B reaches A by name", ping(stage, "host2", "workload-B", "workload-A"))


def isolate(stage: Stage) -> None:
    """A second network cannot reach the first."""
    stage.title("A second network, kept apart by policy")
    create(stage, "cal_net2")
    stage.type("host2", "docker run --net cal_net2 --name workload-C -tid busybox")
    stage.type("host1", "docker run --net cal_net2 --name workload-D -tid busybox")
    other = address(stage, "host2", "workload-C")
    stage.until("host1 has learnt the way to it", lambda: there_is_a_route(stage, "host1", other), 20)
    stage.check("D reaches C: same network", ping(stage, "host1", "workload-D", other))
    stage.check("A does not reach C: other network", not ping(stage, "host1", "workload-A", other))
    own = address(stage, "host1", "workload-A")
    stage.check("C does not reach A either, from the other host", not ping(stage, "host2", "workload-C", own))


def watch_the_wire(stage: Stage) -> None:
    """The packets between the hosts are the containers' own."""
    stage.title("What goes over the wire")
    ours, theirs = (quiet(stage, host, f"docker inspect -f '{INSPECT}' {name}")
                    for host, name in (("host1", "workload-A"), ("host2", "workload-B")))
    line = "tcpdump -n -l -i eth0 -c 2 icmp or proto 4 or udp port 4789"
    stage.prompt("host2", f"{line} &")
    capture = stage.lab["host2"].popen("timeout", "20", *shlex.split(line), stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert capture.stdout is not None
    while "listening" not in (heard := capture.stdout.readline()) and heard:
        pass
    ping(stage, "host1", "workload-A", theirs, count=1)
    packets = capture.communicate(timeout=30)[0]
    stage.say(packets.rstrip())
    stage.check("containers' own addresses on the wire: no tunnel, no NAT",
                f"IP {ours} > {theirs}: ICMP echo request" in packets
                and f"IP {theirs} > {ours}: ICMP echo reply" in packets)


def show_routes(stage: Stage) -> None:
    """Every host is a router."""
    stage.title("Every host is a router")
    routes = stage.type("host1", "ip route")
    ours = quiet(stage, "host1", f"docker inspect -f '{INSPECT}' workload-A")
    stage.check("host1 has a route to its own container", bool(re.search(rf"^{ours} dev cali\w+ ", routes, re.M)))
    stage.check("host1 learnt host2's block by BGP",
                bool(re.search(r"^192\.168\.\S+ via 172\.20\.62\.105 dev eth0 proto bird", routes, re.M)))
    inside = stage.type("host1", "docker exec workload-A ip route")
    stage.check("the container's gateway is 169.254.1.1", "default via 169.254.1.1" in inside)


def show_store(stage: Stage) -> None:
    """What etcd knows, through calicoctl."""
    stage.title("What Calico knows")
    for line, wanted in (("calicoctl get nodes", "host2"), ("calicoctl get ippools", "192.168.0.0/16"),
                         ("calicoctl get profiles", "cal-net1"), ("calicoctl get workloadendpoints -A", "host2"),
                         ("calicoctl ipam show", "192.168.0.0/16")):
        stage.check(f"`{line}` shows {wanted}", wanted in stage.type("host1", line))
    said = stage.type("host1", "calicoctl ipam check; echo status $?")
    stage.check("`calicoctl ipam check` finds nothing wrong", said.rstrip().endswith("status 0"))


POLICY = """\
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: no-ping}
spec:
  selector: has(cal_net1)
  ingress:
  - {action: Deny, protocol: ICMP}
  - {action: Allow, source: {selector: has(cal_net1)}}
"""


def apply_policy(stage: Stage) -> None:
    """A policy: tried, applied, explained, taken away."""
    stage.title("A policy, and why a connection is denied")
    ours, theirs = (quiet(stage, host, f"docker inspect -f '{INSPECT}' {name}")
                    for host, name in (("host1", "workload-A"), ("host2", "workload-B")))
    said = stage.type("host1", f"cat > no-ping.yaml <<'END'\n{POLICY}END\ncalicoctl policy simulate -f no-ping.yaml")
    stage.check("it would deny a ping, and nothing is changed yet",
                "icmp type 8: denied" in said and ping(stage, "host1", "workload-A", theirs, count=1))
    stage.type("host1", "calicoctl apply -f no-ping.yaml")
    stage.until("the policy is in force on the other host: no ping any more",
                lambda: not ping(stage, "host1", "workload-A", theirs, count=1), 10)
    said = stage.type("host1", f"calicoctl policy explain workload-A {theirs} icmp; echo status $?")
    stage.check("`calicoctl policy explain` names the rule that denies",
                "GlobalNetworkPolicy no-ping, rule 0" in said and "status 1" in said)
    said = stage.type("host2", f"calicoctl policy explain {ours} workload-B tcp 80; echo status $?")
    stage.check("and the one that allows something else", "GlobalNetworkPolicy no-ping, rule 1" in said
                and "status 0" in said)
    stage.type("host1", "calicoctl delete -f no-ping.yaml && rm no-ping.yaml")
    stage.until("without it they reach each other again",
                lambda: ping(stage, "host1", "workload-A", theirs, count=1), 10)


def clean_up(stage: Stage, before: dict[str, bare.HostState]) -> None:
    """Until both hosts are as they were, and etcd holds no key of ours."""
    stage.title("Clean-up, until nothing is left")
    stage.type("host1", "docker rm -f workload-A workload-D")
    stage.type("host2", "docker rm -f workload-B workload-C")
    for host in stage.lab.hosts:
        stage.until(f"{host} has no link of a container any more", lambda: not bare.links(stage.lab[host]), 10)
    stage.type("host1", "docker network rm cal_net1 cal_net2")
    for host in stage.lab.hosts:
        stage.type(host, "calicoctl node stop")
        stage.type(host, "calicoctl node reset")
    stage.type("host1", "calicoctl datastore purge --yes")
    for host in stage.lab.hosts:
        left = bare.differences(before[host], bare.look(stage.lab[host]))
        for line in left:
            stage.say(f"  {host}: {line}")
        stage.check(f"{host} is bare: links, routes, firewall, processes, sockets and files as before", not left)
    keys = stage.lab.etcd.keys("")
    for key in keys[:20]:
        stage.say(f"  etcd still holds {key}")
    stage.check("etcd holds none of our keys", not keys)


# -- helpers ----------------------------------------------------------------------------------------------------------
def create(stage: Stage, network: str) -> None:
    """Make a network on host1. Where Docker has no cluster store, the agents carry it to host2: a moment later."""
    stage.type("host1", f"{CREATE} {network}")
    stage.until(f"{network} is on host2, too", lambda: network in quiet(stage, "host2", "docker network ls"), 10, True)


def ping(stage: Stage, host: str, container: str, target: str, count: int = 2) -> bool:
    """Ping in the open; whether every one was answered."""
    said = stage.type(host, f"docker exec {container} ping -c {count} -W 1 {target}")
    return f"{count} packets transmitted, {count} packets received" in said


def address(stage: Stage, host: str, container: str) -> str:
    """Ask Docker for a container's address, in the open."""
    return stage.type(host, f"docker inspect -f '{INSPECT}' {container}").strip()


def quiet(stage: Stage, host: str, line: str) -> str:
    """Ask something behind the scenes."""
    return stage.lab[host].shell(line).strip()


def there_is_a_route(stage: Stage, host: str, target: str) -> bool:
    """Whether a host has a route to an address that is better than its default route."""
    routes = json.loads(quiet(stage, host, f"ip -j route get {target}"))
    return routes[0].get("gateway") in {str(stage.lab.spec.address(other).ip) for other in stage.lab.hosts}


def summary(stage: Stage, began: float) -> int:
    """Print what was checked; the exit status."""
    failed = [what for what, true in stage.checks if not true]
    stage.say("\n" + "=" * 80)
    for what in failed:
        stage.say(f"FAILED: {what}")
    stage.say(f"{len(stage.checks) - len(failed)} of {len(stage.checks)} checks came true, in "
              f"{time.monotonic() - began:.0f} s: " + ("the experiment FAILED" if failed else "the experiment works"))
    return 1 if failed else 0


def how_to_look(name: str) -> Iterator[str]:
    """What to type to look around in a lab that stays up."""
    program = f"sudo {sys.executable} -m tests.lab --name {name}"
    yield "The hosts stay up. In this folder:"
    yield f"  {program} shell host1      a root shell on host1 (host2, etcd, fabric likewise)"
    yield f"  {program} status           what runs where"
    yield f"  {program} down             take all down"


def spec_of(docker: str, form: str) -> LabSpec:
    """The lab of a form; ValueError for one that is not offered."""
    if docker not in DOCKERS:
        raise ValueError(f"DOCKER={docker}: {', '.join(DOCKERS)} (the first is the default)")
    if form not in FORMS or form == "container" and docker != DOCKERS[0]:
        raise ValueError(f"FORM={form}: process (the default), or with DOCKER={DOCKERS[0]} also container")
    release = next(one for label, one in RELEASES.items() if label.startswith(docker))
    return LabSpec(NAME, cluster_store=release.cluster_store, release=release,
                   docker_options=rootfs.PRIVILEGED if form == "container" else ())


def fetch(stage: Stage) -> None:
    """Another Docker than this machine's, once."""
    root = stage.lab.spec.release.root
    if root is not None and not root.exists():
        stage.say(f"  Docker {stage.lab.spec.release.label} of Debian {root.name}: fetched once, which takes a minute")
        with ticking(stage.say):
            ensure(stage.lab.spec.release)


def build_image(stage: Stage) -> None:
    """The files of calico-node's image; minutes at the first time."""
    stage.say(f"  the image {rootfs.IMAGE}: built once, which takes minutes, then only renewed")
    with ticking(stage.say):
        rootfs.built()


def load_image(stage: Stage) -> None:
    """Give the image to each host's Docker, as a pull would."""
    for host in stage.lab.hosts:
        stage.say(f"  {host}: docker import ... {rootfs.IMAGE}")
        with ticking(stage.say):
            rootfs.import_image(stage.lab[host])


def main() -> int:
    """Build the lab, play, clean up, sum up."""
    keep = os.environ.get("KEEP", "") not in ("", "0")
    form = os.environ.get("FORM", FORMS[0])
    try:
        spec = spec_of(os.environ.get("DOCKER", DOCKERS[0]), form)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 1
    if not (own := state.claim(NAME)):
        print("another demo runs right now on this machine; wait for its end", file=sys.stderr)
        return 1
    began = time.monotonic()
    print(f"== Two Docker hosts (Docker {spec.release.label}) on this machine, made of namespaces", flush=True)
    stage = Stage(Lab(spec), in_container=form == "container")
    try:
        if stage.in_container:
            build_image(stage)
        fetch(stage)
        stage.lab = labs.up(stage.lab.spec, lambda text: print(f"  {text}", flush=True))
        if stage.in_container:
            load_image(stage)
        before = {host: bare.look(stage.lab[host]) for host in stage.lab.hosts}
        play(stage)
        if not keep:
            clean_up(stage, before)
    except StepFailed:
        stage.say("The rest needs this, so the play ends here.")
    except (AssertionError, OSError, subprocess.SubprocessError) as problem:
        stage.check(f"the lab itself works: {problem}", False)
    except KeyboardInterrupt:
        stage.check("played to the end (interrupted)", False)
    status = summary(stage, began)
    finish(stage, status, keep)
    own.release()
    return status


def finish(stage: Stage, status: int, keep: bool) -> None:
    """Take the lab down, or leave it; after a failure write down its state first."""
    if status and stage.lab.machines:
        stage.say(f"State and logs of all machines are in {dump(stage.lab, 'demo')} and the folders beside it.")
    if keep and stage.lab.machines:
        for line in how_to_look(NAME):
            stage.say(line)
    else:
        state.clear(NAME, keep_logs=bool(status))
