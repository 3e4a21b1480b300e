"""Log lines as JSON, one object a line on stdout, for BentoML, uvicorn and this service."""

import json
import logging
from datetime import UTC, datetime

FIELDS = "fields"
"""The attribute of a record, set by `extra`, whose items become fields of the object."""


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time (UTC), level, logger, message, the record's own fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line: JSON escapes a newline in a message, so a caller cannot forge a second record."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def write_json() -> None:
    """Make every handler of this process write JSON; Python's warnings are logged too."""
    logging.captureWarnings(capture=True)
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        handler.setFormatter(JsonFormatter())
