"""What the wire layer costs for each request and each chunk, in microseconds.

Run `python -m benchmarks.micro`. Each figure is the best of many short rounds on one core, so that what else runs on
the machine is mostly left out. These are the figures that the layer's shortcuts are justified by; the end-to-end
ones, beside nginx, come from `benchmarks.run`.
"""

import argparse
import timeit
from collections.abc import Callable

from gateway.api import Call, ProviderConfig, ResponseHead, Tap
from gateway.secret import Secret
from gateway.wire.dialects import Dialect
from gateway.wire.estimate import estimate_input_tokens
from gateway.wire.form import peek_form
from gateway.wire.headers import Headers, request_headers, response_headers
from gateway.wire.peek import peek, rewrite
from gateway.wire.sse import FrameScanner
from gateway.wire.sse_tap import SSETap
from gateway.wire.taps import JSONTap
from gateway_adapters.anthropic import Anthropic

CHAT = (
    b'{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are a helpful assistant, answer briefly."},'
    b'{"role":"user","content":"What is the capital of France? Please answer in one word, nothing else, please."}],'
    b'"stream":true,"max_tokens":256,"temperature":0.7}'
)
SPACED = CHAT.replace(b'":', b'": ').replace(b',"', b', "')
NESTED = (
    CHAT[:-1]
    + b',"tools":['
    + b",".join([b'{"type":"function","function":{"name":"f","model":{"n":1}}}'] * 40)
    + b"]}"
)
PICTURE = CHAT.replace(b"What is", b"data:image/png;base64," + b"QUJDabcdxyz01u2/" * 655_360)
EVENT = (
    b'data: {"id":"chatcmpl-AbCdEf0123456789","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":" the"},"logprobs":null,'
    b'"finish_reason":null}],"usage":null}\n\n'
)
REPORT = (
    b'data: {"id":"chatcmpl-AbCdEf0123456789","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29}}\n\n'
)
DELTA = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":2,'
    b'"item_id":"msg_1","output_index":0,"content_index":0,"delta":"Hi","logprobs":[]}\n\n'
)
PIECE = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
    b'"text":" the"}}\n\n'
)
OPENING = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","model":"claude-opus-5","usage":'
    b'{"input_tokens":20,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text"}}\n\n'
)
ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1790000000,"model":"gpt-4o-mini","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Paris, which has been the capital for most of a thousand years."},'
    b'"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29,'
    b'"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}'
)
FORM = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--XX--\r\n'
REQUEST: Headers = [
    (b"host", b"gateway.example"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"OpenAI/Python 3.54.0"),
    *[(b"x-stainless-%b" % name, b"1") for name in (b"lang", b"os", b"arch", b"runtime", b"async", b"retry-count")],
    (b"authorization", b"Bearer gw_0123456789"),
    (b"x-forwarded-for", b"10.0.0.1"),
    (b"content-length", b"295"),
]
RESPONSE: Headers = [
    (b"date", b"Wed, 21 Oct 2026 07:28:00 GMT"),
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"transfer-encoding", b"chunked"),
    (b"connection", b"keep-alive"),
    (b"openai-organization", b"o"),
    (b"openai-processing-ms", b"12"),
    (b"openai-version", b"2020-10-01"),
    *[(b"x-ratelimit-%b" % name, b"1") for name in (b"limit-requests", b"limit-tokens", b"remaining-tokens")],
    (b"strict-transport-security", b"max-age=1"),
    (b"x-request-id", b"req_1"),
    (b"set-cookie", b"__cf_bm=1"),
    (b"server", b"cloudflare"),
    (b"cf-ray", b"1"),
]


def json_answer() -> None:
    tap = JSONTap(Dialect.OPENAI_CHAT)
    tap.feed(ANSWER)
    tap.end()
    tap.usage()


