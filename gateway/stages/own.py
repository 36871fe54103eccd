"""Whose objects the request is about: nobody's but the caller's own, and where they live is where it goes.

Rules:
- An object of another account, and one that nobody knows, are the same: not found.
- Objects live under one key of one provider. A request that refers to objects in two places is refused: no provider
  knows both.
- What a request makes without referring to anything is made where the configuration says, or where the caller asks
  in `x-gateway-provider`; all of one account under one of its keys, so that it can be used together. Where the
  account has a key of its own for that provider, before the operator's, that is the one.
- What was made with an account's own key is found with that key alone. When it is deleted or switched off, requests
  about it are refused; the object stays at the provider, where the key's owner finds it.

Nearly every request refers to nothing, and pays for being told so by a few searches for bytes.
"""

import urllib.parse
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Final

from gateway.deps import Deps, Handler
from gateway.errors import BadRequest, NoOffer, OwnKeyGone, UnknownObject
from gateway.exchange import Call, Exchange
from gateway.kernel.objects import Charge, Owned, Terms
from gateway.kernel.own_keys import is_own
from gateway.routing.keychain import OwnKey
from gateway.wire.dialects import Dialect
from gateway.wire.objects import StartFinder, may_refer, references

_PROVIDER: Final = b"x-gateway-provider"
_DAY_S: Final = 86400.0


def own(x: Exchange, *, deps: Deps, call_next: Handler) -> Awaitable[None]:
    """Set `x.pin`, `x.owned` and `x.learn`.

    Raises:
        UnknownObject: something that it refers to is not the caller's.
        BadRequest: what it refers to lives in different places, or can't be read.
        NoOffer: the provider that keeps it is not configured any more, or none keeps such things.
        OwnKeyGone: it was made with a key of the account's own that is not here.
        StoreUnavailable: nobody can tell whose it is.
    """
    call = x.call
    assert call is not None
    if x.operation is None:
        if call.dialect is Dialect.OPENAI_RESPONSES and call.peek.store is not False:
            x.learn = partial(_Learner, x, deps)
        # Of JSON alone: only that has a closing brace.
        if call.dialect is not Dialect.OPENAI_OTHER and not _may_refer(call):
            # No frame of its own: nothing is awaited here.
            return call_next(x)
    return _look_up(x, deps, call_next)


def _may_refer(call: Call) -> bool:
    peeked = call.peek
    return bool(peeked.end) and (
        peeked.continues or may_refer(call.body, tools=call.dialect is not Dialect.OPENAI_CHAT)
    )


async def _look_up(x: Exchange, deps: Deps, call_next: Handler) -> None:
    call, operation = x.call, x.operation
    assert call is not None
    referred = references(call.body) if _may_refer(call) else ()
    if operation is not None:
        if operation.kind == "other":
            await _refuse_foreign(x, deps, call.path)
        if operation.ids:
            x.owned = await _owned(x, deps, operation.ids[0])
            _pin(x, deps, x.owned)
            if operation.kind == "vector_store" and call.path.split(b"/")[3:4] == [b"files"]:
                referred = (*operation.ids[1:2], *referred)
    for object_id in referred:
        _pin(x, deps, await _owned(x, deps, object_id))
    if operation is not None and x.pin is None:
        _place(x, deps)
    await call_next(x)


async def _owned(x: Exchange, deps: Deps, object_id: str) -> Owned:
    assert x.principal is not None
    owned = deps.objects.find_known(object_id) or await deps.objects.find(object_id)
    if owned is None or owned.account_id != x.principal.account_id:
        raise UnknownObject(object_id)
    return owned


async def _refuse_foreign(x: Exchange, deps: Deps, path: bytes) -> None:
    """Of a path that is passed on without being understood: an id in it that is known is held to its owner."""
    assert x.principal is not None
    for segment in urllib.parse.unquote(path.decode("latin-1")).split("/")[2:8]:
        owned = await deps.objects.find(segment) if "_" in segment or "-" in segment else None
        if owned is not None:
            if owned.account_id != x.principal.account_id:
                raise UnknownObject(segment)
            _pin(x, deps, owned)


def _pin(x: Exchange, deps: Deps, owned: Owned) -> None:
    provider = deps.providers.get(owned.provider)
    own: OwnKey | None = None
    if provider is not None and is_own(owned.fingerprint):
        assert x.principal is not None
        keychain = x.principal.keychain
        own = None if keychain is None else keychain.find(owned.provider, owned.fingerprint)
        if own is None:
            raise OwnKeyGone
        place = (owned.provider, 0)
    elif provider is None or owned.fingerprint not in provider.fingerprints:
        raise NoOffer(f"The provider that keeps `{owned.id}` is not configured any more.")
    else:
        place = (owned.provider, provider.fingerprints.index(owned.fingerprint))
    if x.pin is not None and (x.pin != place or x.pinned is not own):
        raise BadRequest("The request refers to objects that are kept at different providers.")
    x.pin, x.pinned = place, own


def _place(x: Exchange, deps: Deps) -> None:
    """Where something is made that belongs nowhere yet."""
    assert x.principal is not None
    asked = next((value for name, value in x.scope["headers"] if name == _PROVIDER), b"").decode("latin-1")
    keeping = [name for name, each in deps.providers.items() if Dialect.OPENAI_OTHER in each.native]
    settings = deps.settings
    name = asked or settings.objects.provider or settings.default_provider or _first(keeping, deps)
    if name not in keeping:
        raise NoOffer("No provider here keeps objects." if not asked else "That provider keeps no objects.")
    keychain = x.principal.keychain
    if keychain is not None and (own := keychain.maker(name)) is not None:
        x.pin, x.pinned = (name, 0), own
        return
    keys = len(deps.providers[name].adapters)
    x.pin = (name, x.principal.account_id % keys)


def _first(keeping: Iterable[str], deps: Deps) -> str:
    """The first provider; the echo provider only where there is no other."""
    ordered = sorted(keeping, key=lambda name: deps.providers[name].adapter.ID == "echo")
    return ordered[0] if ordered else ""


class _Learner:
    """Notes whose a stored response is as soon as its id passes by."""

    __slots__ = ("_deps", "_finder", "_x")

    def __init__(self, x: Exchange, deps: Deps) -> None:
        self._x = x
        self._deps = deps
        self._finder = StartFinder()

    def __call__(self, chunk: bytes) -> bool:
        self._finder.feed(chunk)
        if not self._finder.done:
            return False
        x, deps = self._x, self._deps
        provider = x.provider
        if (
            self._finder.id
            and provider is not None
            and x.principal is not None
            and Dialect.OPENAI_RESPONSES in provider.native
        ):
            now_s = deps.clock.now()
            x.owned = Owned(
                id=self._finder.id,
                kind="response",
                account_id=x.principal.account_id,
                key_id=x.principal.key_id,
                provider=provider.name,
                fingerprint=provider.fingerprints[x.key],
                created_s=now_s,
                expires_s=now_s + deps.settings.objects.response_days * _DAY_S,
                pending=x.call is not None and x.call.peek.background,
            )
            deps.objects.note(x.owned, charge=self._charge())
        return True

    def _charge(self) -> Charge | None:
        """An answer in the background goes on when this stream ends: it may be charged later, under this id."""
        x = self._x
        if x.call is None or x.offer is None or not x.call.peek.background:
            return None
        return Charge(
            charge_id=x.id,
            model=x.offer.model,
            upstream_model=x.offer.upstream_model,
            hold_nanos=x.hold_nanos,
            terms=Terms.of(x.offer),
            poll_s=self._deps.clock.now() + self._deps.settings.batches.poll_s,
        )
