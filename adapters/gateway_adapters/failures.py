"""What a provider's error answer means: whose fault it is, and when to come back.

Rules:
- The status decides, by one table, unless a more telling code or phrase is found in the error object; those stand in
  a second table, read from the top, first match wins.
- Only the error's own members are searched, never the whole body: providers echo requests into their errors.
- What a provider says about a request may quote it, so only codes of such an error go into the log.
- A duration is taken from where it is most exact: milliseconds before seconds, headers before prose. A date is read
  against the answer's own `date`, so that neither clock has to be right.

Sources: the error references of OpenAI, Azure, Google, Groq, Mistral, xAI, DeepSeek and OpenRouter; RFC 9110 10.2.3
for retry-after.
"""

import email.utils
import math
import re

import msgspec

from gateway.api import MESSAGE_CHARS_MAX, Failure, ResponseHead

#: A provider that says more than this is not believed.
RETRY_AFTER_S_MAX = 24 * 3600.0
_DETAIL_CHARACTERS_MAX = 300

#: Whose fault a status is. What is not listed is the caller's below 500 and the provider's from there on.
BLAME_BY_STATUS = {
    401: "key",
    402: "key",
    403: "key",
    407: "provider",
    408: "provider",
    409: "provider",
    421: "provider",
    424: "provider",
    425: "provider",
    429: "provider",  # throttled: the key is good and will be served again
    451: "policy",
    498: "provider",  # Groq: no flex capacity
    499: "provider",
}


class _Rule(msgspec.Struct, frozen=True):
    """Within `statuses`, an error whose codes or message match `pattern` is `blame`'s."""

    statuses: range | frozenset[int]
    pattern: re.Pattern[str]
    blame: str


def _rule(statuses: range | frozenset[int], blame: str, *phrases: str) -> _Rule:
    return _Rule(statuses, re.compile("|".join(phrases)), blame)


_CALLER = frozenset({400, 404, 413, 422})
_ANY = range(400, 600)

#: Patterns are matched against the error's codes and message, in lower case.
RULES = (
    _rule(
        _ANY,
        "key",
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "credit balance is too low",
        "insufficient balance",
        "account_deactivated",
        "access_terminated",
    ),
    # Google and xAI answer 400 to a wrong key.
    _rule(
        _CALLER,
        "key",
        "api_key_invalid",
        "api key not valid",
        "api key expired",
        "incorrect api key",
        "invalid_api_key",
    ),
    # Groq (413) and OpenAI (429): more than this model's tokens per minute, now and later.
    _rule(frozenset({413, 429}), "context", "request too large for"),
    _rule(
        _CALLER | {500},
        "context",
        "context_length_exceeded",
        "maximum context length",
        "context window",
        "context length",
        "prompt is too long",
        "input token count",
        "exceeds the maximum number of tokens",
        "input is too long for requested model",
        "too many tokens",
    ),
    _rule(
        _CALLER | {403, 451},
        "policy",
        "content_filter",
        "content_policy",
        "content management policy",
        "responsibleaipolicyviolation",
        "moderation_blocked",
        "flagged_input",
        "safety system",
    ),
)

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_PROSE = re.compile(r"(?:try again|retry|wait) (?:in|after|for) ((?:[\d.]+(?:h|ms|m|s))+|[\d.]+ seconds?)")
#: OpenAI and OpenRouter of names that they don't know, with a status of 400.
_MODEL_ID = re.compile(r"\binvalid model id\b|\bis not a valid model id\b|\bmodel_not_found\b")
_KEY_LIKE = re.compile(r"\b(?:(?:sk|pk|gsk|xai|csk|cpk|fw|hf|tgp|nvapi|ghp|key)[-_]|AIza)[A-Za-z0-9*_-]{8,}")


class _Error(msgspec.Struct, frozen=True):
    """What an error body says, whatever its shape: codes and types, its message, and a duration where it has one."""

    codes: tuple[str, ...] = ()
    message: str = ""
    retry: str = ""


def classify(head: ResponseHead, body: bytes, *, secret: str = "", codes: tuple[str, ...] = ()) -> Failure:
    """The failure that an answer with an error status is.

    `secret` is blotted out should the provider echo it. `codes` are those that do not stand in the body.
    """
    error = _read(body, codes)
    said = " ".join((*error.codes, error.message)).lower()
    blame = BLAME_BY_STATUS.get(head.status, "provider" if head.status >= 500 or head.status < 400 else "caller")
    for rule in RULES:
        if head.status in rule.statuses and rule.pattern.search(said):
            blame = rule.blame
            break
    said_of_itself = error.message if blame in ("key", "provider") else ""
    return Failure(
        blame=blame,
        retry_after_s=retry_after_s(head, error) if blame in ("key", "provider") else None,
        detail=_shown(" ".join((str(head.status), *error.codes, said_of_itself)).strip(), secret)[
            :_DETAIL_CHARACTERS_MAX
        ],
        message=_shown(error.message, secret)[:MESSAGE_CHARS_MAX],
        code=_code(blame, head.status, said),
    )


