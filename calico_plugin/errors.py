"""One tree of errors for driver, agent and CLI; each edge maps it once (driver/app.py, cli/main.py, metrics).

::

    CalicoError
    ├── InvalidInput            what the user gave is wrong: field, value, what would be right
    │   └── Unsupported         understood, but not offered here (names the option and the known ones)
    ├── NotFound                the named object does not exist
    ├── AlreadyExists           the named object exists already (carries what is stored)
    ├── Conflict                changed by another meanwhile, or claimed by another node (carries what is stored)
    ├── PoolExhausted           no free address (block limit, strict affinity, pool full)
    ├── PortTaken               a port of the host is not free (names address, port, protocol and who has it)
    ├── DatastoreError          etcd: the text always has the word "etcd"
    │   ├── DatastoreUnavailable    no endpoint answered in time
    │   ├── DatastoreUnauthorized   user, password or certificate refused
    │   ├── Compacted               the revision asked for is gone: list again
    │   └── CorruptValue            a stored value does not parse (names the key)
    ├── DataplaneError          the kernel refused: carries errno where there is one
    ├── RoutingError            BIRD refused a configuration or does not answer
    ├── DockerError             Docker's API does not answer or refuses
    └── DeadlineExceeded        the time for the whole operation is over (says what was waited for)

A message is one line, starts with what failed, and tells the user what to do where that is known.
"""

from __future__ import annotations

from typing import Any


class CalicoError(Exception):
    """Root of all errors that a user may see; `str(error)` is the user's text."""


class InvalidInput(CalicoError):
    """Bad input. `field` is the exact path (``spec.cidr``), `value` what was given, `hint` what would be right."""

    def __init__(self, field: str, value: Any = None, hint: str = "") -> None:
        self.field, self.value, self.hint = field, value, hint
        shown = f" = {value!r}" if value is not None else ""
        super().__init__(f"{field}{shown}: {hint}" if hint else f"{field}{shown} is not valid")


class Unsupported(InvalidInput):
    """An option or kind that exists elsewhere but not here; `hint` lists the known ones."""


class NotFound(CalicoError):
    """`what` names the object, e.g. ``IPPool(web-net)``."""

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = what
        super().__init__(f"resource does not exist: {what}" + (f"; {hint}" if hint else ""))


class AlreadyExists(CalicoError):
    """`what` names the object; `current` is what is stored, when known."""

    def __init__(self, what: str, current: Any = None, hint: str = "") -> None:
        self.what, self.current = what, current
        super().__init__(f"resource already exists: {what}" + (f"; {hint}" if hint else ""))


class Conflict(CalicoError):
    """A compare-and-swap that lost; `current` is what is stored now, when known."""

    def __init__(self, what: str, current: Any = None, hint: str = "") -> None:
        self.what, self.current = what, current
        super().__init__(f"update conflict: {what}" + (f"; {hint}" if hint else ""))


class PoolExhausted(CalicoError):
    """No address can be given; the text says why and which pools were tried."""


class PortTaken(CalicoError):
    """`door` is what was asked for, e.g. ``0.0.0.0:8080/tcp``; `holder` who has it, where that is known."""

    def __init__(self, door: str, holder: str) -> None:
        self.door = door
        super().__init__(f"port {door} of this host is taken: {holder}")


class DatastoreError(CalicoError):
    """Anything that etcd did not do for us."""


class DatastoreUnavailable(DatastoreError):
    """No etcd endpoint answered; the text names the endpoints and where their setting came from.

    `maybe_applied`: a write was sent and its answer lost, so it is not known whether the change was stored.
    """

    maybe_applied: bool = False


class DatastoreUnauthorized(DatastoreError):
    """etcd refused the user, the password or the certificate."""


class Compacted(DatastoreError):
    """The revision asked for has been compacted away (etcd v3 API, OutOfRange)."""


class CorruptValue(DatastoreError):
    """A stored value does not parse."""

    def __init__(self, key: str, why: str) -> None:
        self.key, self.why = key, why
        super().__init__(f"etcd key {key} holds a value that does not parse: {why}")


class DataplaneError(CalicoError):
    """The kernel refused; `errno` as the kernel gave it, else 0."""

    def __init__(self, message: str, errno: int = 0) -> None:
        self.errno = errno
        super().__init__(message)


class RoutingError(CalicoError):
    """BIRD refused a configuration or its control socket does not answer."""


class DockerError(CalicoError):
    """Docker's API does not answer or refuses."""


class DockerBusy(DockerError):
    """Docker does not remove what is in use."""


class DockerTaken(DockerError):
    """Docker has something of that name."""


class DeadlineExceeded(CalicoError):
    """The whole operation's time is over."""
