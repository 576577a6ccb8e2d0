"""Our nftables table: `render` (pure), `Table.apply` (one transaction with the difference), read-back and audit.

Skeleton; the driver speaks to libnftables in process. Use from one thread::

    table = Table()                      # opens libnftables in the calling thread's network namespace
    table.bootstrap(empty_ruleset)       # only if there is no table yet: everything on cali* is dropped
    report = table.apply(ruleset)        # raises DataplaneError after bounded retries; nothing half done
    drifted = table.audit()              # names of objects that others changed; repaired
"""

from __future__ import annotations

from dataclasses import dataclass

from calico_plugin.model.desired import Ruleset


@dataclass(frozen=True, slots=True)
class Applied:
    """What one `apply` wrote: numbers of objects, and whether it needed a retry. Falsy when nothing had to be written."""

    sets: int = 0
    members: int = 0
    chains: int = 0
    elements: int = 0
    removed: int = 0
    attempts: int = 1

    def __bool__(self) -> bool:
        return bool(self.sets or self.members or self.chains or self.elements or self.removed)


class Table:
    """Owner of `table inet calico`."""

    def bootstrap(self, ruleset: Ruleset) -> bool:
        """Install `ruleset` (an engine's that knows no resource: all `cali*` traffic dropped) unless the table exists."""
        return False

    def apply(self, ruleset: Ruleset) -> Applied:
        """Make the kernel's table equal to `ruleset`."""
        return Applied()

    def audit(self) -> tuple[str, ...]:
        """Compare the kernel with what was applied last, repair, and name what differed."""
        return ()

    def close(self) -> None:
        """Release libnftables; the table stays."""
