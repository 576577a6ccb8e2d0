"""Log set-up of all programs: one line an event, key=value or JSON, on standard error.

Parts take a logger with `structlog.get_logger(part="…")` (free at import, it is lazy) and bind what they are about.
What can only come from a mistake of ours goes through `bug`, whose marker the tests look for in every log.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

from calico_plugin.errors import InvalidInput

BUG_MARKER = "CALICO-BUG"
LEVELS = {"debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40, "fatal": 50, "none": 100}
_STDLIB_FORMAT = "timestamp=%(asctime)s level=%(levelname)s logger=%(name)s event=%(message)r"


def setup(program: str, level: str = "info", *, json: bool = False, stream: TextIO | None = None) -> None:
    """Call once per process. `level` in any case. Raises InvalidInput.

    Lines of libraries, which use `logging`, come out at warning and above (at `level` when that is debug).
    """
    number = LEVELS.get(level.lower())
    if number is None:
        raise InvalidInput("CALICO_LOG_LEVEL", level, f"one of {', '.join(LEVELS)}")
    out = stream or sys.stderr
    structlog.configure(
        processors=_processors(program, json),
        # structlog knows no level above "critical", which nothing of ours uses.
        wrapper_class=structlog.make_filtering_bound_logger(min(number, logging.CRITICAL)),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    library_level = number if number <= LEVELS["debug"] else max(number, LEVELS["warning"])
    logging.basicConfig(stream=out, level=library_level, format=_STDLIB_FORMAT, force=True)


def bug(logger: Any, event: str, **fields: Any) -> None:
    """Log what cannot happen, with the exception being handled if there is one."""
    logger.error(event, bug=BUG_MARKER, exc_info=sys.exc_info()[0] is not None, **fields)


def _processors(program: str, json: bool) -> list[Any]:
    def name_program(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        # Not a context variable: those of the main thread are not seen by others.
        event["program"] = program
        return event

    order = ["timestamp", "level", "program", "event"]
    last: Any = structlog.processors.LogfmtRenderer(key_order=order, drop_missing=True, bool_as_flag=False)
    if json:
        last = structlog.processors.JSONRenderer(default=str)
    return [
        name_program,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.UnicodeDecoder(),
        last,
    ]