def retry_after_s(head: ResponseHead, error: _Error = _Error()) -> float | None:  # noqa: B008 - immutable
    """Seconds until the provider wants to be asked again, or None where it did not say."""
    for name in (b"retry-after-ms", b"x-ms-retry-after-ms"):
        if (value := _number(head.header(name))) is not None:
            return _bounded(value / 1000)
    if (header := head.header(b"retry-after")) is not None:
        if (value := _number(header)) is not None:
            return _bounded(value)
        if (value := _until(header, head.header(b"date"))) is not None:
            return _bounded(value)
    if error.retry and (value := duration_s(error.retry)) is not None:
        return _bounded(value)
    if head.status == 429:
        if prose := _PROSE.search(error.message.lower()):
            text = prose[1]
            value = _number(text.split()[0].encode()) if "second" in text else duration_s(text)
            if value is not None:
                return _bounded(value)
        return _exhausted_s(head)
    return None


def duration_s(text: str) -> float | None:
    """Seconds of a duration as providers write it (`250ms`, `1.5s`, `6m0s`, `1h2m3s`), or None."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not match[0]:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _exhausted_s(head: ResponseHead) -> float | None:
    """The longest reset of those limits of which nothing remains."""
    resets = []
    for kind in (b"requests", b"tokens"):
        if head.header(b"x-ratelimit-remaining-" + kind) == b"0":
            reset = head.header(b"x-ratelimit-reset-" + kind) or b""
            seconds = _number(reset)
            if seconds is None:
                seconds = duration_s(reset.decode("latin-1"))
            # Some send the time of day as seconds since 1970, which is no duration.
            if seconds is not None and seconds < RETRY_AFTER_S_MAX:
                resets.append(seconds)
    return _bounded(max(resets)) if resets else None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), RETRY_AFTER_S_MAX)


def _number(value: bytes | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _until(date: bytes, now: bytes | None) -> float | None:
    """Seconds from the answer's `date` to an HTTP date."""
    if now is None:
        return None
    try:
        then = email.utils.parsedate_to_datetime(date.decode("latin-1"))
        return (then - email.utils.parsedate_to_datetime(now.decode("latin-1"))).total_seconds()
    except (ValueError, TypeError):
        return None


def _code(blame: str, status: int, said: str) -> str | None:
    """OpenAI's code for what OpenAI has one for, whatever the provider calls it."""
    if blame == "context":
        return "context_length_exceeded"
    if blame == "policy":
        return "content_filter"
    if blame == "provider" and status == 429:
        return "rate_limit_exceeded"
    if (status == 404 and ("model" in said or "deploymentnotfound" in said)) or (
        status == 400 and _MODEL_ID.search(said)
    ):
        return "model_not_found"
    return None


def _read(body: bytes, codes: tuple[str, ...] = ()) -> _Error:
    """The members of an error body that tell something; a body that is not JSON tells nothing but its status."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return _Error(codes)
    if isinstance(document, list) and document:
        document = document[0]  # Google
    if not isinstance(document, dict):
        return _Error(codes)
    error = document.get("error", document)
    if isinstance(error, str):  # Ollama, Hugging Face, xAI
        return _Error(codes=codes + _texts(document, "code", "error_type", "type"), message=error)
    if not isinstance(error, dict):
        error = document
    message = error.get("message") or document.get("detail") or document.get("Message") or ""
    if isinstance(message, dict) and isinstance(message.get("error"), str):  # DeepInfra
        message = message["error"]
    if isinstance(message, dict | list):  # FastAPI and its kin
        message = msgspec.json.encode(message).decode()
    codes += _texts(error, "code", "type", "status", "param")
    inner = error.get("innererror")
    if isinstance(inner, dict):  # Azure
        codes += _texts(inner, "code")
    retry = ""
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():  # Google
        if isinstance(detail, dict):
            codes += _texts(detail, "reason")
            retry = retry or next(iter(_texts(detail, "retryDelay")), "")
    metadata = error.get("metadata")
    if isinstance(metadata, dict):  # OpenRouter
        codes += _texts(metadata, "error_type")
        if "flagged_input" in metadata:
            codes += ("flagged_input",)
        message = f"{message} {' '.join(_texts(metadata, 'raw'))}".rstrip()
    return _Error(codes=codes, message=str(message), retry=retry)


def _texts(table: dict[object, object], *keys: str) -> tuple[str, ...]:
    """The values under `keys` that are text or whole numbers."""
    return tuple(str(table[key]) for key in keys if isinstance(table.get(key), str | int))


def _shown(text: str, secret: str) -> str:
    """`text` without the provider's key, and without what looks like one."""
    if secret:
        text = text.replace(secret, "***")
    return _KEY_LIKE.sub("***", text)
