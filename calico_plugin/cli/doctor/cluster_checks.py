"""Checks of etcd and of what is stored there."""

from __future__ import annotations

from typing import Iterable

from calico_plugin.cli.doctor import probes
from calico_plugin.cli.doctor.context import Context
from calico_plugin.cli.doctor.finding import Finding, Level
from calico_plugin.model import keys

SKEW_SECONDS = 5.0
SILENT_SECONDS = 300.0
_OLDEST_ETCD = (3, 2)
_SHOWN = 3
_NOTHING_NEW = "No network, container or policy can be made or changed; running containers go on."


def connection(context: Context) -> Iterable[Finding]:
    """Which etcd is meant, and whether calico-node means the same one."""
    chosen = context.datastore
    warning = context.overruled()
    theirs = context.node_environment.get("CALICO_ETCD_ENDPOINTS") or context.node_environment.get("ETCD_ENDPOINTS")
    if warning:
        meaning = "The file wins as a whole; what you export has no effect."
        yield Finding("connection", Level.WARN, warning, meaning, "unset ETCD_ENDPOINTS, or name another file with -c")
    if theirs and set(theirs.split(",")) != set(chosen.endpoints):
        summary = f"calicoctl uses {', '.join(chosen.endpoints)} ({chosen.source}), calico-node uses {theirs}"
        meaning = "You look at another datastore than this host's services. sudo, for one, drops the environment."
        yield Finding("connection", Level.FAIL, summary, meaning, f"export ETCD_ENDPOINTS={theirs} (and use sudo -E)")
    elif not warning:
        yield Finding("connection", Level.OK, f"{', '.join(chosen.endpoints)} ({chosen.source})")


def settings(context: Context) -> Iterable[Finding]:
    """The variables that calico-node reads."""
    problems = context.settings.problems()
    for problem in problems:
        meaning, command = "calico-node does not start with it.", f"unset {problem.variable}, or give it a right value"
        yield Finding("settings", Level.FAIL, str(problem), meaning, command)
    if not problems:
        yield Finding("settings", Level.OK, "all variables of calico-node are right")


def etcd(context: Context) -> Iterable[Finding]:
    """Each endpoint answers, and together they have a leader."""
    answers = context.endpoints()
    alone = not any(_answers(answer) for answer in answers.values())
    for endpoint, answer in answers.items():
        if not _answers(answer):
            meaning = _NOTHING_NEW if alone else "The other endpoints are used; one more failure may stop all changes."
            command = f"systemctl status etcd (there); etcdctl --endpoints={endpoint} endpoint health"
            yield Finding("etcd", Level.FAIL, f"{endpoint}: {answer}", meaning, command)
        elif tuple(int(part) for part in answer.split(".")[:2] if part.isdigit()) < _OLDEST_ETCD:
            meaning = "It lacks parts of the API that are used here."
            yield Finding("etcd", Level.FAIL, f"{endpoint} is etcd {answer}", meaning, "upgrade etcd to 3.4 or newer")
        else:
            yield Finding("etcd", Level.OK, f"{endpoint} answers, version {answer}")
    if context.etcd_fault and not alone:
        command = "etcdctl endpoint status --cluster shows whether there is a leader"
        yield Finding("etcd", Level.FAIL, f"reads fail: {context.etcd_fault}", _NOTHING_NEW, command)


def _answers(answer: str) -> bool:
    """A version, and not an error."""
    return answer[:1].isdigit()


def clock(context: Context) -> Iterable[Finding]:
    """This host's clock against etcd's, and against the times that other nodes write."""
    ahead = {endpoint: probes.clock_of(endpoint, context.datastore) for endpoint in context.datastore.endpoints}
    known = {endpoint: seconds for endpoint, seconds in ahead.items() if seconds is not None}
    wrong = [
        f"this host is {_apart(seconds)} of {endpoint}"
        for endpoint, seconds in known.items()
        if abs(seconds) > SKEW_SECONDS
    ]
    reports = {} if context.etcd_fault else context.reports
    wrong += [
        f"node {node} wrote a time that is {at - context.now:.0f} s in the future here"
        for node, at in sorted(reports.items())
        if at - context.now > SKEW_SECONDS
    ]
    yield from map(_skewed, wrong)
    if not wrong:
        level = Level.OK if known else Level.SKIP
        yield Finding("clock", level, "the same as etcd's" if known else "etcd tells no time")


def _apart(ahead: float) -> str:
    return f"{abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}"


def _skewed(summary: str) -> Finding:
    meaning = "Certificates look expired or not yet valid, and times in logs and statuses mislead."
    return Finding("clock", Level.FAIL, summary, meaning, "timedatectl set-ntp true (on the host that is wrong)")


def datastore_lock(context: Context) -> Iterable[Finding]:
    """A datastore that was locked for a migration and forgotten."""
    stored = context.cluster
    if stored is None:
        meaning = "No calico-node has ever started with this etcd; perhaps it is the wrong one."
        yield Finding("lock", Level.FAIL, "etcd holds nothing of Calico", meaning, context.start)
    elif stored.value.spec.datastore_ready is False:
        meaning = "Agents make no change until it is unlocked: new containers wait for their policy in vain."
        yield Finding("lock", Level.FAIL, "the datastore is locked", meaning, "calicoctl datastore migrate unlock")
    else:
        yield Finding("lock", Level.OK, "the datastore is not locked")


def values(context: Context) -> Iterable[Finding]:
    """Stored values that nobody can read."""
    invalid = context.invalid()
    for one in invalid[:_SHOWN]:
        resource = keys.parse_resource(one.key)
        where = f" -n {resource.namespace}" if resource and resource.namespace else ""
        command = (
            f"calicoctl delete {resource.kind.lower()} {resource.name}{where}" if resource else f"etcdctl get "
            f"{one.key}"
        )
        meaning = "It counts as absent everywhere; a policy that does not parse protects nobody."
        yield Finding("values", Level.FAIL, f"{one.key} does not parse: {one.why}", meaning, command)
    if len(invalid) > _SHOWN:
        yield Finding("values", Level.FAIL, f"and {len(invalid) - _SHOWN} more values do not parse")
    if not invalid:
        yield Finding("values", Level.OK, "all stored values can be read")


def stale_nodes(context: Context) -> Iterable[Finding]:
    """Nodes of which nothing has been heard for long: their host is gone, or off."""
    silent = [node.name for node in context.nodes if node.name != context.name and _is_silent(context, node.name)]
    for name in silent:
        at = context.reports.get(name)
        seen = f"last seen {_ago(context.now - at)} ago" if at else "never seen, and its BGP session is down"
        meaning = "Other nodes go on trying to reach it, its addresses stay taken, and its endpoints stay in policies."
        command = f"if that host is gone for good: calicoctl delete node {name}"
        yield Finding("nodes", Level.WARN, f"node {name}: {seen}", meaning, command)
    if not silent:
        yield Finding("nodes", Level.OK, f"{len(context.nodes)} nodes, none of them silent")


def _is_silent(context: Context, name: str) -> bool:
    if name in context.live or context.now - context.reports.get(name, 0.0) < SILENT_SECONDS:
        return False
    if name in context.reports and context.reporting_seconds() > 0:
        return True
    return not context.seen_by_bgp(name)


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
