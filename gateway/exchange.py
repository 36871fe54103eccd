"""One request on its way through: the frozen facts about it, and the one mutable record that carries them.

The facts (`Call`, `Principal`, `Offer`) are made by one stage each and never change. `Exchange` is filled in by the
stages in the order of `pipeline.py`; each field says which.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gateway.wire.dialects import Dialect
from gateway.wire.paths import Target
from gateway.wire.peek import Peek
from gateway.wire.usage import Usage

if TYPE_CHECKING:
    from gateway.api import Request, Tap
    from gateway.bridges import Bridge
    from gateway.downstream import Downstream
    from gateway.errors import GatewayError
    from gateway.kernel.constraints import Constraints
    from gateway.kernel.marks import Mark
    from gateway.kernel.money import Price
    from gateway.kernel.objects import Charge, Owned
    from gateway.registry import Provider
    from gateway.routing.hedge import Hedge
    from gateway.routing.holdback import Holdback
    from gateway.routing.keychain import Keychain, OwnKey
    from gateway.routing.menu import Menu
    from gateway.settings import Timeouts
    from gateway.stages.recall import Recording
    from gateway.upload import Upload
    from gateway.upstream.response import UpstreamResponse
    from gateway.wire.form import FormScanner
    from gateway.wire.objects import Operation
    from gateway.wire.units import Units

Headers = list[tuple[bytes, bytes]]
# The ASGI specification types these as plain dictionaries.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller asked for.

    `path` is the raw (still percent-encoded) path after the `/v1` prefix, with its leading slash. `headers` are the
    caller's, lower-cased, unfiltered; `wire.headers` decides which travel on. `body` is exactly what arrived, after
    any content-encoding was undone.
    """

    id: str
    dialect: Dialect
    method: str
    path: bytes
    query: bytes
    headers: Headers
    body: bytes
    peek: Peek
    #: The model as the caller named it; empty where the path has none.
    model: str
    #: Who asks: what an adapter remembers of one account must not be found by another. 0 for the gateway itself.
    account_id: int = 0
    #: The body, where it is a form too large to be held; `body` is empty then.
    upload: "Upload | None" = None


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who is calling, from the key alone."""

    key_id: str
    account_id: int
    #: live, test, staging or dev; not live gets half of the plan's limits.
    environment: str
    #: What it may use, packed once: see `kernel/limits.py`.
    limits: bytes
    #: What it may be used for, where that is less than everything.
    constraints: "Constraints | None" = None
    #: How much it matters where there is not room for everybody: 0 low, 1 normal, 2 high.
    priority: int = 1
    #: The provider keys that its account brings itself, where it has any.
    keychain: "Keychain | None" = None


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a provider at a price: what routing chooses between.

    `model` is the public name, `upstream_model` what the provider calls it. Without a price it can only be called if
    it is `free`.
    """

    model: str
    provider: str
    upstream_model: str
    price: "Price | None" = None
    free: bool = False
    #: Lower ones are asked first; among equals, traffic is shared by weight.
    priority: int = 0
    weight: int = 1
    #: What an operator says of the provider, `region:eu` or `zdr` for example.
    tags: tuple[str, ...] = ()
    #: What it can't do: see `routing/needs.py`.
    lacks: tuple[str, ...] = ()
    #: What it takes in; None where nobody knows.
    context_tokens: int | None = None
    #: The longest answer that it gives; None where nobody said.
    output_tokens_max: int | None = None
    #: Where the model has timeouts of its own.
    timeouts: "Timeouts | None" = None
    #: False where the provider is known to refuse a stream that is asked for its usage.
    ask_usage: bool = True
    #: What the provider serves a request as that asks for no service tier, where that is not the plain one.
    service_tier: str | None = None
    #: The account's own key that it is used with; None for the operator's.
    own: "OwnKey | None" = None


