"""libnftables in this process, through ctypes: reads our table back, and says in words why the kernel refuses a chain.

What we write goes straight over netlink (`nfwire`), which does not need the rest of the table to be read first.
The netlink socket is opened when a `Session` is made and stays in the network namespace of the thread that made it.
Not thread-safe: one session, one thread at a time.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any, Protocol

from calico_plugin.errors import DataplaneError

_JSON, _NUMERIC_PROTO, _NUMERIC_PRIO, _NUMERIC_SYMBOL, _STATELESS = 1 << 4, 1 << 7, 1 << 8, 1 << 9, 1 << 2
_LARGE = 1 << 18
_READ_FLAGS = _JSON | _NUMERIC_PROTO | _NUMERIC_PRIO | _NUMERIC_SYMBOL


class Runner(Protocol):
    """What runs nft commands: `Session`, or a recorder in tests."""

    def run(self, commands: str) -> str:
        """Output. Raises DataplaneError; then nothing of the commands was done."""

    def check(self, commands: str) -> None:
        """Raise DataplaneError when the kernel would refuse; nothing is done either way."""

    def close(self) -> None:
        """Release what is held."""


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise DataplaneError(f"libnftables.so.1 is missing ({error}): install package libnftables1") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
    for name in ("output", "error"):
        getattr(library, f"nft_ctx_buffer_{name}").argtypes = [ctypes.c_void_p]
        getter = getattr(library, f"nft_ctx_get_{name}_buffer")
        getter.restype, getter.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    return library


class Session:
    """A resident libnftables context."""

    def __init__(self) -> None:
        self._library = _load()
        self._context: Any = self._library.nft_ctx_new(0)
        if not self._context:
            raise DataplaneError("libnftables gave no context: is the program allowed to open netlink sockets?")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_output_set_flags(self._context, _READ_FLAGS)

    def run(self, commands: str) -> str:
        if not self._context:
            raise DataplaneError("nftables: the session is closed")
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        # Both buffers must be read each time: reading empties them.
        error = (self._library.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace")
        output = (self._library.nft_ctx_get_output_buffer(self._context) or b"").decode(errors="replace")
        if max(len(commands), len(output)) > _LARGE:
            self._give_back()
        if failed:
            raise DataplaneError(f"nftables: {_first_line(error)}")
        return output

    def _give_back(self) -> None:
        """The library frees what a large command took, the allocator keeps it (100 MB with 200,000 members)."""
        trim = getattr(self._library, "malloc_trim", None)
        if trim is not None:
            trim(0)

    def check(self, commands: str) -> None:
        if self._context:
            self._library.nft_ctx_set_dry_run(self._context, True)
        try:
            self.run(commands)
        finally:
            if self._context:
                self._library.nft_ctx_set_dry_run(self._context, False)

    def close(self) -> None:
        context, self._context = self._context, None
        if context:
            self._library.nft_ctx_free(context)


def _first_line(text: str) -> str:
    """The message and the command that it is about."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not set(line.strip()) <= set("^~ ")]
    return ": ".join(lines[:2]).removeprefix("Error: ") or "refused without a reason"
