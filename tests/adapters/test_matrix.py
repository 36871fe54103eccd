"""Every dialect that callers speak, at every family of adapters, with everything that can happen on the way.

Each cell is an exchange with a scripted provider (`scripted.py`), put together as the gateway's stages do it: relayed
where the provider speaks the caller's dialect, translated by the adapter, or carried over a bridge. It works, or there
is no such endpoint. Bytes alone, no sockets.

`python tests/adapters/test_matrix.py` writes what was found to `adapters/MATRIX.md`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import pytest

from gateway.api import Call, Offer, ResponseHead, Tap, UpstreamRequest, Usage
from gateway.bridges import BRIDGES, COUNTERS, Bridge, reach
from gateway.errors import GatewayError
from gateway.registry import Provider, Registry
from gateway.routing.holdback import status_of
from gateway.routing.refusal import error_of, refusal
from gateway.secret import Secret
from gateway.settings import Provider as ProviderSettings
from gateway.settings import Settings
from gateway.wire.dialects import COUNT_DIALECTS, Dialect
from tests.adapters.callers import DIALOGUES, FOUND, MODEL, PICTURE, PROPERTY, Dialogue, Said
from tests.adapters.scripted import (
    ARGUMENTS,
    BROKEN,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    TEXT,
    TOOL,
    VECTOR,
    Answer,
    answer,
    is_streamed,
)
from tests.adapters.scripted import (
    REFUSED as REFUSAL,
)

TABLE: Final = Path(__file__).parents[2] / "adapters" / "MATRIX.md"
SCENARIOS: Final = {
    "plain": "a text, whole",
    "stream": "a text, as a stream",
    "tools": "a tool's result goes in, the call of a tool comes out; both ways",
    "image": "a picture goes in",
    "schema": "the answer's JSON schema goes in",
    "error before": "the provider refuses",
    "error inside": "an error in a stream that began well",
    "cut": "the provider's connection breaks in the middle",
}
_KEY: Final = "sk-operator-0123456789"


def _table(adapter: str, **extra: object) -> ProviderSettings:
    base_url = extra.pop("base_url", "")
    assert isinstance(base_url, str)
    return ProviderSettings(adapter=adapter, api_key=Secret(_KEY), base_url=base_url, extra=extra)


#: One provider of each family, and what it calls the model where that matters to how it is asked.
FAMILIES: Final = {
    "openai": (_table("openai"), "gpt-5-mini"),
    "anthropic": (_table("anthropic"), "claude-sonnet-4-5"),
    "google": (_table("google"), "gemini-3-pro"),
    "vertex": (_table("vertex"), "gemini-3-pro"),
    "bedrock": (_table("bedrock", region="eu-central-1"), "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    "cohere": (_table("cohere"), "command-a-03-2025"),
    "azure": (_table("azure", base_url="https://res.openai.azure.com"), "my-gpt"),
    "compatible": (_table("compatible", base_url="http://127.0.0.1:8000/v1"), "llama"),
}
#: Embeddings are other models.
EMBEDDERS: Final = {"bedrock": "amazon.titan-embed-text-v2:0"}

NO_ENDPOINT: Final = "n/a"
NO_QUESTION: Final = ""


@pytest.fixture(scope="module", name="providers")
def _providers() -> dict[str, Provider]:
    return load()


def load() -> dict[str, Provider]:
    return Registry.load(Settings(providers={name: table for name, (table, _) in FAMILIES.items()})).providers


class Exchange(NamedTuple):
    """One request on its way: what `stages/attempt.py` makes of a call, and `stages/relay.py` of the answer."""

    provider: Provider
    call: Call
    #: As the adapter gets it.
    spoken: Call
    bridge: Bridge | None
    request: UpstreamRequest

    @classmethod
    def open(cls, provider: Provider, call: Call, model: str = "") -> "Exchange":
        spoken, bridge = call, None
        embeds = call.dialect in (Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBED)
        model = model or FAMILIES[provider.name][1]
        if embeds:
            model = EMBEDDERS.get(provider.name, model)
        if not provider.takes(call.dialect, model):
            bridge = BRIDGES[call.dialect]
            spoken = bridge.open(call, provider.extensions).call
        offer = Offer(model=MODEL, provider=provider.name, upstream_model=model)
        return cls(provider, call, spoken, bridge, provider.adapter.prepare(spoken, offer))

    @property
    def native(self) -> bool:
        return self.call.dialect in self.provider.native

    @property
    def how(self) -> str:
        if self.native:
            return "relayed"
        return "translated" if self.bridge is None else "bridged"

    def tap(self, head: ResponseHead) -> Tap:
        tap = self.provider.adapter.tap(self.spoken, head)
        return tap if self.bridge is None else self.bridge.tap(self.call, head, tap)

    def refusal(self, head: ResponseHead, body: bytes) -> GatewayError:
        return refusal(self.provider.adapter, head, body, native=self.native)

    def failed(self, tap: Tap) -> GatewayError | None:
        """The error that a translated answer turned out to be."""
        failure = tap.failure
        if failure is None:
            return None
        if failure.body:
            head = ResponseHead(status_of(failure.body), [(b"content-type", b"application/json")])
            return refusal(self.provider.adapter, head, failure.body, native=False)
        return error_of(failure, ResponseHead(failure.status or 502, []))


def cut_up(given: Answer) -> Iterator[list[bytes]]:
    """The same body in different pieces: as it was sent, whole, and so that nothing fits."""
    yield given.pieces
    yield [given.body]
    yield [given.body[start : start + 7] for start in range(0, len(given.body), 7)]


def try_cell(provider: Provider, dialogue: Dialogue, scenario: str) -> str:
    """What becomes of it; what should not be is an AssertionError."""
    question, streams = asked(dialogue, scenario)
    if not streams:
        return NO_QUESTION
    found: set[str] = set()
    for stream in streams:
        call = dialogue.call(question, stream=stream)
        if call.dialect not in reach(provider.served):
            return NO_ENDPOINT
        if call.dialect in COUNT_DIALECTS and call.dialect not in provider.served:
            found.add(_estimated(call, dialogue, scenario))
            continue
        exchange = Exchange.open(provider, call)
        _CHECKS.get(scenario, _check_whole)(exchange, dialogue, scenario)
        found.add(exchange.how)
    [outcome] = found
    return outcome


def asked(dialogue: Dialogue, scenario: str) -> tuple[str, list[bool]]:
    """The question of a scenario, and whether it is asked with a stream, without one, or both."""
    question = scenario if scenario in ("tools", "image", "schema") else "plain"
    both = [stream for stream in (False, True) if dialogue.streams in (None, stream)]
    if dialogue.streams is False and dialogue.title.endswith(("embeddings", "okens", "embedContent")):
        # Neither tools nor errors inside: there is nothing but one number, or one vector.
        return question, both if scenario in ("plain", "error before", "cut") else []
    if question not in dialogue.questions:
        return question, []
    wanted = {"plain": [False], "stream": [True], "error inside": [True], "cut": [True], "error before": both}
    return question, [stream for stream in wanted.get(scenario, both) if stream in both]


def _estimated(call: Call, dialogue: Dialogue, scenario: str) -> str:
    if scenario != "plain":
        # Nobody is asked, so nothing can go wrong with it.
        return NO_QUESTION
    assert int(dialogue.read(COUNTERS[call.dialect](call)).text) > 0
    return "estimated"


# -- what has to hold ------------------------------------------------------------------------------------------------


def _read(dialogue: Dialogue, exchange: Exchange, body: bytes) -> Said:
    reader = dialogue.read_stream if is_streamed(exchange.request) else dialogue.read
    assert reader is not None
    return reader(body)


def _check_whole(exchange: Exchange, dialogue: Dialogue, scenario: str) -> None:
    """The question reaches the provider whole, and its answer the caller."""
    request = exchange.request
    assert isinstance(request.body, bytes)
    wanted = {"tools": [TOOL, FOUND], "image": [PICTURE], "schema": [PROPERTY]}.get(scenario, [])
    for text in wanted:
        assert text.encode() in request.body
    assert _KEY.encode() not in request.body
    given = answer(request, "tool" if scenario == "tools" else "text")
    for pieces in cut_up(given):
        tap = exchange.tap(given.head)
        out = b"".join([*map(tap.feed, pieces), tap.end()])
        assert not exchange.native or out == given.body or tap.rewrites
        said = _read(dialogue, exchange, out)
        assert said.finished
        assert tap.complete
        assert not tap.mid_event
        assert tap.failure is None
        _check_said(exchange.call.dialect, said, scenario)
        _check_usage(exchange.call.dialect, tap.usage(), scenario)


def _check_said(dialect: Dialect, said: Said, scenario: str) -> None:
    if dialect in (Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBED):
        assert said.text == str(VECTOR)
    elif dialect in COUNT_DIALECTS:
        assert said.text == str(INPUT_TOKENS)
    elif scenario == "tools":
        assert (said.tool, said.arguments) == (TOOL, "".join(ARGUMENTS))
    else:
        assert said.text == "".join(TEXT)


def _check_usage(dialect: Dialect, usage: Usage | None, scenario: str) -> None:
    if dialect in COUNT_DIALECTS or dialect is Dialect.GEMINI_EMBED:
        return
    if dialect is Dialect.OPENAI_EMBEDDINGS:
        # The Gemini API does not say how much it embedded.
        assert usage is None or usage.input_tokens == INPUT_TOKENS
        return
    assert usage is not None, scenario
    assert (usage.input_tokens, usage.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)


def _check_refusal(exchange: Exchange, dialogue: Dialogue, scenario: str) -> None:
    """The caller hears what the provider said, byte for byte where it is in the caller's dialect."""
    given = answer(exchange.request, "refusal")
    error = exchange.refusal(given.head, given.body)
    assert error.status == 400
    body = getattr(error, "body", None)
    if exchange.native:
        assert body == given.body
    else:
        assert body is None
        assert error.message == REFUSAL
        assert error.source == "caller"