def translating_tap() -> Tap:
    """The tap of a chat client's stream from Anthropic, in the middle of a text."""
    adapter = Anthropic()
    adapter.configure(ProviderConfig(name="anthropic", base_url=None, api_key=Secret("sk-ant-x"), extra={}))
    call = Call(
        id="",
        dialect=Dialect.OPENAI_CHAT,
        method="POST",
        path=b"/chat/completions",
        query=b"",
        headers=[],
        body=CHAT,
        peek=peek(CHAT),
        model="",
    )
    tap = adapter.tap(call, ResponseHead(200, [(b"content-type", b"text/event-stream")]))
    tap.feed(OPENING)
    return tap


def cases() -> list[tuple[str, Callable[[], object], int]]:
    """Name, what is timed, and how many operations one call is."""
    chat, stripping = SSETap(Dialect.OPENAI_CHAT), SSETap(Dialect.OPENAI_CHAT, strip_usage=True)
    responses, halves = SSETap(Dialect.OPENAI_RESPONSES), SSETap(Dialect.OPENAI_CHAT)
    scanner = FrameScanner()
    peeked = peek(CHAT)
    anthropic, translating = SSETap(Dialect.ANTHROPIC_MESSAGES), translating_tap()
    pieces = PIECE * 50
    burst, first, second = EVENT * 50, EVENT[:100], EVENT[100:]
    return [
        (f"peek, chat body of {len(CHAT)} bytes", lambda: peek(CHAT), 1),
        ("peek, the same with spaces", lambda: peek(SPACED), 1),
        (f"peek, {len(NESTED)} bytes with the names nested", lambda: peek(NESTED), 1),
        ("peek, 10 MB picture", lambda: peek(PICTURE), 1),
        ("peek, form", lambda: peek_form(FORM, b"multipart/form-data; boundary=XX"), 1),
        ("rewrite, model", lambda: rewrite(CHAT, peeked, model="gpt-4o-mini-2024-07-18"), 1),
        ("rewrite, model and usage", lambda: rewrite(CHAT, peeked, model="gpt-x", include_usage=True), 1),
        ("estimate, chat body", lambda: estimate_input_tokens(CHAT), 1),
        ("estimate, 10 MB picture", lambda: estimate_input_tokens(PICTURE), 1),
        (f"tap, chat event of {len(EVENT)} bytes", lambda: chat.feed(EVENT), 1),
        ("tap, the same while usage is taken out", lambda: stripping.feed(EVENT), 1),
        ("tap, chat event in a burst of 50", lambda: chat.feed(burst), 50),
        ("tap, chat event in two pieces", lambda: (halves.feed(first), halves.feed(second)), 1),
        ("tap, usage chunk taken out", lambda: stripping.feed(REPORT), 1),
        ("tap, responses delta", lambda: responses.feed(DELTA), 1),
        (f"tap, Anthropic's event of {len(PIECE)} bytes", lambda: anthropic.feed(PIECE), 1),
        ("tap, the same turned into a chat event", lambda: translating.feed(PIECE), 1),
        ("tap, the same turned in a burst of 50", lambda: translating.feed(pieces), 50),
        (f"tap, JSON answer of {len(ANSWER)} bytes with its usage", json_answer, 1),
        ("frame scanner, chat event", lambda: scanner.feed(EVENT), 1),
        (f"headers to a provider, {len(REQUEST)}", lambda: request_headers(REQUEST), 1),
        (f"headers to a caller, {len(RESPONSE)}", lambda: response_headers(RESPONSE), 1),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="short rounds for each figure; the best one counts")
    rounds: int = parser.parse_args().rounds
    for name, run, operations in cases():
        timer = timeit.Timer(run)
        once_s = min(timer.repeat(repeat=3, number=1))
        number = max(1, int(0.01 / max(once_s, 1e-7)))
        best_s = min(timer.repeat(repeat=rounds, number=number)) / number / operations
        print(f"{best_s * 1e6:10.2f} us  {name}")


if __name__ == "__main__":
    main()
