"""Rows, the tables laid over them, and what the relay makes of both."""

from pathlib import Path

import pytest

from gateway.api import (
    Call,
    ConfigError,
    Dialect,
    Offer,
    Origin,
    Peek,
    ProviderConfig,
    ResponseHead,
    UpstreamRequest,
    peek,
)
from gateway.config import load
from gateway.registry import Registry, known_providers
from gateway.secret import Secret
from gateway.settings import Provider, Settings
from gateway_adapters import rows
from gateway_adapters.compatible import Compatible
from gateway_adapters.openai import OpenAI
from gateway_adapters.rows import Row

JSON = [(b"content-type", b"application/json")]


def config(name: str = "acme", base_url: str | None = None, key: str | None = "k", **extra: object) -> ProviderConfig:
    return ProviderConfig(name=name, base_url=base_url, api_key=Secret(key) if key else None, extra=extra)


def compatible(name: str = "acme", base_url: str | None = None, key: str | None = "k", **extra: object) -> Compatible:
    adapter = Compatible()
    adapter.configure(config(name, base_url, key, **extra))
    return adapter


def send(
    adapter: OpenAI,
    body: bytes = b'{"model":"m"}',
    *,
    dialect: Dialect = Dialect.OPENAI_CHAT,
    model: str = "m",
    headers: list[tuple[bytes, bytes]] = JSON,
    path: bytes = b"/chat/completions",
    query: bytes = b"",
) -> UpstreamRequest:
    seen = peek(body)
    call = Call(
        id="1",
        dialect=dialect,
        method="POST",
        path=path,
        query=query,
        headers=headers,
        body=body,
        peek=seen,
        model="m",
    )
    return adapter.prepare(call, Offer(model="m", provider="p", upstream_model=model))


@pytest.mark.parametrize("name", sorted(rows.built_in()))
def test_every_row_makes_a_provider(name: str) -> None:
    known = known_providers()[name]
    provider = Provider(adapter=known.adapter, api_key=Secret("k"))

    adapter = Registry.load(Settings(providers={name: provider})).providers[name].adapter

    assert isinstance(adapter, OpenAI)
    sent = send(adapter)
    assert known.title
    assert f"{sent.origin.scheme}://{sent.origin.host}" in known.base_url
    assert sent.target.endswith(b"/chat/completions")
    row = rows.row_of(name, {})
    assert (row.auth_header.encode(), f"{row.auth_scheme} k".strip().encode()) in sent.headers
    assert Dialect.OPENAI_OTHER in adapter.dialects


def test_the_usual_variables_are_told_apart() -> None:
    known = known_providers()

    variables = [provider.variable for provider in known.values() if provider.variable]
    assert len(set(variables)) == len(variables)
    assert known["openai"].adapter == "openai"
    assert (known["groq"].adapter, known["groq"].variable) == ("compatible", "GROQ_API_KEY")
    assert known["ollama"].variable == ""


def test_a_table_wins_over_its_row() -> None:
    adapter = compatible("groq", base_url="https://proxy.example:8443/groq/", stream_usage="native")

    sent = send(adapter, b'{"model":"m","stream":true}')

    assert sent.origin == Origin("https", "proxy.example", 8443)
    assert sent.target == b"/groq/chat/completions"
    assert sent.body == b'{"model":"m","stream":true}'
    assert Dialect.OPENAI_EMBEDDINGS not in adapter.dialects


def test_a_row_under_another_name() -> None:
    assert send(compatible("fast", row="groq")).origin.host == "api.groq.com"


def test_a_provider_without_a_row_is_its_table() -> None:
    adapter = compatible(base_url="http://[::1]:8000", key=None)

    sent = send(adapter)

    assert sent.origin == Origin("http", "::1", 8000)
    assert sent.target == b"/chat/completions"
    assert sent.headers == [*JSON, (b"accept-encoding", b"identity")]


