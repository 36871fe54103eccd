"""Which headers travel on, in each direction.

Rules:
- Names are lower case, as ASGI and the upstream client give them. Order, spelling of values and repeats are kept.
- Hop-by-hop headers (RFC 9110, section 7.6.1), and whatever `connection` names, stay behind both ways.
- To a provider: no credentials of ours, no cookies, nothing that says where the caller sits or which browser it uses,
  no tracing context unless asked for, and no `openai-organization` unless the caller brought the key it belongs to.
- To a caller: no cookies, nothing of the provider's edge network, none of the operator's account names.
- Whatever is not named here passes: providers add headers without asking us.

`content-length`, `host` and `accept-encoding` are written anew by whoever writes the message.
It does not read any value but that of `connection`.
"""

import re
from collections.abc import Iterable
from itertools import islice
from typing import Final

Headers = list[tuple[bytes, bytes]]

#: RFC 9110, section 7.6.1, and what is obsolete but still sent.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

CREDENTIALS = frozenset(
    {
        b"api-key",
        b"authorization",
        b"cookie",
        b"x-api-key",
        b"x-goog-api-key",
    }
)

#: The caller's organisation, refused by OpenAI together with a key of another one.
ACCOUNT = frozenset({b"openai-organization", b"openai-project"})

TRACING = frozenset({b"b3", b"baggage", b"traceparent", b"tracestate"})

_REQUEST_DROP = frozenset(
    {
        *HOP_BY_HOP,
        *CREDENTIALS,
        # The upstream client frames its own message.
        b"accept-encoding",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"host",
        # Where the caller sits.
        b"client-ip",
        b"forwarded",
        b"true-client-ip",
        b"via",
        b"x-client-ip",
        b"x-cloud-trace-context",
        b"x-cluster-client-ip",
        b"x-original-url",
        b"x-real-ip",
        b"x-rewrite-url",
        # What a browser says about itself.
        b"dnt",
        b"origin",
        b"priority",
        b"referer",
        b"upgrade-insecure-requests",
    }
)
_REQUEST_DROP_PREFIXES = (
    b"cf-",
    b"fastly-",
    b"fly-",
    b"helicone-",
    b"sec-",
    b"x-amz-",
    b"x-amzn-",
    b"x-azure-",
    b"x-envoy-",
    b"x-forwarded-",
    b"x-gateway-",
    b"x-portkey-",
    b"x-vercel-",
)
_TRACING_PREFIXES = (b"x-b3-", b"x-datadog-")

_RESPONSE_DROP = frozenset(
    {
        *HOP_BY_HOP,
        # The server that answers the caller writes its own.
        b"date",
        b"server",
        # Of the provider's edge, or about its own browser users.
        b"alt-svc",
        b"expect-ct",
        b"nel",
        b"report-to",
        b"reporting-endpoints",
        b"server-timing",
        b"set-cookie",
        b"strict-transport-security",
        b"via",
        b"www-authenticate",
        b"x-powered-by",
        b"x-served-by",
        # A front server of ours would act on it: read a file, rewrite a location.
        b"x-sendfile",
    }
)
_RESPONSE_DROP_PREFIXES = (b"access-control-", b"cf-", b"x-accel-", b"x-amz-cf-", b"x-envoy-", b"x-gateway-")
_RATELIMIT_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-", b"ratelimit-")

# What happens to a header of this name. Falsy ones never travel.
_DROP, _KEEP, _CONNECTION, _ACCOUNT, _TRACING, _RATELIMIT, _LENGTH, _ENCODING = range(8)

# Without these the body can't be read: not the connection's to take away.
_FRAMING = frozenset({b"content-type", b"content-encoding", b"content-length"})

_HARMLESS_CONNECTION = frozenset({b"", b"keep-alive", b"close", b"Keep-Alive", b"Close"})


class _Verdicts(dict[bytes, int]):
    """Remembers the verdict on each header name, so that a name costs one look-up. Bounded: callers choose names."""

    SIZE_MAX = 4096

    def __init__(self, judge: "type[_Request | _Response]") -> None:
        super().__init__()
        self._judge = judge.verdict

    def __missing__(self, name: bytes) -> int:
        verdict = self._judge(name)
        if len(self) < self.SIZE_MAX and len(name) <= 64:
            self[name] = verdict
        return verdict


