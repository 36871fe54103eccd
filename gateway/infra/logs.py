"""Logs: what the program says to its operators, and one line for each request.

Two streams, both JSON lines:
- **Diagnostics** go through `logging` to standard error (as plain lines where that is a terminal). They are written
  at once and in the caller's turn, so that the last words of a process that dies are there to read.
- **The access log** goes to standard output or a file, through a buffer and a thread of its own. A pipe whose reader
  has stopped must not stop the gateway, and no flag can promise that: O_NONBLOCK belongs to the open file, so setting
  it on standard output changes it for the shell and for every other worker, and a regular file ignores it. A thread
  may block. What it can't get rid of in time is dropped and counted, never queued without end.

Rules:
- Whatever looks like a key, a bearer token or a password in a URL is struck out of every diagnostic line, wherever in
  it it stands. It is a net under the rule that nobody logs one, not a licence.
- Writes of the access log end at line ends, and on a pipe are at most `PIPE_BUF` long, which the kernel does not
  interleave with those of other workers.
- Nothing here ever raises because of what it was given to log.
"""

import asyncio
import logging
import os
import queue
import re
import select
import stat
import sys
import threading
from datetime import UTC, datetime
from typing import TextIO

import msgspec

#: Lines that are written together, and how long the first of them may wait for the others.
LINES_MAX = 64
FLUSH_S = 0.1
#: Encoded lines that wait for the writer thread; what comes on top is dropped.
BACKLOG_BYTES_MAX = 4 * 1024 * 1024
#: How long `close` waits for a reader that does not read.
CLOSE_S = 2.0

Level = str | int

_KEYS = re.compile(
    r"""
    (\bgw_(?:live|test|staging|dev)_)[A-Za-z0-9_\-]+      # gateway keys
    | (\bgws_)[A-Za-z0-9_\-]{20,}                        # sessions
    | (\bsk-)[A-Za-z0-9_\-]{6,}                           # the way most providers' keys begin
    | (\bAIza)[A-Za-z0-9_\-]{20,}                         # Google's
    | ((?i:\b(?:bearer|basic)\s+))[A-Za-z0-9._~+/=\-]{6,} # authorization headers
    | (\b[a-z][a-z0-9+.\-]{0,20}://[^\s:/@"]*:)[^\s/@"]+(?=@)  # passwords in URLs
    """,
    re.VERBOSE,
)
#: What every LogRecord has of its own; the rest came in by `extra=`.
_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}
#: Loggers that speak at a level nobody asked for: the servers' start-up chatter, request lines with query strings.
_TAMED = {
    "asyncio": logging.WARNING,
    "httpcore2": logging.WARNING,
    "httpx2": logging.WARNING,
    "uvicorn": logging.WARNING,
    "uvicorn.error": logging.WARNING,
    "websockets": logging.WARNING,
}
# Our access log is the one of the two that knows the route, the key and the tokens.
_SILENCED = ("uvicorn.access",)


def redact(text: str) -> str:
    """`text` with everything that looks like a secret replaced by `***`, its telling first part kept."""
    return _KEYS.sub(_strike_out, text)


def configure(*, level: Level, stream: TextIO | None = None) -> None:
    """Send all of `logging` to `stream` (standard error), from `level` up. May be called again after a reload."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter() if stream.isatty() else JsonFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, JsonFormatter | PlainFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper() if isinstance(level, str) else level)
    for name, least in _TAMED.items():
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(max(least, root.level))
    for name in _SILENCED:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = False
        logger.disabled = True
    logging.captureWarnings(capture=True)


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, logger, message, the fields given by `extra`, and an exception as one field."""

    def __init__(self) -> None:
        super().__init__()
        self._encoder = msgspec.json.Encoder(enc_hook=repr)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        line.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            text = self._encoder.encode(line)
        except (TypeError, ValueError, OverflowError, RecursionError):
            # A field that JSON can't hold (a key that is no text, a lone surrogate) must not cost the message.
            text = self._encoder.encode({name: _printable(value) for name, value in line.items()})
        return redact(text.decode())


