"""What a key may be used for: from where, by whom, and for which models and providers. Decided from the key's
snapshot alone; the database and Redis are not asked.

Rules:
- What is not narrowed is not looked at: a key without constraints has none of these objects.
- Addresses are those of the socket's other end, or what a trusted proxy says (`wire/client_address.py`).
- The referrer is the host in `referer`, or else in `origin`. A browser tells it truly; any other program may claim
  what it likes, so this keeps honest pages apart and is no secret.
- Scopes are `{verb: [resource, ...]}`; all of `/v1` is the resource `inference`, which a GET reads and all else
  writes.
- Models are meant by the names that callers use. `name*` is every model whose name begins so.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from gateway.errors import Forbidden
from gateway.wire.client_address import Address, Network, find_client, is_within, parse_networks

#: What the scopes of a key call the data plane.
INFERENCE: Final = "inference"
#: In a scope: every resource.
EVERY: Final = "*"
_READING: Final = frozenset({"GET", "HEAD"})
_HOST: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")

Scopes = Mapping[str, Sequence[str]]


class Names(msgspec.Struct, frozen=True):
    """Names, and beginnings of names."""

    exact: frozenset[str]
    prefixes: tuple[str, ...] = ()

    def have(self, name: str) -> bool:
        return name in self.exact or (bool(self.prefixes) and name.startswith(self.prefixes))


class Referrers(msgspec.Struct, frozen=True):
    """Hosts; of `*.example.com` the ends that names must have."""

    exact: frozenset[str]
    ends: tuple[str, ...] = ()

    def have(self, host: str) -> bool:
        return host in self.exact or (bool(self.ends) and host.endswith(self.ends))


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """Of one key. None is not narrowed."""

    networks: tuple[Network, ...] = ()
    #: Proxies that are believed about addresses.
    trusted: tuple[Network, ...] = ()
    referrers: Referrers | None = None
    models: Names | None = None
    providers: frozenset[str] | None = None
    reads: bool = True
    writes: bool = True

    def check_request(self, scope: Mapping[str, Any]) -> None:  # Any: ASGI's own shape
        """Whether this request may be made with the key, as far as its head says.

        Raises:
            Forbidden: with a code that says why.
        """
        reading = scope["type"] == "http" and scope["method"] in _READING
        if not (self.reads if reading else self.writes):
            raise Forbidden("The scopes of this key do not include that.", code="scope_not_permitted")
        if self.networks or self.referrers is not None:
            self.check_caller(address_of(scope, self.trusted), referrer_of(scope["headers"]))

    def check_caller(self, address: Address | None, referrer: str | None) -> None:
        """Whether the key may be used from there.

        Raises:
            Forbidden
        """
        if self.networks and not is_within(address, self.networks):
            raise Forbidden("This key may not be used from your address.", code="ip_not_allowed")
        if self.referrers is not None and (referrer is None or not self.referrers.have(referrer)):
            raise Forbidden("This key may not be used from that page.", code="referrer_not_allowed")

    def allows_model(self, name: str) -> bool:
        return self.models is None or self.models.have(name)

    def allows_provider(self, name: str) -> bool:
        return self.providers is None or name in self.providers


def make_constraints(
    *,
    scopes: Scopes,
    networks: Sequence[str],
    referrers: Sequence[str],
    models: Sequence[str],
    providers: Sequence[str],
    trusted: tuple[Network, ...] = (),
) -> Constraints | None:
    """What these lists mean together; None where they narrow nothing, that is where all are empty.

    Raises:
        ValueError: a network is none.
    """
    reads, writes = is_permitted(scopes, "read"), is_permitted(scopes, "write")
    if reads and writes and not (networks or referrers or models or providers):
        return None
    return Constraints(
        networks=parse_networks(networks),
        trusted=trusted,
        referrers=_referrers(referrers) if referrers else None,
        models=_names(models) if models else None,
        providers=frozenset(providers) if providers else None,
        reads=reads,
        writes=writes,
    )


def is_permitted(scopes: Scopes, verb: str, resource: str = INFERENCE) -> bool:
    """Whether a key of these scopes may; without any it may everything."""
    return not scopes or not {EVERY, resource}.isdisjoint(scopes.get(verb, ()))


def clean_referrer(text: str) -> str:
    """A host, or `*.` before one, from what people write: an origin, a host with a port, in any case.

    Raises:
        ValueError: there is no host in it.
    """
    text = text.strip().lower()
    if "//" in text:
        text = text.partition("//")[2]
    text = text.partition("/")[0]
    wild, host = (text[:2], text[2:]) if text.startswith("*.") else ("", text)
    if not host.startswith("["):
        host = host.partition(":")[0]
    if _HOST.fullmatch(host) is None:
        raise ValueError(f"{text!r} is no host name")
    return wild + host


def referrer_of(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The host of the page that a request comes from, if it says."""
    found = b""
    for name, value in headers:
        if name == b"referer":
            found = value
            break
        if name == b"origin":
            found = value
    try:
        return urlsplit(found.decode("latin-1")).hostname
    except ValueError:
        return None


def address_of(scope: Mapping[str, Any], trusted: Sequence[Network]) -> Address | None:  # Any: ASGI's own shape
    """The caller's address, as far as proxies are to be believed."""
    peer = scope.get("client")
    forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"] if trusted else []
    return find_client(peer[0] if peer else None, forwarded, trusted)


def _names(texts: Sequence[str]) -> Names:
    return Names(
        frozenset(text for text in texts if not text.endswith("*")),
        tuple(text[:-1] for text in texts if text.endswith("*")),
    )


def _referrers(texts: Sequence[str]) -> Referrers:
    return Referrers(
        frozenset(text for text in texts if not text.startswith("*.")),
        tuple(text[1:] for text in texts if text.startswith("*.")),
    )
