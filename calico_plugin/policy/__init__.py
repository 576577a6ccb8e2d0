"""The policy engine: Calico's resources -> what this node's packet filter should be. No I/O, no clock, no threads.

Use::

    engine = PolicyEngine(node_name, PolicyOptions())
    engine.on_update(key, old, new)    # every resource of every kind, in any order; None = absent; nothing is written
    engine.on_interfaces(addresses)    # only matters to host endpoints
    ruleset = engine.compile()         # frozen; unchanged objects are the same instances as last time
    table.apply(ruleset)               # dataplane.nftables: writes the difference, one transaction
    engine.problems()                  # key -> why: what could not be understood (it never opens anything)
    engine.interfaces()                # interface -> key of the endpoint whose policy the last compile() holds

`on_update(key, _, None)` forgets a resource; `new` may be a `codec.Invalid` for a stored value that does not parse.
The ruleset depends on the current resources only, never on the order in which they came:
`compile_snapshot(snapshot, node_name)` gives the same from scratch. `explain` walks a compiled ruleset for one packet.
"""

from calico_plugin.policy.compile import compile_snapshot
from calico_plugin.policy.engine import PolicyEngine
from calico_plugin.policy.options import PolicyOptions

__all__ = ["PolicyEngine", "PolicyOptions", "compile_snapshot"]