class Exchange(msgspec.Struct, eq=False, weakref=False):
    """The state of one request. Stages read what earlier ones set and nothing else.

    A struct for its speed only: it is never encoded, so the types below that are text are never looked up.
    """

    scope: Scope
    receive: Receive
    send: Send
    #: What the path asks for; the data plane's router decides it.
    target: Target
    # observe
    id: str = ""
    #: On the clock's monotonic seconds, like all times of a request.
    started_s: float = 0.0
    #: Headers every answer to this request carries, whoever writes it.
    reply_headers: Headers = []
    #: What the request does to which objects that a provider keeps; the router decides it.
    operation: "Operation | None" = None
    #: The dialect that the answer and errors are in, where the path does not tell; the router decides that too.
    told_as: Dialect | None = None
    # authenticate
    principal: Principal | None = None
    # receive
    call: Call | None = None
    #: What is seen of the body where that is a form; of one that is passed on, more comes while it is sent.
    form: "FormScanner | None" = None
    # own
    #: Where the objects live that the request is about: the provider, and the number of its key. Nowhere else.
    pin: tuple[str, int] | None = None
    #: The account's own key that they were made with, where it was one.
    pinned: "OwnKey | None" = None
    #: The object that the path names.
    owned: "Owned | None" = None
    #: Makes what looks for the id of a stored answer in the first bytes of it, until it says that it has seen enough.
    learn: Callable[[], Callable[[bytes], bool]] | None = None
    # admit
    #: The offers that may serve it, those of fallback models among them: the hold must cover each.
    offers: tuple[Offer, ...] = ()
    #: The same, as routing chooses between them.
    menu: "Menu | None" = None
    #: Estimated; what the provider reports corrects it.
    input_tokens: int = 0
    #: The most that the answer may have.
    output_tokens: int = 0
    #: What it asks for besides tokens, in dialects that are paid for by other units.
    units: "Units | None" = None
    # consult
    #: The request as plugins see it, which the stage puts there where there are plugins.
    seen: "Request | None" = None
    # reserve
    #: What is held for it.
    hold_nanos: int = 0
    #: It stays when the request ends, and is settled when the provider has done its work.
    deferred: bool = False
    #: Called once, when the whole answer is here and before its last bytes leave: charges for it, gives its cost.
    on_whole: Callable[[], int | None] | None = None
    #: What was charged for, and how much.
    usage: Usage | None = None
    cost_nanos: int = 0
    # recall
    #: What an answer from memory costs, whatever was used for it then; None where it is no such answer.
    fee_nanos: int | None = None
    #: Notes the answer on its way, where it is to be kept.
    recording: "Recording | None" = None
    # defer
    #: What is charged later for the object that this request orders, and whether that was made.
    charge: "Charge | None" = None
    ordered: bool = False
    # route
    #: The offer being tried, its provider, the number of the provider's key, and what this try may take.
    offer: Offer | None = None
    provider: "Provider | None" = None
    key: int = 0
    timeouts: "Timeouts | None" = None
    #: What may be done about a first try that takes long; None where the model is not hedged.
    hedge: "Hedge | None" = None
    #: Where another offer could still be tried: judges the beginning of a stream before any of it is sent.
    holdback: "Holdback | None" = None
    #: Called when the first byte of a successful answer is here.
    on_begun: Callable[[], None] | None = None
    #: What became of each try at a provider, in order: (provider, outcome).
    attempts: list[tuple[str, str]] = []
    # attempt
    #: The call as the provider's adapter got it: `call` itself, or what a bridge made of it.
    spoken: Call | None = None
    #: Turns the answer back into the caller's dialect; None where the adapter does so, or nothing has to.
    bridge: "Bridge | None" = None
    #: What of the request the provider could not be told.
    dropped: tuple[str, ...] = ()
    #: When the request was sent, and the provider's answer once its head is in.
    sent_s: float = 0.0
    response: "UpstreamResponse | None" = None
    # relay
    status: int = 0
    #: True once the response head went out: from here on no other status, no other offer.
    committed: bool = False
    #: Where the response goes, once it has begun.
    downstream: "Downstream | None" = None
    #: The answer is a stream of events.
    streaming: bool = False
    #: The watcher of a successful answer.
    tap: "Tap | None" = None
    #: When the first byte of a successful answer went out.
    first_byte_s: float | None = None
    #: Seconds spent waiting for providers, all attempts together.
    upstream_s: float | None = None
    bytes_out: int = 0
    #: Where `bytes_out` is written down for whoever outlives this process; None while it need not be.
    mark: "Mark | None" = None
    # rescue
    error: "GatewayError | None" = None
    #: Who cut an answer that had begun.
    aborted_by: Literal["", "caller", "provider", "gateway"] = ""
    # anything a plugin wants in the usage record
    tags: dict[str, str] = {}
