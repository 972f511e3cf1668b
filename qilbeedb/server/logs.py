"""What the server logs: a line for each event, its figures by name, as text or as JSON."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import msgspec

__all__ = ["FIGURES", "set_up"]

FIGURES = ("request_id", "method", "path", "status", "took_ms", "address", "user")
"""What a record may carry in ``extra``."""


class _Line(logging.Formatter):
    """Time, level, logger, message, figures; control characters are escaped, so that a line stays one."""

    def __init__(self, form: Literal["text", "json"]) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        figures = {name: value for name in FIGURES if (value := getattr(record, name, None)) is not None}
        message = record.getMessage()
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self._form == "json":
            entry = {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": message}
            if trace is not None:
                entry["trace"] = trace
            return msgspec.json.encode({**entry, **figures}).decode()
        named = "".join(f" {name}={_plain(str(value))}" for name, value in figures.items())
        line = f"{moment} {record.levelname.lower()} {record.name}: {_plain(message)}{named}"
        return line if trace is None else f"{line}\n{trace}"


def _plain(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def set_up(level: str, form: Literal["text", "json"]) -> None:
    """Send everything of ours and of uvicorn's from ``level`` on to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(form))
    for name in ("qilbee_core", "qilbeedb", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    # It says what the server says itself, and for each strange request one line.
    logging.getLogger("uvicorn").setLevel("ERROR")