@pytest.mark.parametrize(
    ("arguments", "param", "message"),
    [
        ({}, "base_url", "is missing"),
        ({"base_url": "api.example/v1"}, "base_url", "absolute"),
        ({"base_url": "ftp://api.example"}, "base_url", "absolute"),
        ({"base_url": "http://u:p@api.example"}, "base_url", "no credentials"),
        ({"base_url": "http://api.example/v1?x=1"}, "base_url", "query"),
        ({"base_url": "http://api.example:99999"}, "base_url", "not a URL"),
        ({"base_url": "http://api.example/ä"}, "base_url", "ASCII"),
        ({"base_url": "http://h", "steam_usage": "native"}, "steam_usage", 'did you mean "stream_usage"'),
        ({"base_url": "http://h", "stream_usage": "maybe"}, None, "maybe"),
        ({"base_url": "http://h", "drop": "store"}, None, "array"),
        ({"base_url": "http://h", "dialects": ["openai.chart"]}, None, "openai.chart"),
        ({"base_url": "http://h", "row": "gorq"}, "row", 'did you mean "groq"'),
        ({"base_url": "http://h", "row": 5}, "row", "no row"),
        ({"base_url": "http://h", "headers": {"host": "evil"}}, "headers", "can be set"),
        ({"base_url": "http://h", "headers": {"x y": "1"}}, "headers", "can be set"),
        ({"base_url": "http://h", "headers": {"x": "a\r\nb: c"}}, "headers", "printable"),
        ({"base_url": "http://h", "auth_header": "content-length"}, "auth_header", "can be set"),
        ({"base_url": "http://h", "key": "two\nlines"}, "api_key", "one line"),
        ({"name": "groq", "key": None}, "api_key", "GROQ_API_KEY"),
    ],
)
def test_a_wrong_table_is_refused(arguments: dict[str, object], param: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compatible(**arguments)  # type: ignore[arg-type]  # wrong on purpose

    assert message in caught.value.message
    assert caught.value.param == param
    assert "two" not in caught.value.message


def test_openai_takes_a_server_of_ones_own_without_a_key() -> None:
    adapter = OpenAI()
    adapter.configure(config("local", "http://127.0.0.1:9001/v1", None))

    assert send(adapter).origin == Origin("http", "127.0.0.1", 9001)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        OpenAI().configure(config("openai", None, None))


def test_the_key_is_in_one_header_and_the_callers_credentials_in_none() -> None:
    headers = [
        *JSON,
        (b"authorization", b"Bearer gw_caller"),
        (b"x-api-key", b"gw_caller"),
        (b"x-acme", b"gw_caller"),
        (b"api-key", b"gw_caller"),
        (b"cookie", b"gw_caller"),
        (b"accept-encoding", b"gzip"),
        (b"openai-project", b"caller"),
        (b"x-kept", b"1"),
    ]
    adapter = compatible(base_url="http://h", auth_header="X-Acme", auth_scheme="Token")

    sent = send(adapter, headers=headers, query=b"a=1&key=gw_caller&b=%20&API_KEY=gw_caller&c")

    assert sent.headers == [
        *JSON, (b"x-kept", b"1"), (b"accept-encoding", b"identity"), (b"x-acme", b"Token k")
    ]  # fmt: skip
    assert sent.target == b"/chat/completions?a=1&b=%20&c"


def test_a_query_of_nothing_but_keys_leaves_no_question_mark() -> None:
    assert send(compatible(base_url="http://h"), query=b"key=gw").target == b"/chat/completions"


def test_an_unchanged_body_is_the_same_object() -> None:
    adapter = compatible(base_url="http://h")
    for body in (b'{"model":"m"}', b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'):
        assert send(adapter, body).body is body


@pytest.mark.parametrize(
    ("extra", "dialect", "body", "sent"),
    [
        ({}, Dialect.OPENAI_CHAT, b'{"model":"m","stream":true}', b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'),
        ({}, Dialect.OPENAI_COMPLETIONS, b'{"stream":true,"model":"m"}', b'{"stream":true,"model":"m","stream_options":{"include_usage":true}}'),
        ({}, Dialect.OPENAI_RESPONSES, b'{"model":"m","stream":true}', b'{"model":"m","stream":true}'),
        ({}, Dialect.OPENAI_CHAT, b'{"messages":[]}', b'{"messages":[],"model":"m"}'),
        ({}, Dialect.OPENAI_OTHER, b'{"name":"x"}', b'{"name":"x"}'),
        ({"drop": ["store"]}, Dialect.OPENAI_CHAT, b'{"model":"m","store":true}', b'{"model":"m"}'),
        ({"rename": {"seed": "random_seed"}}, Dialect.OPENAI_CHAT, b'{"model":"m","seed":1}', b'{"model":"m","random_seed":1}'),
        ({"rename": {"seed": "random_seed"}}, Dialect.OPENAI_CHAT, b'{"model":"m","s\\u0065ed":1}', b'{"model":"m","random_seed":1}'),
        ({"rename": {"seed": "random_seed"}}, Dialect.OPENAI_CHAT, b'{"model": "m" }', b'{"model": "m" }'),
        ({"stream_usage": "native"}, Dialect.OPENAI_CHAT, b'{"model":"m","stream":true}', b'{"model":"m","stream":true}'),
        ({"stream_usage": "reject"}, Dialect.OPENAI_CHAT, b'{"model":"m","stream_options":{}}', b'{"model":"m"}'),
        ({"stream_usage": "reject"}, Dialect.OPENAI_RESPONSES, b'{"model":"m","stream_options":{}}', b'{"model":"m","stream_options":{}}'),
        ({"model_prefix": "a/b/"}, Dialect.OPENAI_CHAT, b'{"model":"m"}', b'{"model":"a/b/m"}'),
    ],
)  # fmt: skip
def test_bytes_change_only_where_they_must(
    extra: dict[str, object], dialect: Dialect, body: bytes, sent: bytes
) -> None:
    assert send(compatible(base_url="http://h", **extra), body, dialect=dialect).body == sent


def test_what_a_row_drops_is_told_where_it_was_there() -> None:
    adapter = compatible(base_url="http://h", drop=["store", "user"], stream_usage="reject")

    said = send(adapter, b'{"model":"m","user":"u","store":null,"stream_options":{"include_usage":true}}')
    assert said.body == b'{"model":"m"}'
    assert said.dropped == ("user", "stream_options")
    untouched = b'{"model":"m"}'
    assert send(adapter, untouched).body is untouched
    assert send(adapter, untouched).dropped == ()


def test_a_prefix_is_put_before_a_bare_name_only() -> None:
    adapter = compatible(base_url="http://h", model_prefix="a/")

    assert send(adapter, model="other/m").body == b'{"model":"other/m"}'


def test_a_request_without_a_model_is_relayed_as_it_is() -> None:
    adapter = compatible(base_url="http://h")
    call = Call(
        id="1", dialect=Dialect.OPENAI_OTHER, method="GET", path=b"/files/a%2Fb", query=b"", headers=[], body=b"",
        peek=Peek(), model="",
    )  # fmt: skip

    sent = adapter.prepare(call, Offer(model="", provider="p", upstream_model=""))

    assert (sent.method, sent.target, sent.body) == (b"GET", b"/files/a%2Fb", b"")


@pytest.mark.parametrize(
    ("content_type", "tap"),
    [
        (b"text/event-stream", "SSETap"),
        (b"Text/Event-Stream; charset=utf-8", "SSETap"),
        (b"application/json", "UnstreamedTap"),
        (b"application/problem+json", "UnstreamedTap"),
        (b"audio/mpeg", "PassTap"),
        (None, "PassTap"),
    ],
)
def test_the_answers_own_type_says_how_it_is_watched(content_type: bytes | None, tap: str) -> None:
    body = b'{"model":"m","stream":true}'
    call = Call(
        id="1", dialect=Dialect.OPENAI_CHAT, method="POST", path=b"/chat/completions", query=b"", headers=JSON,
        body=body, peek=peek(body), model="m",
    )  # fmt: skip
    headers = [] if content_type is None else [(b"content-type", content_type)]

    made = compatible(base_url="http://h").tap(call, ResponseHead(200, headers))

    assert type(made).__name__ == tap


@pytest.mark.parametrize(("row", "output_tokens"), [("gemini-openai", 125), ("groq", 5)])
@pytest.mark.parametrize("streamed", [False, True])
def test_gemini_s_thoughts_are_in_its_total_and_are_charged(row: str, output_tokens: int, *, streamed: bool) -> None:
    adapter = compatible(row)
    body = b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":135}}'
    asked = b'{"model":"m","stream":true}'
    sent = b"data: " + body + b"\n\ndata: [DONE]\n\n" if streamed else body
    call = Call(
        id="1",
        dialect=Dialect.OPENAI_CHAT,
        method="POST",
        path=b"/chat/completions",
        query=b"",
        headers=JSON,
        body=asked,
        peek=peek(asked),
        model="m",
    )
    # A stream that was asked for may come as one, or whole.
    kind = b"text/event-stream" if streamed else b"application/json"
    tap = adapter.tap(call, ResponseHead(status=200, headers=[(b"content-type", kind)]))
    tap.feed(sent)
    tap.end()

    usage = tap.usage()
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (10, output_tokens)


def test_the_examples_in_config_are_tables_that_load() -> None:
    path = Path(__file__).parents[2] / "config" / "providers.toml"
    keys = ("GROQ_KEY_OF_TEAM_A", "GROQ_KEY_OF_TEAM_B", "AZURE_OPENAI_API_KEY", "ACME_KEY", "GOOGLE_SERVICE_ACCOUNT")
    keys += ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

    settings = load(str(path), environ=dict.fromkeys(keys, "k"), known=known_providers()).settings
    loaded = Registry.load(settings)

    for name in ("groq", "groq-spare", "rack", "azure", "acme"):
        adapter = loaded.providers[name].adapter
        assert isinstance(adapter, OpenAI)
        assert send(adapter).target.endswith(b"/v1/chat/completions")
    assert set(Row.__struct_fields__) - {"title", "variable", "base_url"} == settings.providers["acme"].extra.keys()
