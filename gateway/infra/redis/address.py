"""Where Redis is: the forms of URL that `REDIS_URL` may have, read once.

    redis://user:password@host:6379/0            one server (or any node of a cluster, which is noticed)
    rediss://...                                 the same over TLS
    unix:///path/to.sock?db=0                    a socket on this machine
    redis+cluster://host1:6379,host2:6379        a cluster, by some of its nodes
    redis+sentinel://host1:26379,host2/name/0    the master that Sentinels call `name`

TLS (`rediss+cluster`, `rediss+sentinel` too) takes `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` and
`ssl_cert_reqs=none|required` as query parameters, by the names other clients use.
"""

import re
import ssl
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from gateway.errors import ConfigError
from gateway.secret import Secret

Mode = Literal["single", "cluster", "sentinel"]

#: Where the path, the query or the fragment begins.
_BEHIND_AUTHORITY = re.compile(r"(?=[/?#])")
_PORT = 6379
_SENTINEL_PORT = 26379
_PARAMETERS = frozenset({
    "db", "ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile", "sentinel_username", "sentinel_password",
})  # fmt: skip


class Address(msgspec.Struct, frozen=True):
    """One server: a host and a port, or the `path` of a socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Login(msgspec.Struct, frozen=True):
    """What a server wants to hear first."""

    username: str = ""
    password: Secret | None = None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A URL, read."""

    mode: Mode
    #: One server, or the nodes or Sentinels to ask, in order.
    addresses: tuple[Address, ...]
    login: Login = Login()
    database: int = 0
    tls: ssl.SSLContext | None = None
    #: For Sentinels: the name of the master, and their own login.
    master: str = ""
    sentinel_login: Login = Login()


def parse(url: str) -> Target:
    """Read a URL.

    Raises:
        ConfigError: naming what is wrong with it, without the password.
    """
    # Several hosts are no URL to the standard library, which refuses brackets behind the first of them.
    scheme, _, rest = url.partition("://")
    authority = _BEHIND_AUTHORITY.split(rest, maxsplit=1)[0]
    split = urlsplit(f"{scheme}://{rest[len(authority) :]}")
    parameters = dict(parse_qsl(split.query, keep_blank_values=True))
    if unknown := sorted(parameters.keys() - _PARAMETERS):
        raise ConfigError(f"The Redis URL has an unknown parameter {unknown[0]!r}; known are {sorted(_PARAMETERS)}.")
    userinfo, _, hosts = authority.rpartition("@")
    username, _, password = userinfo.partition(":")
    login = Login(unquote(username), Secret(unquote(password)) if password else None)
    scheme, _, variant = split.scheme.partition("+")
    if split.scheme == "unix":
        if not split.path:
            raise ConfigError("The Redis URL has no path: unix:///path/to.sock.")
        return Target(
            mode="single",
            addresses=(Address(path=unquote(split.path)),),
            login=login,
            database=_database(parameters.get("db", "")),
        )
    mode = {"": "single", "cluster": "cluster", "sentinel": "sentinel"}.get(variant)
    if scheme not in {"redis", "rediss"} or mode is None:
        raise ConfigError("The Redis URL must begin with redis://, rediss://, unix://, redis+cluster:// or "
                          "redis+sentinel://.")  # fmt: skip
    addresses = tuple(_address(host, _SENTINEL_PORT if mode == "sentinel" else _PORT) for host in hosts.split(","))
    if mode == "single" and len(addresses) > 1:
        raise ConfigError("The Redis URL names several servers; write redis+cluster:// or redis+sentinel://.")
    path = split.path.strip("/")
    master = ""
    if mode == "sentinel":
        master, _, path = path.partition("/")
        if not master:
            raise ConfigError("The Redis URL does not name the master: redis+sentinel://host:26379/name.")
    database = _database(parameters.get("db") or path)
    if mode == "cluster" and database:
        raise ConfigError("A Redis cluster has database 0 only.")
    sentinel_password = parameters.get("sentinel_password")
    return Target(
        mode=mode,  # type: ignore[arg-type] # one of the three values above
        addresses=addresses,
        login=login,
        database=database,
        tls=_tls(parameters) if scheme == "rediss" else None,
        master=unquote(master),
        sentinel_login=Login(
            parameters.get("sentinel_username", ""), Secret(sentinel_password) if sentinel_password else None
        ),
    )


def _address(text: str, port: int) -> Address:
    try:
        split = urlsplit(f"//{text}")
        return Address(split.hostname or "127.0.0.1", split.port or port)
    except ValueError:
        raise ConfigError(f"The Redis URL has a host or a port that is not one: {text!r}.") from None


def _database(text: str) -> int:
    if text and not text.isdecimal():
        raise ConfigError(f"The Redis URL has a database that is not a number: {text!r}.")
    return int(text or 0)


def _tls(parameters: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=parameters.get("ssl_ca_certs"))
        if certificate := parameters.get("ssl_certfile"):
            context.load_cert_chain(certificate, parameters.get("ssl_keyfile"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"The Redis URL names a certificate that can't be used: {error}.") from None
    requirement = parameters.get("ssl_cert_reqs", "required")
    if requirement not in {"none", "required"}:
        raise ConfigError("ssl_cert_reqs of the Redis URL is none or required.")
    if requirement == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
