"""Whose request it is: the peer of the socket, or who a trusted proxy says its own peer was.

`x-forwarded-for` is a list to which each proxy adds the address that it was called from, so it is read from the
right, and as long as the address that wrote an entry is trusted. Whatever stands left of the first stranger is the
stranger's own claim.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Entries that are read: longer lists are made by hand.
HOPS_MAX = 16


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and networks, as `ipaddress` knows them; host bits may be set.

    Raises:
        ValueError: one of them is neither.
    """
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def is_network(text: str) -> bool:
    """Whether `text` is an address or a network."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """An address with or without brackets, port and zone; an IPv4 one in IPv6 clothes is the IPv4 one."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_within(address: Address | None, networks: Sequence[Network]) -> bool:
    """Whether one of `networks` has the address; no address is in none."""
    return address is not None and any(address in network for network in networks)


def find_client(peer: str | None, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> Address | None:
    """The caller's address. `peer` is the socket's other end (None on a unix socket, whose other end is on this
    machine and is trusted where 127.0.0.1 is), `forwarded` the values of `x-forwarded-for` in their order.
    """
    address = parse_address(peer or "127.0.0.1")
    if not trusted or not forwarded:
        return address
    entries = b",".join(forwarded).decode("latin-1").split(",")[-HOPS_MAX:]
    for entry in reversed(entries):
        if not is_within(address, trusted):
            break
        claimed = parse_address(entry)
        if claimed is None:
            break
        address = claimed
    return address
