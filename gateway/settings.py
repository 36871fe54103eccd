"""Every setting, with its default. `config/gateway.toml` documents them for people; a test holds the two equal.

`load` (in `gateway/config.py`) is the only way to make a `Settings` from files and the environment.
Durations are seconds and end in `_s`, sizes are bytes and end in `_bytes`. Nothing here does IO.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.secret import Secret

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(gt=0)]
#: US dollars, as a decimal; what is made of it is exact.
Usd = Annotated[float, Meta(ge=0)]
Markup = Annotated[float, Meta(gt=0, le=1000)]
Plane = Literal["all", "data", "control"]
#: A shorter pepper could be found by trying.
PEPPER_BYTES_MIN = 16


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class Server(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listening side and the process model."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    #: 0 means one for each processor.
    workers: Count = 0
    plane: Plane = "all"
    #: Embedded servers, generated secrets and journals live here.
    data_dir: str = ".gateway"
    #: How long SIGTERM lets running streams finish.
    grace_s: Seconds = 30.0
    body_bytes_max: Positive = 64 * 1024 * 1024
    #: How long a caller may take to send its request body, between two reads.
    body_timeout_s: Seconds = 60.0
    keep_alive_s: Seconds = 75.0
    #: Created on first run in development: an account with a key, printed once.
    development: bool = True


class Cors(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Browsers. Off unless origins are named; `["*"]` allows any."""

    origins: tuple[str, ...] = ()
    max_age_s: Seconds = 600.0


class Auth(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gateway keys."""

    #: Keyed hash of every key at rest. Empty: generated once into the data directory (development only).
    pepper: Secret | None = None
    #: How long a key is served from memory before the database is asked again.
    cache_s: Seconds = 60.0
    #: How long a known key goes on being served while the database does not answer.
    stale_s: Seconds = 3600.0
    cache_size: Positive = 100_000


class Database(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PostgreSQL 14 or later. No URL: the embedded one."""

    url: Secret | None = None
    pool_size: Positive = 4
    timeout_s: Seconds = 2.0


class Redis(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Redis 7.0 or later, or Valkey. No URL: the embedded one."""

    url: Secret | None = None
    timeout_s: Seconds = 0.5


class Money(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds and charges."""

    #: How long a hold outlives its worker; a sweep then charges what was last known to be delivered.
    lease_s: Seconds = 60.0
    #: Held for an answer whose caller set no bound.
    output_tokens: Positive = 4096
    #: Nothing is served, or limits are counted by each worker and money is bounded by an allowance.
    when_redis_is_away: Literal["refuse", "limit_locally"] = "refuse"
    #: For "limit_locally": what an account may spend in each worker while Redis is away.
    local_allowance_usd: Usd = 1.0
    #: Where requests are kept that ended while Redis was away; of each worker.
    local_journal_bytes_max: Annotated[int, Meta(ge=1024 * 1024)] = 256 * 1024 * 1024
    #: What the account made at the first start in development is given.
    development_usd: Annotated[float, Meta(ge=0)] = 10.0


class Timeouts(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attempt at a provider."""

    connect_s: Seconds = 5.0
    #: From the request sent to the first byte of the answer.
    first_byte_s: Seconds = 600.0
    #: Between two reads of a body.
    idle_s: Seconds = 300.0
    total_s: Seconds = 3600.0


class Upstream(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Connections to providers."""

    timeouts: Timeouts = Timeouts()
    connections_max: Positive = 2048
    #: An idle connection older than this is not used again.
    keep_alive_s: Seconds = 30.0
    #: A PEM file trusted besides the system's authorities.
    ca_file: str = ""
    #: HTTPS_PROXY, HTTP_PROXY and NO_PROXY are obeyed.
    proxy_from_environment: bool = True


class Log(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logs go to standard error, the access log to standard output, both as JSON lines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    #: `-` is standard output, empty is off, anything else a file.
    access: str = "-"


class Metrics(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`GET /metrics`."""

    enabled: bool = True
    #: Asked of whoever reads them, as a bearer token. Empty: anyone who reaches the port may.
    token: Secret | None = None
    #: Label sets beyond this are counted in `gateway_series_dropped_total` and folded into `_other`.
    series_max: Positive = 10_000


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One provider. Keys that are not named here go to its adapter, which refuses those it does not know."""

    adapter: str
    base_url: str = ""
    api_key: Secret | None = None
    #: Public model names it serves. A star at the end stands for any ending; `*` alone is every model that no other
    #: provider names.
    models: tuple[str, ...] = ("*",)
    enabled: bool = True
    #: What is left out here is as in `upstream.timeouts`.
    timeouts: Timeouts | None = None
    #: What the price catalogue calls it; empty: the catalogue's prices are not those of this provider.
    catalogue: str | None = None
    #: What its prices are multiplied by.
    markup: Markup | None = None
    #: Not a key of the file: the keys of the table that have no name above.
    extra: dict[str, object] = {}


class Model(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a model beyond the catalogue. `[models."*"]` holds for models without a row of their own."""

    #: Costs nothing. For `*`: may be called although no price is known.
    free: bool = False
    input_usd_per_mtok: Usd | None = None
    output_usd_per_mtok: Usd | None = None
    #: Input that the provider had kept from an earlier request.
    input_cached_usd_per_mtok: Usd | None = None
    #: Input that the provider keeps for later ones: for some minutes, and for an hour or longer.
    input_cache_write_usd_per_mtok: Usd | None = None
    input_cache_write_1h_usd_per_mtok: Usd | None = None
    input_audio_usd_per_mtok: Usd | None = None
    output_audio_usd_per_mtok: Usd | None = None
    output_reasoning_usd_per_mtok: Usd | None = None
    image_usd: Usd | None = None
    second_usd: Usd | None = None
    character_usd: Usd | None = None
    search_usd: Usd | None = None
    request_usd: Usd | None = None
    #: What its price is multiplied by, in the place of the provider's markup.
    markup: Markup | None = None
    #: What it takes in, and the longest answer it gives.
    context_tokens: Positive | None = None
    max_output_tokens: Positive | None = None
    aliases: tuple[str, ...] = ()
    #: The name a provider knows it by, where it differs: provider name to its name.
    upstream: dict[str, str] = {}


class Settings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration."""

    server: Server = Server()
    cors: Cors = Cors()
    auth: Auth = Auth()
    database: Database = Database()
    redis: Redis = Redis()
    money: Money = Money()
    upstream: Upstream = Upstream()
    log: Log = Log()
    metrics: Metrics = Metrics()
    #: Serves requests that name no model (and models no provider claims, if it takes `*`).
    default_provider: str = ""
    #: Enable the providers whose usual variable (OPENAI_API_KEY, ...) is set.
    providers_from_environment: bool = True
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}
