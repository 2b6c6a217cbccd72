"""JSON log lines on standard error, for our own loggers and for those of libraries."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import orjson
import structlog

# What can appear in the text of a library's message. Ours never log one: the test with canaries holds that.
_SECRET = re.compile(
    r"bbat_live_[0-9A-Za-z]{10,}|whsec_[0-9A-Za-z+/=]{10,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
    r"|(?i:(?<=bearer )\S+)"
)


def redact(text: str) -> str:
    """Replace whatever has the form of one of our secrets, or of a password inside a URL."""
    return _SECRET.sub("***", text)


def configure_logging(level: str) -> None:
    """Send every log line of this process, ours and the libraries', to standard error as one JSON object."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        _redact_values,
    ]
    # Ours are written directly: one for every request, at a fifth of what the standard library's way costs.
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_dumps)],
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *shared,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


def _dumps(line: object, **_kwargs: Any) -> bytes:
    return orjson.dumps(line, default=str)


def _redact_values(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in line.items():
        if isinstance(value, str):
            line[key] = redact(value)
    return line
