"""Where the lines of a request log go: a file, or a webhook. Each takes a batch of lines and either has it or raises.

A file is opened anew where it was moved away, so that log rotation needs no signal (`logrotate` with `create`, or
nothing but `mv`). Several workers append to one file: each batch is one write, which the kernel does not interleave.

A webhook gets JSON lines, signed as Standard Webhooks has it: `webhook-signature` is `v1,` and the base64 of
HMAC-SHA256 over `ID.TIMESTAMP.BODY`, so that who receives it can tell that it is ours and new. Its address is looked
up before each connection and must not lead inside (`allow_private` says it may); the connection goes to the very
address that was looked at. Redirects are not followed, proxies of the environment not used.

https://www.standardwebhooks.com/
"""

import asyncio
import base64
import contextlib
import hmac
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, Protocol

import httpx2

#: Tries at one batch, and the wait before the second: doubled each time, and spread.
TRIES_MAX: Final = 6
BACKOFF_S: Final = 0.5
BACKOFF_MOST_S: Final = 30.0
REQUEST_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 64 * 1024
_FILE_MODE: Final = 0o640
_NAT64: Final = bytes.fromhex("0064ff9b0000000000000000")

Resolve = Callable[[str, int], Awaitable[list[str]]]


class SinkFailed(Exception):
    """The batch is lost; the message says why, without a secret."""


class Sink(Protocol):
    """Takes lines."""

    async def write(self, lines: bytes) -> None:
        """Have these.

        Raises:
            SinkFailed: they are lost.
        """
        ...

    async def close(self) -> None: ...


class FileSink:
    """Appends to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._identity = (0, 0)

    async def write(self, lines: bytes) -> None:
        try:
            await asyncio.to_thread(self._append, lines)
        except OSError as error:
            raise SinkFailed(f"{self._path}: {error.strerror}") from error

    async def close(self) -> None:
        self._shut()

    def _append(self, lines: bytes) -> None:
        try:
            found = self._path.stat()
            moved = (found.st_dev, found.st_ino) != self._identity
        except FileNotFoundError:
            moved = True
        if moved:
            self._shut()
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, _FILE_MODE)
            opened = os.fstat(self._descriptor)
            self._identity = (opened.st_dev, opened.st_ino)
        view = memoryview(lines)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _shut(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._identity = -1, (0, 0)


class WebhookSink:
    """Posts to a URL."""

    def __init__(
        self,
        url: str,
        *,
        secret: bytes,
        allow_private: bool,
        resolve: Resolve | None = None,
        backoff_s: float = BACKOFF_S,
        client: httpx2.AsyncClient | None = None,
    ) -> None:
        self._url = httpx2.URL(url)
        self._secret = secret
        self._allow_private = allow_private
        self._resolve = resolve or _resolve
        self._backoff_s = backoff_s
        self._client = client or httpx2.AsyncClient(timeout=REQUEST_S, trust_env=False, follow_redirects=False)

    async def write(self, lines: bytes) -> None:
        # The same through all tries: by its id the receiver knows what it has had.
        message_id = f"msg_{secrets.token_hex(12)}"
        trouble = ""
        for number in range(TRIES_MAX):
            if number:
                most_s = min(self._backoff_s * 2 ** (number - 1), BACKOFF_MOST_S)
                await asyncio.sleep(most_s * (0.5 + secrets.randbelow(500) / 1000))
            try:
                status = await self._post(message_id, lines)
            except (httpx2.HTTPError, OSError) as error:
                trouble = type(error).__name__
                continue
            if 200 <= status < 300:
                return
            trouble = f"status {status}"
            if status < 500 and status not in (408, 425, 429):
                break
        raise SinkFailed(f"{self._url.host}: {trouble}")

    async def close(self) -> None:
        await self._client.aclose()

    async def _post(self, message_id: str, lines: bytes) -> int:
        url, host = self._url, self._url.host
        address = await self._address(host, url.port or (443 if url.scheme == "https" else 80))
        seconds = str(int(datetime.now(UTC).timestamp()))
        signed = b"%b.%b.%b" % (message_id.encode(), seconds.encode(), lines)
        signature = base64.b64encode(hmac.digest(self._secret, signed, "sha256")).decode()
        request = self._client.build_request(
            "POST",
            url.copy_with(host=address),
            content=lines,
            headers={
                "host": url.netloc.decode(),
                "content-type": "application/x-ndjson",
                "user-agent": "ai-gateway",
                "webhook-id": message_id,
                "webhook-timestamp": seconds,
                "webhook-signature": f"v1,{signature}",
            },
            # The certificate has to be of the name, not of the address.
            extensions={"sni_hostname": host},
        )
        response = await self._client.send(request, stream=True)
        # What it says is of no interest. A short one is read, so that the connection is used again.
        size_bytes = 0
        async for piece in response.aiter_raw():
            size_bytes += len(piece)
            if size_bytes > ANSWER_BYTES_MAX:
                break
        await response.aclose()
        return response.status_code

    async def _address(self, host: str, port: int) -> str:
        """One address of a host, looked at.

        Raises:
            SinkFailed: one of them leads inside.
        """
        addresses = await self._resolve(host, port)
        if not addresses:
            raise OSError("no address")
        if not self._allow_private and not all(is_public(address) for address in addresses):
            raise SinkFailed(f"{host} leads inside; `allow_private = true` lets it")
        return addresses[0]


async def _resolve(host: str, port: int) -> list[str]:
    with contextlib.suppress(ValueError):
        return [str(ip_address(host))]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_public(text: str) -> bool:
    """Whether an address is anybody's: not this machine's, this network's, or one of those that carry another."""
    try:
        address: IPv4Address | IPv6Address | None = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if carried is None and address.packed.startswith(_NAT64):
            carried = IPv4Address(address.packed[12:])
        address = carried or address
    return address is not None and address.is_global and not address.is_multicast