def _check_break(exchange: Exchange, dialogue: Dialogue, scenario: str) -> None:
    """What came before it stays whole, nothing looks finished, and what the provider said is told."""
    given = answer(exchange.request, "break")
    for pieces in cut_up(given):
        tap = exchange.tap(given.head)
        out = b""
        for piece in pieces:
            out += tap.feed(piece)
            if tap.failure is not None:
                break
        said = _read(dialogue, exchange, out)
        assert said.text == TEXT[0]
        assert not said.finished
        assert not tap.mid_event
        tap.usage()
        if exchange.native:
            assert out == given.body
            assert tap.errored
            assert said.error == BROKEN
            continue
        error = exchange.failed(tap)
        assert error is not None
        assert not tap.complete
        assert not said.error, "the gateway ends the stream, not the tap"
        assert error.message == BROKEN
        assert error.status >= 500


def _check_cut(exchange: Exchange, dialogue: Dialogue, scenario: str) -> None:
    """A cut answer does not look finished, and what was delivered of it is estimated."""
    given = answer(exchange.request, "text")
    for share in (1, 3, 5, 7):
        kept = given.body[: len(given.body) * share // 10]
        tap = exchange.tap(given.head)
        out = tap.feed(kept)
        assert not tap.complete
        if exchange.native:
            assert out == kept or tap.rewrites
            continue
        if not is_streamed(exchange.request):
            assert out == b"", "nothing of a whole answer leaves before it is whole"
            continue
        assert not tap.mid_event
        said = _read(dialogue, exchange, out)
        assert not said.finished
        assert "".join(TEXT).startswith(said.text)
        # The event that only says who speaks is taken for a token, as a relayed one is.
        assert tap.delivered().output_tokens >= (1 if said.text else 0)
        assert said.text or tap.delivered().output_tokens <= 1


_CHECKS: Final[dict[str, Callable[[Exchange, Dialogue, str], None]]] = {
    "error before": _check_refusal,
    "error inside": _check_break,
    "cut": _check_cut,
}


# -- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda dialogue: dialogue.title.replace(" ", "-"))
@pytest.mark.parametrize("family", FAMILIES)
def test_it_works_or_there_is_no_such_endpoint(
    family: str, dialogue: Dialogue, scenario: str, providers: dict[str, Provider]
) -> None:
    outcome = try_cell(providers[family], dialogue, scenario)

    assert outcome in {"relayed", "translated", "bridged", "estimated", NO_ENDPOINT, NO_QUESTION}


def test_what_callers_of_anthropic_want_cached_is_cached_on_bedrock(providers: dict[str, Provider]) -> None:
    kept = {"cache_control": {"type": "ephemeral"}}
    [dialogue] = [dialogue for dialogue in DIALOGUES if dialogue.title == "Anthropic messages"]
    system = [{"type": "text", "text": "Be brief.", **kept}]
    asked = msgspec.structs.replace(
        dialogue, questions={"plain": {**dialogue.questions["tools"], "system": system}}
    ).call("plain", stream=False)

    exchange = Exchange.open(providers["bedrock"], asked, "eu.amazon.nova-pro-v1:0")

    sent = msgspec.json.decode(exchange.request.body)
    assert sent["system"] == [{"text": "Be brief."}, {"cachePoint": {"type": "default"}}]
    assert exchange.request.dropped == ()


def test_the_table_in_the_docs_is_what_is_found(providers: dict[str, Provider]) -> None:
    assert TABLE.read_text() == render(providers), "run python tests/adapters/test_matrix.py"


def render(providers: dict[str, Provider]) -> str:
    lines = [
        "# Which dialect works with which provider",
        "",
        "Written by `python tests/adapters/test_matrix.py`, which tries each cell with a scripted provider; do not edit.",
        "",
        "- **relayed**: the provider speaks the caller's dialect, and the bytes pass as they are.",
        "- **translated**: the adapter turns the dialect into its provider's and back.",
        "- **bridged**: the gateway makes an OpenAI call of it (chat, embeddings) for the adapter to relay or translate.",
        "- **estimated**: the provider does not count; the gateway answers with its own estimate, and asks nobody.",
        "- **n/a**: there is no such endpoint at this provider; the caller is told so with a 400.",
        "- Empty: the dialect has no such thing.",
        "",
        "The columns:",
        "",
        *(f"- **{name}**: {meaning}." for name, meaning in SCENARIOS.items()),
    ]
    for family, provider in providers.items():
        lines += ["", f"## {family}", "", f"| | {' | '.join(SCENARIOS)} |", "|---" * (len(SCENARIOS) + 1) + "|"]
        for dialogue in DIALOGUES:
            cells = [try_cell(provider, dialogue, scenario) for scenario in SCENARIOS]
            lines.append(f"| {' | '.join([dialogue.title, *cells])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(render(load()))
