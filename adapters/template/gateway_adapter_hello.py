"""Hello, a made-up provider: it speaks OpenAI's chat completions, but not quite.

It wants its key in a header of its own and a region in the query, and it knows its models as `hello/NAME`. An adapter
says what differs and nothing else: sockets, retries, streaming, limits and billing are the gateway's.
"""

from typing import ClassVar

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
    SSETap,
    Tap,
    UpstreamRequest,
    parse_base_url,
    request_headers,
    rewrite,
)

REGIONS = ("eu", "us")

# What a status is taken for; anything else is the caller's below 500 and the provider's from there on.
BLAME = {401: "key", 402: "key", 403: "key", 408: "provider", 429: "provider"}


class Hello:
    """One instance is made for each configured provider."""

    ID: ClassVar[str] = "hello"
    # The number, not gateway.api.API_VERSION: it says what this code was written for.
    API: ClassVar[int] = 1

    dialects = frozenset({Dialect.OPENAI_CHAT})

    def configure(self, config: ProviderConfig) -> None:
        """Check everything now: an error here stops the start, with the provider's name before the message."""
        if config.api_key is None:
            raise ConfigError("is missing", param="api_key")
        if unknown := config.extra.keys() - {"region"}:
            raise ConfigError("is not a key of this adapter", param=min(unknown))
        region = config.extra.get("region", "eu")
        if region not in REGIONS:
            raise ConfigError(f"must be one of {', '.join(REGIONS)}", param="region")
        self._origin, self._path = parse_base_url(config.base_url or "https://api.hello.example")
        self._query = f"?region={region}".encode()
        # The answer is asked for uncompressed: a compressed stream arrives in lumps.
        self._headers = [(b"x-hello-key", config.api_key.reveal().encode()), (b"accept-encoding", b"identity")]

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        """`rewrite` changes the spans it must and leaves every other byte as it came."""
        asks = call.peek.stream and not call.peek.include_usage
        body = rewrite(call.body, call.peek, model=f"hello/{offer.upstream_model}", include_usage=asks)
        return UpstreamRequest(
            method=call.method.encode(),
            origin=self._origin,
            target=self._path + call.path + self._query,
            # It leaves the caller's credentials, cookies and connection headers behind.
            headers=request_headers(call.headers, own=self._headers, drop=frozenset({b"x-hello-key"})),
            body=body,
        )

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        """What the answer is, is told by its content-type: a stream that was asked for may still be refused as JSON."""
        if (head.header(b"content-type") or b"").startswith(b"text/event-stream"):
            # A usage chunk that the caller did not ask for is taken out again.
            return SSETap(call.dialect, strip_usage=not call.peek.include_usage)
        return JSONTap(call.dialect)

    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        """Whose fault a refusal is decides what the gateway does next."""
        if b"context_length_exceeded" in body:
            return Failure(blame="context")
        seconds = head.header(b"retry-after") or b""
        return Failure(
            blame=BLAME.get(head.status, "provider" if head.status >= 500 else "caller"),
            retry_after_s=float(seconds) if seconds.isdigit() else None,
            detail=f"status {head.status}",
        )


# A type checker fails here, in your package, if the shape is wrong.
_: type[Adapter] = Hello
