"""Which proxy stands between the gateway and an origin, and how a tunnel through it is asked for.

`Proxies` reads the conventional variables from a mapping it is given. `Tunnel` makes and reads the bytes of a
CONNECT (RFC 9110, section 9.3.6); the socket is `dial`'s.

Rules:
- `https_proxy` is for https origins, `http_proxy` for http, each also in capitals; the small ones win.
- `no_proxy` is a list of names, addresses and networks, each with an optional port; a name stands for itself and all
  below it, with or without a leading dot; `*` is everything.
- The machine itself (localhost, 127.0.0.0/8, ::1) is never reached through a proxy: a local model server must not
  vanish because a company's proxy is set.
- Only `http://` proxies. Anything else is refused at start, as silence would send requests around the proxy.
- A proxy's credentials are in its URL, and are written nowhere but into the request to it.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from gateway.api import Origin
from gateway.errors import ConfigError, UpstreamUnreachable

#: A proxy's answer to CONNECT is read up to here.
ANSWER_BYTES_MAX: Final = 64 * 1024

_WITHOUT: Final = "unset it, or set `upstream.proxy_from_environment = false`, to go without a proxy"
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Proxy(msgspec.Struct, frozen=True):
    """Where a proxy listens. `authorization` is the value of its `proxy-authorization` header, or empty."""

    host: str
    port: int
    authorization: bytes = b""

    def __repr__(self) -> str:
        return f"<Proxy {self.host}:{self.port}{' with credentials' if self.authorization else ''}>"


class Exemption(msgspec.Struct, frozen=True):
    """One entry of `no_proxy`: a name or a network, on any port or one."""

    name: str
    network: Network | None
    port: int | None

    def covers(self, host: str, address: Address | None, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return address is not None and address.version == self.network.version and address in self.network
        return self.name in ("*", host) or host.endswith("." + self.name)


class Proxies:
    """The proxies of one environment."""

    __slots__ = ("_by_scheme", "_exemptions")

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read HTTPS_PROXY, HTTP_PROXY and NO_PROXY.

        Raises:
            ConfigError: a variable holds something that can't be used; names the variable, not its value.
        """
        self._by_scheme: dict[str, Proxy] = {}
        for scheme in ("http", "https"):
            name, value = _variable(environment, f"{scheme}_proxy")
            if value:
                self._by_scheme[scheme] = _parse_proxy(name, value)
        _, listed = _variable(environment, "no_proxy")
        self._exemptions = tuple(_parse_exemption(entry) for entry in re.split(r"[,\s]+", listed) if entry)

    def choose(self, origin: Origin) -> Proxy | None:
        """The proxy for this origin, or None for the direct way."""
        proxy = self._by_scheme.get(origin.scheme)
        if proxy is None:
            return None
        host = origin.host.lower().rstrip(".")
        address = _address(host)
        if host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback):
            return None
        if any(exemption.covers(host, address, origin.port) for exemption in self._exemptions):
            return None
        return proxy


class Tunnel:
    """The CONNECT exchange with a proxy, as bytes."""

    __slots__ = ("_answer", "request")

    def __init__(self, proxy: Proxy, origin: Origin) -> None:
        authority = bracketed(origin.host).encode("ascii") + b":%d" % origin.port
        credentials = b"proxy-authorization: " + proxy.authorization + b"\r\n" if proxy.authorization else b""
        #: What the proxy is sent.
        self.request = b"CONNECT " + authority + b" HTTP/1.1\r\nhost: " + authority + b"\r\n" + credentials + b"\r\n"
        self._answer = bytearray()

    def feed(self, data: bytes) -> bool:
        """Take bytes from the proxy; True when the tunnel is open.

        Raises:
            UpstreamUnreachable: the proxy refuses, hangs up (empty `data`), or doesn't speak HTTP.
        """
        answer = self._answer
        answer += data
        end = answer.find(b"\r\n\r\n")
        if end < 0:
            if not data:
                raise UpstreamUnreachable(detail="proxy: closed the connection")
            if len(answer) > ANSWER_BYTES_MAX:
                raise UpstreamUnreachable(detail="proxy: an answer without end")
            return False
        status = _STATUS.match(answer)
        if status is None:
            raise UpstreamUnreachable(detail="proxy: not an HTTP answer")
        if not 200 <= int(status[1]) < 300:
            raise UpstreamUnreachable(detail=f"proxy: refused with {int(status[1])}")
        if len(answer) > end + 4:
            # TLS has the client speak first; whoever speaks here is not the origin.
            raise UpstreamUnreachable(detail="proxy: bytes before the tunnel was used")
        return True


def bracketed(host: str) -> str:
    """`host` as it stands in a URL: IDNA for a name, brackets around an IPv6 literal."""
    if ":" in host:
        return f"[{host}]"
    return host if host.isascii() else host.encode("idna").decode("ascii")


def _variable(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    for spelling in (name, name.upper()):
        value = environment.get(spelling, "").strip()
        if value:
            return spelling, value
    return name, ""


def _parse_proxy(name: str, value: str) -> Proxy:
    try:
        url = urlsplit(value if "://" in value else "http://" + value)
        host, port = url.hostname, url.port
    except ValueError:
        raise ConfigError(f"{name} is not a URL; {_WITHOUT}") from None
    if url.scheme != "http" or not host:
        raise ConfigError(f"{name}: only http:// proxies are supported; {_WITHOUT}")
    authorization = b""
    if url.username is not None:
        pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
        authorization = b"Basic " + b64encode(pair.encode())
    return Proxy(host, port if port is not None else 80, authorization)


def _parse_exemption(entry: str) -> Exemption:
    entry = entry.lower()
    try:
        return Exemption(entry, ip_network(entry.strip("[]"), strict=False), None)
    except ValueError:
        pass
    host, colon, tail = entry.rpartition(":")
    port = int(tail) if colon and tail.isdecimal() else None
    name = host if port is not None else entry
    try:
        network = ip_network(name.strip("[]"), strict=False)
    except ValueError:
        network = None
    return Exemption(name.lstrip(".").rstrip(".") if name != "*" else name, network, port)


def _address(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
