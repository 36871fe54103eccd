"""A line of JSON for each request, in a file or to a webhook: what the books have, and if asked what callers sent.

Rules:
- Lines wait in memory, `queue_max` of them; what comes on top is dropped and counted in the log. Those of one batch
  that can't be delivered after all tries are dropped too: this is a log, the books are the truth.
- Bodies are logged only where `bodies = true`. They are as providers get to see them: what `redact` takes out is not
  in them. Answers are never logged.
- A line has no key: who asked is the account's number and the key's public id.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import urlsplit

import msgspec

from gateway.api import ConfigError, Plugin, Request, Settled, Usage
from gateway_plugins.sinks import FileSink, Sink, SinkFailed, WebhookSink, is_public

log = logging.getLogger(__name__)

NOTE: Final = "request_log.body"
#: How long the last lines may take when the gateway stops.
CLOSE_S: Final = 3.0
SECRET_BYTES_MIN: Final = 24


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line. Fields are as in `gateway.api.Settled`; the empty ones are left out."""

    #: Seconds since 1970.
    time: float
    id: str
    method: str
    route: str
    status: int
    error_type: str = ""
    aborted_by: str = ""
    account_id: int = 0
    key_id: str = ""
    operation: str = ""
    dialect: str = ""
    model: str = ""
    upstream_model: str = ""
    provider: str = ""
    attempts: tuple[tuple[str, str], ...] = ()
    stream: bool = False
    duration_s: float = 0.0
    first_byte_s: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    #: The counts that are not zero.
    usage: Mapping[str, object] = {}
    cost_nanos: int = 0
    client: str = ""
    tags: Mapping[str, str] = {}
    body: str = ""
    body_cut: bool = False


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    file: str = ""
    url: str = ""
    secret: str = ""
    allow_private: bool = False
    bodies: bool = False
    body_bytes_max: int = 16 * 1024
    batch: int = 100
    flush_s: float = 1.0
    queue_max: int = 10_000


class RequestLog:
    """The plugin."""

    ID: ClassVar[str] = "request_log"
    API: ClassVar[int] = 1

    def __init__(self) -> None:
        self.reads_body = False
        self.dropped = 0
        self._sink: Sink | None = None
        self._task: asyncio.Task[None] | None = None
        self._full = asyncio.Event()

    def configure(self, table: Mapping[str, object]) -> None:
        if unknown := table.keys() - {*_Table.__struct_fields__}:
            raise ConfigError(f"is not a key of {self.ID}", param=min(unknown))
        try:
            settings = msgspec.convert(dict(table), _Table, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(str(error)) from None
        for name in ("body_bytes_max", "batch", "flush_s", "queue_max"):
            if getattr(settings, name) <= 0:
                raise ConfigError("must be more than 0", param=name)
        if bool(settings.file) is bool(settings.url):
            raise ConfigError("needs either `file` or `url`")
        if settings.url:
            _check_webhook(settings)
        self._settings = settings
        self.reads_body = settings.bodies
        self._lines: deque[bytes] = deque()

    async def start(self) -> None:
        settings = self._settings
        if settings.file:
            self._sink = FileSink(Path(settings.file))
        else:
            self._sink = WebhookSink(
                settings.url, secret=settings.secret.encode(), allow_private=settings.allow_private
            )
        self._task = asyncio.get_running_loop().create_task(self._flush_forever(self._sink), name="request log")

    async def stop(self) -> None:
        """Write what is left, as far as that goes in time."""
        task, sink = self._task, self._sink
        if task is None or sink is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_S):
                while self._lines:
                    await self._flush(sink)
        except TimeoutError:
            log.warning("request log: %d lines were not delivered before the end", len(self._lines))
        await sink.close()

    async def on_request(self, x: Request) -> bytes | None:
        if self._settings.bodies and x.has_body:
            # No more than is logged: it waits until the request has ended, and then in a queue.
            most = self._settings.body_bytes_max
            x.notes[NOTE] = (x.body[:most], len(x.body) > most)
        return None

    async def on_settled(self, record: Settled) -> None:
        if len(self._lines) >= self._settings.queue_max:
            self.dropped += 1
            if self.dropped == 1 or self.dropped % 1000 == 0:
                log.warning("request log: the sink is too slow, %d lines were dropped", self.dropped)
            return
        self._lines.append(self._line(record))
        if len(self._lines) >= self._settings.batch:
            self._full.set()

    def _line(self, record: Settled) -> bytes:
        match record.notes.get(NOTE):
            case (bytes() as body, bool() as cut):
                pass
            case _:
                body, cut = b"", False
        entry = Entry(
            time=round(record.started_at, 3),
            id=record.id,
            method=record.method,
            route=record.route,
            status=record.status,
            error_type=record.error_type,
            aborted_by=record.aborted_by,
            account_id=record.account_id,
            key_id=record.key_id,
            operation=record.operation,
            dialect=record.dialect,
            model=record.model,
            upstream_model=record.upstream_model,
            provider=record.provider,
            attempts=record.attempts,
            stream=record.stream,
            duration_s=record.duration_s,
            first_byte_s=record.first_byte_s,
            bytes_in=record.bytes_in,
            bytes_out=record.bytes_out,
            usage={} if record.usage is None else _counts(record.usage),
            cost_nanos=record.cost_nanos,
            client=record.client,
            tags=record.tags,
            body=body.decode("utf-8", "replace"),
            body_cut=cut,
        )
        return msgspec.json.encode(entry) + b"\n"

    async def _flush_forever(self, sink: Sink) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.flush_s):
                    await self._full.wait()
            except TimeoutError:
                pass
            self._full.clear()
            while self._lines:
                await self._flush(sink)

    async def _flush(self, sink: Sink) -> None:
        """One batch. Its lines stay where they are until the sink has them, or has given up on them."""
        lines = [line for line, _ in zip(self._lines, range(self._settings.batch), strict=False)]
        try:
            await sink.write(b"".join(lines))
        except SinkFailed as error:
            log.error("request log: %d lines are lost: %s", len(lines), error)  # noqa: TRY400  the text says it all
        for _ in lines:
            self._lines.popleft()


def _counts(usage: Usage) -> dict[str, object]:
    given = {name: getattr(usage, name) for name in Usage.__struct_fields__}
    return {name: value for name, value in given.items() if value or name == "source"}


def _check_webhook(settings: _Table) -> None:
    url = urlsplit(settings.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError("must begin with https:// and name a host", param="url")
    if url.username is not None or url.fragment:
        raise ConfigError("must carry no credentials and no fragment", param="url")
    if url.scheme == "http" and not settings.allow_private:
        raise ConfigError("must begin with https://, but where `allow_private = true`", param="url")
    is_literal = not url.hostname.strip("0123456789.") or ":" in url.hostname
    if is_literal and not settings.allow_private and not is_public(url.hostname):
        raise ConfigError("leads inside; `allow_private = true` lets it", param="url")
    if len(settings.secret.encode()) < SECRET_BYTES_MIN:
        raise ConfigError(f"needs at least {SECRET_BYTES_MIN} bytes, to sign with", param="secret")


_: type[Plugin] = RequestLog
