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
#: Larger counts could not be kept exactly.
Limit = Annotated[int, Meta(ge=0, le=10**12)]
#: US dollars, as a decimal; what is made of it is exact.
Usd = Annotated[float, Meta(ge=0)]
Markup = Annotated[float, Meta(gt=0, le=1000)]
Plane = Literal["all", "data", "control"]
#: How to choose between the offers of a model; `routing/choose.py` says what each does.
Strategy = Literal["priority", "least_outstanding", "latency", "cost", "throughput"]
#: What an offer may be said not to do; `routing/needs.py` says how a request shows that it needs it.
Capability = Literal["tools", "vision", "audio", "json_schema", "streaming"]
#: What providers keep for callers.
ObjectKind = Literal["file", "upload", "batch", "response", "conversation", "vector_store", "container"]
#: How a token may be signed: with a key pair, so that nobody who can check one can make one.
Algorithm = Literal["ES256", "ES384", "RS256", "RS384", "RS512", "PS256", "EdDSA"]
#: A shorter pepper could be found by trying.
PEPPER_BYTES_MIN = 16
#: Of AES-256.
MASTER_BYTES = 32


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class Server(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listening side and the process model."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    #: 0 means one for each processor.
    workers: Annotated[int, Meta(ge=0, le=1024)] = 0
    plane: Plane = "all"
    #: Embedded servers, generated secrets and journals live here.
    data_dir: str = ".gateway"
    #: How long SIGTERM lets running streams finish.
    grace_s: Seconds = 30.0
    body_bytes_max: Positive = 64 * 1024 * 1024
    #: All bodies that a worker holds at a time.
    bodies_bytes_max: Positive = 1024 * 1024 * 1024
    #: How long a caller may take to send its request body, between two reads.
    body_timeout_s: Seconds = 60.0
    #: A form is not held but passed on as it comes, or spooled to a file (up to `body_bytes_max`) where what it is
    #: about stands behind its files. The most that is passed on, and how long all of any body may take.
    upload_bytes_max: Positive = 512 * 1024 * 1024
    upload_timeout_s: Seconds = 3600.0
    keep_alive_s: Seconds = 75.0
    #: How long a caller may read nothing of an answer that waits for it.
    write_timeout_s: Seconds = 300.0
    #: Callers' connections to one worker; one more is told so and closed.
    connections_max: Positive = 16384
    #: Proxies whose `x-forwarded-for` is believed, as addresses or networks; whoever else sends one is not.
    trusted_proxies: tuple[str, ...] = ()
    #: Created on first run in development: an account with a key, printed once.
    development: bool = True


class Overload(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a worker refuses requests that it could only serve late; see `routing/shedding.py`."""

    #: The event loop is late when it is so late for a second; 0: it never is.
    lag_s: Annotated[float, Meta(ge=0)] = 0.5
    #: Requests in flight in each worker, however well it does.
    requests_max: Positive = 16384


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

    #: How long a hold outlives its worker; a sweep then charges what was last known to be delivered. It is renewed
    #: every second.
    lease_s: Annotated[float, Meta(ge=5)] = 60.0
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
    #: From the request sent to the first event of a stream that is no comment; 0: `first_byte_s` is all there is.
    first_token_s: Annotated[float, Meta(ge=0)] = 0.0
    #: A stream that brings fewer bytes each second than this, over ten seconds, is cut; 0: however slow.
    bytes_per_s_min: Annotated[float, Meta(ge=0)] = 0.0


class ModelTimeouts(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model needs other than its provider's timeouts."""

    connect_s: Seconds | None = None
    first_byte_s: Seconds | None = None
    idle_s: Seconds | None = None
    total_s: Seconds | None = None
    first_token_s: Annotated[float, Meta(ge=0)] | None = None
    bytes_per_s_min: Annotated[float, Meta(ge=0)] | None = None


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


class Breaker(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an offer that fails is left alone."""

    #: Fewer requests than this within the window prove nothing.
    requests_min: Positive = 10
    #: Per cent of them that must have failed.
    failure_percent: Annotated[float, Meta(gt=0, le=100)] = 50.0
    window_s: Seconds = 20.0
    #: After this, one request at a time finds out whether it is well again.
    rest_s: Seconds = 10.0


class Retries(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tries beyond the first, while nothing was sent to the caller."""

    #: Tries for one request, the first one among them.
    attempts_max: Positive = 4
    #: How often the same offer is asked again, before the next one, where its failure may pass by itself.
    repeats: Count = 0
    #: Later than this after the request came, no other try begins.
    deadline_s: Seconds = 600.0
    #: The wait before the same offer is asked again: doubled each time, and spread.
    backoff_s: Seconds = 0.1
    #: A provider that wants more time than this is not waited for.
    backoff_most_s: Seconds = 4.0
    #: The share of all requests that may be tried again, so that retries never make an outage worse.
    share: Annotated[float, Meta(ge=0, le=10)] = 0.2
    #: Besides, this many each second, and as many as this saved up.
    floor_per_s: Annotated[float, Meta(ge=0)] = 10.0
    burst: Positive = 100


class Holdback(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a stream's beginning waits to be seen to be no error, where another offer could be tried."""

    events_max: Positive = 16
    bytes_max: Positive = 64 * 1024
    wait_s: Seconds = 10.0


class Hedging(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A second try beside one that takes longer than usual, for models that say `hedge`; see `routing/hedge.py`."""

    #: Per cent of their requests that may be sent a second time.
    percent_max: Annotated[float, Meta(gt=0, le=100)] = 5.0
    #: No second try before this.
    least_s: Seconds = 0.05


class Concurrency(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many requests an offer takes at a time; found out by how it answers, see `routing/crowd.py`."""

    #: False: as many as come.
    adaptive: bool = True
    #: No limit is lower; none is higher than `upstream.connections_max`.
    least: Positive = 4
    #: Slow is what takes so many times as long as it did with room to spare, and longer than this.
    tolerance: Annotated[float, Meta(ge=1.5)] = 3.0
    slow_s: Seconds = 2.0
    #: How long a request waits for a place; those of the highest priority wait ten times as long. And how many wait.
    wait_s: Seconds = 1.0
    waiting_max: Positive = 1024


class Routing(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several offers for one model, and what happens when one fails."""

    #: Send a conversation back to where it was, where a prompt that the provider has kept is cheaper.
    sticky: bool = True
    #: How long a provider key is left alone once it was refused.
    key_refused_s: Seconds = 60.0
    #: The same for one that was throttled, where the provider does not say for how long.
    key_throttled_s: Seconds = 5.0
    #: A comment is written into a stream that is silent for this long, to keep the way to the caller open; 0: none.
    comment_s: Annotated[float, Meta(ge=0)] = 0.0
    retries: Retries = Retries()
    breaker: Breaker = Breaker()
    holdback: Holdback = Holdback()
    hedging: Hedging = Hedging()
    concurrency: Concurrency = Concurrency()


class Cache(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers that are given again to the account that asks exactly the same; see `stages/recall.py`."""

    #: "asked": where a caller asks for it. "always": also where the answer would come out the same by itself.
    use: Literal["never", "asked", "always"] = "never"
    ttl_s: Seconds = 300.0
    #: Of each worker; and the largest answer that is kept.
    bytes_max: Positive = 64 * 1024 * 1024
    answer_bytes_max: Positive = 1024 * 1024
    #: What is charged for one, in thousandths of what it did cost.
    price_permille: Annotated[int, Meta(ge=0, le=1000)] = 0


class Objects(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What providers keep for callers: files, batches, stored responses and the like."""

    #: What can be made. Providers charge for vector stores and containers by the day, which nobody is billed here.
    kinds: tuple[ObjectKind, ...] = ("file", "upload", "batch", "response", "conversation")
    #: Where files and other objects are made that name no model. Empty: the default provider, else the first one that
    #: keeps any. A caller may ask for another in the header `x-gateway-provider`.
    provider: str = ""
    #: Beginnings of paths below /v1 that are passed on without being understood, at no cost: `/fine_tuning`.
    relay: tuple[str, ...] = ()
    #: How many owners each worker keeps at hand.
    cache_size: Positive = 100_000
    #: How long it is remembered whose a response is.
    response_days: Positive = 30


class Batches(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Work that is paid for when the provider has done it: batches, and responses in the background."""

    #: How often a provider is asked whether it is done, at first, and at most.
    poll_s: Seconds = 20.0
    poll_most_s: Seconds = 600.0
    #: What a batch costs where no price of batches is known, in thousandths of the plain price.
    price_permille: Annotated[int, Meta(gt=0, le=10_000)] = 500
    #: Held for each request of a batch that sets no bound.
    output_tokens: Positive = 1024
    #: The largest file of requests.
    file_bytes_max: Positive = 256 * 1024 * 1024


class Realtime(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Conversations over a WebSocket."""

    enabled: bool = True
    #: Held for the next response of a session.
    input_tokens: Positive = 4096
    output_tokens: Positive = 4096
    #: The largest message, either way.
    message_bytes_max: Positive = 16 * 1024 * 1024
    #: A session in which nobody says anything, and any session, ends after this.
    idle_s: Seconds = 600.0
    total_s: Seconds = 3600.0
    #: Let callers have keys of the provider's, which then nobody meters.
    ephemeral_keys: bool = False


class Catalogue(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is found out about models, besides the prices that the program comes with."""

    #: Ask providers which models they have, how much those take, and what they cost.
    lists: bool = True
    #: How often.
    refresh_s: Seconds = 3600.0
    #: Ask Hugging Face how much open models are used and liked, for `/catalog/models`.
    huggingface: bool = False
    huggingface_url: str = "https://huggingface.co"
    huggingface_token: Secret | None = None
    #: Where pages find a provider's logo, with `{domain}` for its site. Empty: nowhere.
    logo_url: str = "https://www.google.com/s2/favicons?domain={domain}&sz=128"


class Control(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The control plane: accounts and administration. Its bounds keep it from the data plane's memory and time."""

    #: Where people reach it, such as https://gateway.example.com: for links in mails, redirects, and cookies that
    #: only go over TLS. Empty: this machine in development, and nowhere else.
    url: str = ""
    #: Connections to PostgreSQL of each worker, beside those of the data plane.
    pool_size: Positive = 4
    #: What one request may take; a statement may take no longer either.
    timeout_s: Seconds = 10.0
    body_bytes_max: Positive = 1024 * 1024
    #: Requests in flight in each worker; more are told to come back.
    requests_max: Positive = 64
    #: `/docs`, `/redoc` and `/openapi.json`.
    docs: bool = True
    #: What an administrator may give an account, or take from it, at a time.
    grant_usd_max: Annotated[float, Meta(gt=0, le=1_000_000)] = 1_000.0


class Identity(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who people are, and how they prove it."""

    #: Whether anyone may make an account.
    registration: bool = True
    #: The role that a new user gets: `user` may look, `developer` may make keys as well.
    role: Literal["user", "developer"] = "developer"
    #: The plan of a new account.
    plan: str = "free"
    #: Whether an address must be verified before its owner can sign in with a password.
    verify_email: bool = False
    password_length_min: Annotated[int, Meta(ge=8, le=128)] = 10
    #: How long somebody stays signed in.
    session_s: Seconds = 30 * 86400.0
    #: How long the links in mails work: to verify an address, to set a new password, to join an account.
    verification_s: Seconds = 86400.0
    reset_s: Seconds = 3600.0
    invitation_s: Seconds = 7 * 86400.0
    #: Tries to sign in or to have a mail sent, for each address and for each client, in so many seconds.
    tries_per_address: Positive = 10
    tries_per_client: Positive = 50
    tries_window_s: Seconds = 900.0
    #: Passwords that are hashed at a time in each worker: each takes a thread, 19 MiB and some 20 ms.
    hashes_at_once: Positive = 2


class Issuer(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody whose word is taken for who a person is: an OpenID provider, or Privy."""

    #: Exactly what stands in its tokens as `iss`.
    issuer: str
    #: What stands there as `aud`: the client id, at Privy the id of the app.
    audience: str
    #: Where its keys are. Empty: what `{issuer}/.well-known/openid-configuration` says.
    jwks_url: str = ""
    #: The only algorithms that are accepted.
    algorithms: tuple[Algorithm, ...] = ("ES256", "RS256")
    #: For signing in at the console through it, where it knows this gateway as a client.
    client_secret: Secret | None = None
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    #: Privy's tokens have no e-mail address; its own API tells it, by the app's secret.
    kind: Literal["oidc", "privy"] = "oidc"


class Mail(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Letters to people. Without a host, development writes them to the log and production has none to send."""

    host: str = ""
    port: Annotated[int, Meta(ge=1, le=65535)] = 587
    #: "starttls" and "tls" check the server's certificate; "none" is for a server on this machine.
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password: Secret | None = None
    sender: str = "AI Gateway <gateway@localhost>"
    timeout_s: Seconds = 10.0
    #: Letters that wait to be sent in each worker; more are refused.
    queue_max: Positive = 1000


class OwnKeys(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Provider keys that accounts bring themselves. Off unless there is a master key to keep them under."""

    #: 32 bytes each, in hexadecimal digits or base64, by a short id that stands beside what is encrypted under it.
    masters: dict[str, Secret] = {}
    #: The id of the one that encrypts; the others only decrypt. Empty: the only one there is.
    active: str = ""
    #: What a request with such a key costs, in thousandths of what it would have cost with the operator's.
    fee_permille: Annotated[int, Meta(ge=0, le=1000)] = 50
    #: Keys of one account.
    per_account_max: Annotated[int, Meta(gt=0, le=100)] = 20


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
    #: Further keys, all used in turn.
    api_keys: tuple[Secret, ...] = ()
    #: Public model names it serves. A star at the end stands for any ending; `*` alone is every model that no other
    #: provider names.
    models: tuple[str, ...] = ("*",)
    enabled: bool = True
    #: Where a model has several providers: lower ones are asked first, and equals share the traffic by weight.
    priority: Count = 0
    weight: Positive = 1
    #: Words that models may require and callers ask for: `zdr`, `no-training`, `region:eu`.
    tags: tuple[str, ...] = ()
    #: What it can't do, for any model.
    lacks: tuple[Capability, ...] = ()
    #: What is left out here is as in `upstream.timeouts`.
    timeouts: Timeouts | None = None
    #: What the price catalogue calls it; empty: the catalogue's prices are not those of this provider.
    catalogue: str | None = None
    #: What its prices are multiplied by.
    markup: Markup | None = None
    #: What it serves a request as that asks for no service tier; None: the plain one.
    service_tier: str | None = None
    #: Not a key of the file: the keys of the table that have no name above.
    extra: dict[str, object] = {}


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin. Keys that are not named here go to it, and it refuses those it does not know."""

    enabled: bool = True
    #: Its entry-point name; empty: the name of the table.
    plugin: str = ""
    #: What each call of its asynchronous hooks may take.
    timeout_s: Seconds = 5.0
    #: Not a key of the file: the keys of the table that have no name above.
    extra: dict[str, object] = {}


class Between(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number that is larger than one and smaller than another."""

    above: float | None = None
    below: float | None = None


class Condition(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for requests with certain members in their bodies; see `routing/conditions.py`."""

    when: dict[str, bool | float | str | tuple[float | str, ...] | Between]
    #: Another model serves them.
    model: str = ""
    #: Nobody else serves them: these providers, and those with these tags.
    providers: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    #: How to choose between them.
    routing: Strategy | None = None


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
    #: Where pictures have several prices: by quality and size ("hd 1024x1792"), by size, or by quality.
    images_usd: dict[str, Usd] = {}
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
    #: How to choose between its providers.
    routing: Strategy = "priority"
    #: Other weights and priorities than the providers have: provider name to number.
    weights: dict[str, Positive] = {}
    priorities: dict[str, Count] = {}
    #: For the `throughput` strategy: what is fast enough.
    tokens_per_s_wanted: Annotated[float, Meta(ge=0)] = 0.0
    #: Send a request to a second offer as well where the first takes longer than usual; the first answer is charged.
    hedge: bool = False
    #: Models to go to when no offer of this one answers, finds the prompt too long, or finds it offensive.
    fallbacks: tuple[str, ...] = ()
    context_fallbacks: tuple[str, ...] = ()
    policy_fallbacks: tuple[str, ...] = ()
    #: Tags that a provider must have to serve it.
    require: tuple[str, ...] = ()
    #: What holds for some requests in the place of what stands above; the first that is met counts.
    conditions: tuple[Condition, ...] = ()
    #: A model that is asked as well for a share of the requests, to see how it does; its answers go nowhere.
    shadow: str = ""
    shadow_percent: Annotated[float, Meta(ge=0, le=100)] = 1.0
    #: What it can't do, at any provider.
    lacks: tuple[Capability, ...] = ()
    #: What is left out here is as the provider has it.
    timeouts: ModelTimeouts = ModelTimeouts()


class Plan(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What accounts of one plan may use; what is left out is not limited."""

    usd_per_month: Usd = 0.0
    usd_per_year: Usd = 0.0
    requests_per_minute: Limit | None = None
    requests_per_hour: Limit | None = None
    requests_per_day: Limit | None = None
    #: A month is 30 days here.
    requests_per_month: Limit | None = None
    tokens_per_minute: Limit | None = None
    tokens_per_hour: Limit | None = None
    tokens_per_day: Limit | None = None
    tokens_per_month: Limit | None = None
    #: Requests at once, where that is less than the limit per minute.
    burst: Limit | None = None
    #: Requests in flight.
    concurrency: Limit | None = None
    #: Whose requests are served first, and refused last, where there is not room for all. Keys that are not live have
    #: the one below.
    priority: Literal["low", "normal", "high"] = "normal"


#: The plan of accounts that are not limited. It has no row.
UNLIMITED = "unlimited"
#: The row that holds for accounts whose plan has none.
NO_PLAN = "none"
#: `config/plans.toml` says the same for people, and is where to change it.
PLANS: dict[str, Plan] = {
    NO_PLAN: Plan(
        priority="low",
        requests_per_day=100,
        requests_per_month=1_000,
        tokens_per_day=10_000,
        tokens_per_month=100_000,
    ),
    "free": Plan(
        priority="low",
        requests_per_day=1_000,
        requests_per_month=10_000,
        tokens_per_day=100_000,
        tokens_per_month=1_000_000,
        concurrency=5,
    ),
    "dev": Plan(
        usd_per_month=29.0,
        usd_per_year=290.0,
        requests_per_day=10_000,
        requests_per_month=300_000,
        tokens_per_day=1_000_000,
        tokens_per_month=10_000_000,
        concurrency=15,
    ),
    "team": Plan(
        usd_per_month=99.0,
        usd_per_year=990.0,
        requests_per_day=50_000,
        requests_per_month=1_500_000,
        tokens_per_day=5_000_000,
        tokens_per_month=50_000_000,
        concurrency=50,
    ),
    "customize": Plan(
        priority="high",
        requests_per_day=1_000_000,
        requests_per_month=30_000_000,
        tokens_per_day=100_000_000,
        tokens_per_month=1_000_000_000,
        concurrency=100,
    ),
}


class Settings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration."""

    server: Server = Server()
    overload: Overload = Overload()
    cors: Cors = Cors()
    auth: Auth = Auth()
    database: Database = Database()
    redis: Redis = Redis()
    money: Money = Money()
    upstream: Upstream = Upstream()
    routing: Routing = Routing()
    cache: Cache = Cache()
    objects: Objects = Objects()
    batches: Batches = Batches()
    realtime: Realtime = Realtime()
    catalogue: Catalogue = Catalogue()
    control: Control = Control()
    identity: Identity = Identity()
    #: By a name of one's own, which stands in addresses such as /auth/login/NAME.
    issuers: dict[str, Issuer] = {}
    mail: Mail = Mail()
    own_keys: OwnKeys = OwnKeys()
    log: Log = Log()
    metrics: Metrics = Metrics()
    #: Serves requests that name no model (and models no provider claims, if it takes `*`).
    default_provider: str = ""
    #: Enable the providers whose usual variable (OPENAI_API_KEY, ...) is set.
    providers_from_environment: bool = True
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}
    #: Called in the order of the file.
    plugins: dict[str, Plugin] = {}
    #: By name; those of `PLANS` and what the files say instead or besides.
    plans: dict[str, Plan] = msgspec.field(default_factory=lambda: dict(PLANS))
