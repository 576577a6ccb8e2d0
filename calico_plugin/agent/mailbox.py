"""What the other threads tell the owner thread: a queue that a selector can wait for."""

from __future__ import annotations

import os
from collections import deque
from typing import Any


class Mailbox:
    """`put` from any thread, `take` from the owner. `fileno` is readable while something waits."""

    def __init__(self) -> None:
        self._messages: deque[Any] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._event

    def put(self, message: Any) -> None:
        self._messages.append(message)
        os.eventfd_write(self._event, 1)

    def take(self) -> list[Any]:
        """All messages that wait, oldest first."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            pass
        # Read after the event was reset: what is put in between wakes the owner once more, for nothing at worst.
        taken = []
        while self._messages:
            taken.append(self._messages.popleft())
        return taken

    def close(self) -> None:
        os.close(self._event)
