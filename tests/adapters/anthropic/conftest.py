"""The adapter as these tests use it."""

from typing import Any

import msgspec
import pytest

from gateway.api import Call, Dialect, Offer, ProviderConfig, ResponseHead, Tap, UpstreamRequest, peek
from gateway.secret import Secret
from gateway_adapters.anthropic import Anthropic

SSE = ResponseHead(200, [(b"content-type", b"text/event-stream")])
JSON = ResponseHead(200, [(b"content-type", b"application/json")])


class Chat:
    """A chat client's way to Anthropic and back."""

    def __init__(self) -> None:
        self.adapter = Anthropic()
        self.adapter.configure(
            ProviderConfig(name="anthropic", base_url=None, api_key=Secret("sk-ant-operator"), extra={})
        )

    def call(self, body: object) -> Call:
        encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return Call(
            id="0",
            dialect=Dialect.OPENAI_CHAT,
            method="POST",
            path=b"/chat/completions",
            query=b"",
            headers=[],
            body=encoded,
            peek=peek(encoded),
            model="m",
        )

    def send(self, body: object, *, model: str = "claude-opus-5", bound: int | None = None) -> UpstreamRequest:
        offer = Offer(model="m", provider="anthropic", upstream_model=model, output_tokens_max=bound)
        return self.adapter.prepare(self.call(body), offer)

    def sent(self, body: object, **options: Any) -> dict[str, Any]:
        """The body that Anthropic gets."""
        made: dict[str, Any] = msgspec.json.decode(self.send(body, **options).body)
        return made

    def tap(self, *, stream: bool = True, usage: bool = False, **members: object) -> Tap:
        options = {"stream_options": {"include_usage": True}} if usage else {}
        body = {"model": "m", "messages": [], "stream": stream, **options, **members}
        return self.adapter.tap(self.call(body), SSE if stream else JSON)


@pytest.fixture
def chat() -> Chat:
    return Chat()