class _Request:
    @staticmethod
    def verdict(name: bytes) -> int:
        if name == b"connection":
            return _CONNECTION
        if name in ACCOUNT:
            return _ACCOUNT
        if name in TRACING or name.startswith(_TRACING_PREFIXES):
            return _TRACING
        if name in _REQUEST_DROP or name.startswith(_REQUEST_DROP_PREFIXES):
            return _DROP
        return _KEEP


class _Response:
    @staticmethod
    def verdict(name: bytes) -> int:
        if name == b"connection":
            return _CONNECTION
        if name in ACCOUNT:
            return _ACCOUNT
        if name == b"content-length":
            return _LENGTH
        if name == b"content-encoding":
            return _ENCODING
        if name.startswith(_RATELIMIT_PREFIXES):
            return _RATELIMIT
        if name in _RESPONSE_DROP or name.startswith(_RESPONSE_DROP_PREFIXES):
            return _DROP
        return _KEEP


_request_verdicts = _Verdicts(_Request)
_response_verdicts = _Verdicts(_Response)


def request_headers(
    headers: Headers,
    *,
    own: Headers | tuple[()] = (),
    drop: frozenset[bytes] = frozenset(),
    byok: bool = False,
    trace: bool = False,
) -> Headers:
    """The caller's headers as a provider gets them, then the adapter's `own`.

    `drop` names what this provider must not get besides; an adapter lists there what it sends itself and the rules
    above let through. `byok` says that the caller's own provider key is used, `trace` that tracing context may leave.
    """
    verdicts = _request_verdicts
    sent: Headers = []
    named: frozenset[bytes] | None = None
    for pair in headers:
        name = pair[0]
        verdict = verdicts[name]
        if verdict == _KEEP:
            sent.append(pair)
        elif verdict == _CONNECTION:
            named = _named(pair[1], named)
        elif (byok and verdict == _ACCOUNT) or (trace and verdict == _TRACING):
            sent.append(pair)
    if drop or named:
        unwanted = drop | (named - _FRAMING) if named else drop
        sent = [pair for pair in sent if pair[0] not in unwanted]
    sent.extend(own)
    return sent


def response_headers(
    headers: Headers,
    *,
    own: Headers | tuple[()] = (),
    keep_ratelimit: bool = False,
    keep_length: bool = False,
    keep_encoding: bool = True,
    keep_account: bool = False,
) -> Headers:
    """A provider's headers as the caller gets them, then the gateway's `own`.

    `keep_length` where the body is relayed byte for byte and its length is known. `keep_encoding=False` where it was
    inflated on the way. `keep_ratelimit=False` hides the limits of the account that all callers share.
    """
    verdicts = _response_verdicts
    sent: Headers = []
    named: frozenset[bytes] | None = None
    for pair in headers:
        verdict = verdicts[pair[0]]
        if verdict == _KEEP:
            sent.append(pair)
        elif verdict == _CONNECTION:
            named = _named(pair[1], named)
        elif (
            (keep_ratelimit and verdict == _RATELIMIT)
            or (keep_length and verdict == _LENGTH)
            or (keep_encoding and verdict == _ENCODING)
            or (keep_account and verdict == _ACCOUNT)
        ):
            sent.append(pair)
    if named:
        unwanted = named - _FRAMING
        sent = [pair for pair in sent if pair[0] not in unwanted]
    sent.extend(own)
    return sent


#: Of a list of names, as many are told, those of them that are fit for a header.
NAMES_MAX: Final = 32
_FIT_NAME: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


def name_list(names: Iterable[str]) -> bytes:
    """Members of a request as the value of a header, each once; empty where no name is fit for one.

    Callers choose those names: one that could be taken for something else, or that is long, is left out.
    """
    fit = dict.fromkeys(name for name in names if _FIT_NAME.fullmatch(name))
    return ", ".join(islice(fit, NAMES_MAX)).encode("ascii")


def _named(value: bytes, before: frozenset[bytes] | None) -> frozenset[bytes] | None:
    """The header names in a `connection` value, with those of an earlier one."""
    if value in _HARMLESS_CONNECTION:
        return before
    named = frozenset(token.strip().lower() for token in value.split(b","))
    return named | before if before else named
