"""A small sound adapter, and one broken in each way that there is a fault for."""

from typing import ClassVar

import msgspec

from gateway.api import (
    Adapter,
    Call,
    ConfigError,
    Dialect,
    Failure,
    JSONTap,
    Offer,
    ProviderConfig,
    ResponseHead,
    Secret,
    SSETap,
    Tap,
    UpstreamRequest,
    Usage,
    parse_base_url,
    request_headers,
)

KEY = "sk-the-operators-own"
CONFIG = ProviderConfig(name="p", base_url="https://h.example/v1", api_key=Secret(KEY), extra={})


class Sound:
    ID: ClassVar[str] = "sound"
    API: ClassVar[int] = 1
    dialects = frozenset({Dialect.OPENAI_CHAT})

    def configure(self, config: ProviderConfig) -> None:
        assert config.api_key is not None
        if config.extra:
            raise ConfigError("is not known", param=min(config.extra))
        self.key = config.api_key.reveal()
        self.origin, self.path = parse_base_url(config.base_url or "https://h.example")

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        own = [(b"authorization", b"Bearer " + self.key.encode())]
        return UpstreamRequest(
            method=b"POST",
            origin=self.origin,
            target=self.path + call.path,
            headers=request_headers(call.headers, own=own),
            body=call.body,
        )

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        if (head.header(b"content-type") or b"").startswith(b"text/event-stream"):
            return SSETap(call.dialect)
        return JSONTap(call.dialect)

    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        blame = {401: "key", 403: "key", 429: "provider"}.get(head.status, "caller")
        return Failure(blame="provider" if head.status >= 500 else blame)


class Framing(Sound):
    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        sent = super().prepare(call, offer)
        return msgspec.structs.replace(sent, headers=[*sent.headers, (b"content-length", b"7")])


class Shouting(Sound):
    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        sent = super().prepare(call, offer)
        return msgspec.structs.replace(sent, headers=[*sent.headers, (b"X-Name", b"7")])


class Forwarding(Sound):
    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        return msgspec.structs.replace(super().prepare(call, offer), headers=call.headers)


class InTheTarget(Sound):
    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        sent = super().prepare(call, offer)
        return msgspec.structs.replace(sent, target=sent.target + b"?key=" + self.key.encode())


class Counting(Sound):
    count = 0

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        Counting.count += 1
        sent = super().prepare(call, offer)
        return msgspec.structs.replace(sent, target=b"%b?n=%d" % (sent.target, Counting.count))


class Changing(Sound):
    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        call.headers.append((b"x-seen", b"1"))
        return super().prepare(call, offer)


class _Tap:
    rewrites = True
    content_type = None
    failure = None
    errored = False
    mid_event = False

    def __init__(self) -> None:
        self.complete = False
        self.kept = b""

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        self.complete = True
        return b""

    def usage(self) -> Usage | None:
        return None

    def delivered(self) -> Usage:
        return Usage()


class _Keeping(_Tap):
    def feed(self, data: bytes) -> bytes:
        self.kept += data
        return data


class _Hasty(_Tap):
    def feed(self, data: bytes) -> bytes:
        self.complete = True
        return data


class _Strict(_Tap):
    def feed(self, data: bytes) -> bytes:
        for line in data.splitlines():
            if line.startswith(b"data: {"):
                self.complete = b"stop" in line
                msgspec.json.decode(line[6:])
        return data


class _Shared(_Tap):
    held: ClassVar[list[bytes]] = []

    def feed(self, data: bytes) -> bytes:
        self.held.append(data)
        return b""

    def end(self) -> bytes:
        out = b"".join(self.held)
        self.held.clear()
        return out


class _Adding(_Tap):
    def feed(self, data: bytes) -> bytes:
        return data + b"!"


class Keeping(Sound):
    def tap(self, call: Call, head: ResponseHead) -> Tap:
        return _Keeping()


class Hasty(Sound):
    def tap(self, call: Call, head: ResponseHead) -> Tap:
        return _Hasty()


class Strict(Sound):
    def tap(self, call: Call, head: ResponseHead) -> Tap:
        return _Strict()


class Shared(Sound):
    def tap(self, call: Call, head: ResponseHead) -> Tap:
        return _Shared()


class Adding(Sound):
    def tap(self, call: Call, head: ResponseHead) -> Tap:
        return _Adding()


class Choosy(Sound):
    def tap(self, call: Call, head: ResponseHead) -> Tap:
        kind = dict(head.headers)[b"content-type"]
        return SSETap(call.dialect) if kind.startswith(b"text/event-stream") else JSONTap(call.dialect)


class Trusting(Sound):
    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        return Failure(blame="caller", message=msgspec.json.decode(body)["error"]["message"])


class Telling(Sound):
    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        return msgspec.structs.replace(super().classify(head, body), detail=body[:500].decode("latin-1"))


class Eternal(Sound):
    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        try:
            wait_s = float(head.header(b"retry-after") or b"0")
        except ValueError:
            wait_s = None
        return msgspec.structs.replace(super().classify(head, body), retry_after_s=wait_s)


class Blaming(Sound):
    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        return Failure(blame="caller")


class Careless(Sound):
    def configure(self, config: ProviderConfig) -> None:
        super().configure(msgspec.structs.replace(config, extra={}))


class Unnamed(Sound):
    def configure(self, config: ProviderConfig) -> None:
        if config.extra:
            raise ConfigError("something is not known")
        super().configure(config)


class Talkative(Sound):
    def __repr__(self) -> str:
        return f"Talkative({self.__dict__})"


#: Which fault finds it, and some words of what that says.
BROKEN: dict[type[Adapter], tuple[str, str]] = {
    Framing: ("manners", "b'content-length' is written by"),
    Shouting: ("manners", "no header name in lower case"),
    Forwarding: ("credentials", "the caller's credential is sent on"),
    InTheTarget: ("credentials", "its target"),
    Counting: ("purity", "prepared in two ways"),
    Changing: ("purity", "changed the caller's headers"),
    Adding: ("cut", "no beginning of the whole"),
    Hasty: ("cut", "complete "),
    Strict: ("garbage", "feed raised DecodeError"),
    Keeping: ("oversized", "an event that does not end"),
    Shared: ("side by side", "mixed up"),
    Choosy: ("odd heads", "KeyError"),
    Trusting: ("errors", "classify raised"),
    Telling: ("errors", "the provider's key is in the Failure"),
    Eternal: ("errors", "no number of seconds"),
    Blaming: ("verdicts", "is blamed on caller"),
    Careless: ("unknown keys", "taken in silence"),
    Unnamed: ("unknown keys", "as param None"),
    Talkative: ("secrets", "in its repr"),
}