class PlainFormatter(logging.Formatter):
    """For people at a terminal: `12:34:56 warning  gateway.x  message  field=value`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = timestamp(record.created)[11:19]
        fields = "".join(f"  {name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        text = f"{clock} {record.levelname.lower():<8} {record.name}  {_message(record)}{fields}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if record.stack_info:
            text += "\n" + record.stack_info
        return redact(text)


class Timestamps:
    """RFC 3339 times in UTC with milliseconds; 0.3 us each, because the second is only formatted once."""

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def format(self, now: float) -> str:
        """`now` is Unix time, as `2026-11-22T19:44:07.123Z`."""
        milliseconds = int(now * 1000)
        second, rest = divmod(milliseconds, 1000)
        if second != self._second:
            self._second = second
            self._prefix = f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}."
        return f"{self._prefix}{rest:03d}Z"


def timestamp(now: float) -> str:
    """Unix time as `2026-11-22T19:44:07.123Z`."""
    return Timestamps().format(now)


class AccessLog:
    """One line for each request. `target` is `-` (standard output), a file's path, or empty for none.

    `write` takes a struct that is not changed afterwards: it is encoded when its batch is.
    """

    def __init__(self, target: str, *, flush_s: float = FLUSH_S, backlog_bytes_max: int = BACKLOG_BYTES_MAX) -> None:
        self._flush_s = flush_s
        self._records: list[msgspec.Struct] = []
        self._encode = msgspec.json.Encoder().encode_lines
        self._timer: asyncio.TimerHandle | None = None
        self._unencodable = 0
        self._writer = _Writer(target, backlog_bytes_max) if target else None

    @property
    def dropped(self) -> int:
        """Lines lost since the start: their reader or disk did not keep up, or JSON could not hold them."""
        return self._unencodable + (self._writer.dropped if self._writer is not None else 0)

    def write(self, record: msgspec.Struct) -> None:
        """Log `record`, soon. Called in a running loop; never blocks."""
        if self._writer is None:
            return
        records = self._records
        records.append(record)
        if len(records) >= LINES_MAX:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._flush_s, self._on_timer)

    def flush(self) -> None:
        """Give what was written so far to the writer thread."""
        if self._writer is not None and self._records:
            records, self._records = self._records, []
            try:
                self._writer.put(self._encode(records), len(records))
            except (TypeError, ValueError, OverflowError):
                self._salvage(self._writer, records)

    def reopen(self) -> None:
        """Open the file anew, after it was renamed: for log rotation. Standard output stays as it is."""
        if self._writer is not None:
            self.flush()
            self._writer.reopen()

    def close(self) -> None:
        """Write what is left, waiting at most `CLOSE_S` for a reader that does not read."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writer is not None:
            self.flush()
            self._writer.close(CLOSE_S)

    def _on_timer(self) -> None:
        self._timer = None
        self.flush()

    def _salvage(self, writer: "_Writer", records: list[msgspec.Struct]) -> None:
        """One record that JSON can't hold must not cost the others their lines."""
        for record in records:
            try:
                writer.put(self._encode([record]), 1)
            except (TypeError, ValueError, OverflowError):
                self._unencodable += 1


class _Writer:
    """The thread that may block, and the bounded queue in front of it.

    `None` in the queue ends it, an empty batch reopens the file. Counters are changed by one side each, so no lock.
    """

    def __init__(self, target: str, backlog_bytes_max: int) -> None:
        self._target = target
        self._fd = self._open()
        self._chunk_max = _chunk_bytes_max(self._fd)
        self._backlog_bytes_max = backlog_bytes_max
        self._batches: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()
        self._put_bytes = 0
        self._done_bytes = 0
        self._refused = 0
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        return self._refused + self._lost

    def put(self, batch: bytes, lines: int) -> None:
        if self._put_bytes - self._done_bytes + len(batch) > self._backlog_bytes_max:
            self._refused += lines
            return
        self._put_bytes += len(batch)
        self._batches.put((batch, lines))

    def reopen(self) -> None:
        self._batches.put((b"", 0))

    def close(self, wait_s: float) -> None:
        self._batches.put(None)
        self._thread.join(wait_s)

    def _run(self) -> None:
        while (item := self._batches.get()) is not None:
            batch, lines = item
            try:
                if batch:
                    self._write_all(batch)
                elif self._target != "-":
                    reopened = self._open()
                    os.close(self._fd)
                    self._fd = reopened
            except OSError:
                # A full disk, a closed pipe, a directory that went away: the log suffers, the requests do not.
                self._lost += lines
            self._done_bytes += len(batch)
        if self._target != "-":
            os.close(self._fd)

    def _write_all(self, batch: bytes) -> None:
        start = 0
        while start < len(batch):
            end = len(batch)
            if end - start > self._chunk_max:
                # A line that is longer than a chunk goes out alone, and may be interleaved.
                cut = batch.rfind(b"\n", start, start + self._chunk_max) + 1
                end = cut or batch.index(b"\n", start) + 1
            while start < end:
                start += os.write(self._fd, batch[start:end])

    def _open(self) -> int:
        if self._target == "-":
            return sys.stdout.fileno()
        return os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


def _chunk_bytes_max(fd: int) -> int:
    return sys.maxsize if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF


def _strike_out(match: re.Match[str]) -> str:
    return f"{next(group for group in match.groups() if group is not None)}***"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return f"{record.msg!r} % {record.args!r}"


def _printable(value: object) -> str:
    return str(value).encode(errors="backslashreplace").decode()
