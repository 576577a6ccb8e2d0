"""Who may import whom, as data. Every import statement counts, those inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Iterator

import pytest

ROOT = Path(__file__).parents[2] / "calico_plugin"

# Package (or module of the top) -> what of ours it may import besides itself: packages, or modules of them.
ALLOWED: dict[str, frozenset[str]] = {
    name: frozenset(allowed.split())
    for name, allowed in {
        "errors": "",
        "deadline": "errors",
        "model": "errors",
        "config": "errors model",
        "observe": "errors",
        "datastore": "model errors observe deadline",
        "policy": "model errors",
        "naming": "model",
        "dataplane": "model errors observe deadline",
        "routing": "model errors observe deadline",
        "ipam": "model datastore errors observe deadline",
        # The driver makes veth pairs, because Docker needs them before Join returns; rules and routes are the agent's.
        "driver": "model datastore ipam dataplane.veth dataplane.netlink errors observe deadline",
        "agent": "model datastore policy naming dataplane routing errors observe deadline",
        # Start-up prepares the host (modules, sysctls) and `reset` takes away what the parts have left behind.
        "node": "config model datastore ipam dataplane routing policy.selector errors observe deadline",
        "cli": "model datastore ipam policy routing.birdc errors observe deadline",
    }.items()
}

# Composition roots, and modules that stand for one: they also make clients from settings, or run another program.
EXTRA: dict[str, frozenset[str]] = {
    name: frozenset(allowed.split())
    for name, allowed in {
        "driver.wsgi": "config policy.selector",
        "agent.main": "config",
        "cli.main": "config",
        "cli.settings": "config",
        "cli.session": "config",
        "cli.node.common": "node",
        "cli.node.run": "config node",
        "cli.node.status": "config node routing.apply",
        "cli.node.check": "config node",
        "cli.node.stop": "config node",
        # The doctor looks at the host through these two alone; its checks take what they have read.
        "cli.doctor.context": "config node routing.apply",
        # Counters and logged packets of this host's table.
        "cli.policy.host": "config dataplane node.leftovers node.lock",
        "cli.policy.following": "dataplane",
        "cli.doctor.probes": "config node.ready node.leftovers dataplane",
    }.items()
}

# Foreign package -> the only ones of ours that may know it.
CLIENTS: dict[str, frozenset[str]] = {
    "grpc": frozenset({"datastore"}),
    "etcd3": frozenset({"datastore"}),
    "pyroute2": frozenset({"dataplane.netlink"}),
    "flask": frozenset({"driver"}),
    "werkzeug": frozenset({"driver"}),
    "gunicorn": frozenset({"driver"}),
    "docker": frozenset({"agent.docker_api"}),
    "requests": frozenset({"agent.docker_api"}),
    "jinja2": frozenset({"routing"}),
    "dns": frozenset({"naming.answers"}),
    "click": frozenset({"cli"}),
    "yaml": frozenset({"cli"}),
    "prometheus_client": frozenset({"observe"}),
}

PURE = ("model", "policy", "naming", "errors", "deadline")
IO_MODULES = frozenset({"socket", "subprocess", "threading", "asyncio", "select", "ssl", "http", "requests"})
# A lock guards memory; it starts nothing and reaches nobody.
HARMLESS = frozenset({"threading.Lock"})


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Dotted name below `calico_plugin`, and tree, of every module."""
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("__init__", "__main__"):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Everything that a module imports, dotted, down to the imported name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, scopes: frozenset[str]) -> bool:
    return any(name == scope or name.startswith(scope + ".") for scope in scopes)


MODULES = dict(modules())


@pytest.mark.parametrize("name", MODULES)
def test_imports_of_ours(name: str) -> None:
    """A module imports only what the table allows its package, plus what stands beside a root's name."""
    package = name.partition(".")[0]
    allowed = ALLOWED[package] | EXTRA.get(name, frozenset()) | {package, "__version__"}
    own = [
        found.removeprefix("calico_plugin.") for found in imports(MODULES[name]) if found.startswith("calico_plugin.")
    ]
    assert [found for found in own if not within(found, allowed)] == []


@pytest.mark.parametrize("name", MODULES)
def test_foreign_clients(name: str) -> None:
    """Each foreign client is known in one place only."""
    for found in imports(MODULES[name]):
        top = found.partition(".")[0]
        if top in CLIENTS:
            assert within(name, CLIENTS[top]), f"{name} imports {top}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.partition(".")[0] in PURE])
def test_no_io_in_values(name: str) -> None:
    """Values and decisions touch no socket, process or thread."""
    reached = [found for found in imports(MODULES[name]) if found not in HARMLESS]
    assert [found for found in reached if found.partition(".")[0] in IO_MODULES] == []


def test_every_foreign_import_is_a_dependency() -> None:
    """What is imported stands in setup.cfg (or is Python's own)."""
    known = {"msgspec", "structlog", "netaddr", "rich", "google", *CLIENTS}
    tops = {found.partition(".")[0] for tree in MODULES.values() for found in imports(tree)}
    assert tops - known - {"calico_plugin"} - set(sys.stdlib_module_names) == set()
