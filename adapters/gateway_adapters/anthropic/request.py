"""A chat completion request as a request to Anthropic's Messages API.

Rules:
- What changes the answer and can't be told is refused (`BadRequest`, naming the member): more than one choice, sound.
- What only leans on the answer and can't be told is left out and named in `Translated.dropped`; members that say
  nothing but the default are not worth a word.
- Members of Anthropic's own API in a chat request are told as they are: who writes them knows whom they are for.
- What a model takes is its family's to say (`families.toml`); nothing here knows a model's name.

Sources: Anthropic's API reference, "Messages"; its pages on extended thinking, effort, structured outputs and tools.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from gateway.api import BadRequest
from gateway_adapters.anthropic.chat import (
    NOTHING,
    Message,
    ReasoningWish,
    WebSearch,
    convert,
)
from gateway_adapters.anthropic.families import Family, family_of
from gateway_adapters.anthropic.messages import Conversation, conversation_of
from gateway_adapters.anthropic.names import JSON_TOOL
from gateway_adapters.anthropic.tools import Toolbox
from gateway_adapters.chat_request import Format, says_nothing

#: Tokens to think with, where a model wants a number, if that leaves as many for the answer; and the least.
BUDGETS: Final = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": 32_768, "max": 32_768}
BUDGET_MIN: Final = 1024
#: In OpenAI's order. What a model does not know becomes the next lower level that it does.
EFFORTS: Final = ("minimal", "low", "medium", "high", "xhigh", "max")
NO_EFFORT: Final = "none"
USER_ID_CHARS_MAX: Final = 256
WEB_SEARCH: Final = "web_search_20250305"
#: The least `top_p` that goes with thinking.
_THINKING_TOP_P: Final = 0.95
_JSON_NUDGE: Final = "Reply with one JSON object and nothing else."
FILES_BETA: Final = "files-api-2025-04-14"

_SERVICE_TIERS: Final = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
#: Anthropic's own members.
_OWN: Final = (
    "container",
    "mcp_servers",
    "context_management",
    "inference_geo",
    "speed",
    "cache_control",
    "metadata",
)
#: Read here, one way or the other.
_READ: Final = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "stop"),
        *("temperature", "top_p", "top_k", "tools", "tool_choice", "parallel_tool_calls", "functions"),
        *("function_call", "response_format", "reasoning_effort", "reasoning", "thinking", "output_config"),
        *("user", "safety_identifier", "service_tier", "web_search_options", "modalities", "audio"),
        *_OWN,
    }
)
_NULL: Final = b"null"

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Translated(msgspec.Struct, frozen=True):
    """A request's body, what of the caller's is not in it, and the betas it makes use of."""

    body: bytes
    dropped: tuple[str, ...]
    betas: tuple[str, ...] = ()


def translate(body: bytes, *, model: str, output_tokens_max: int | None) -> Translated:
    """The request for `model`, which gives answers of at most `output_tokens_max` where that is known.

    Raises:
        BadRequest: the request is malformed, or wants what can't be had; `param` names the member.
    """
    try:
        members = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"The request can't be read well enough for this model's provider: {error}.") from None
    given = {name: raw for name, raw in members.items() if len(raw) != len(_NULL) or bytes(raw) != _NULL}
    return _Translation(given, model, output_tokens_max).close()


class _Translation:
    """One request on its way; the methods are called once each, in the order of `close`."""

    def __init__(self, given: Mapping[str, msgspec.Raw], model: str, output_tokens_max: int | None) -> None:
        self._given = given
        self._family: Family = family_of(model)
        self._bound = output_tokens_max or self._family.output_tokens
        #: In the order in which it is written.
        self._out: dict[str, Any] = {"model": model}  # Any: the values of JSON
        self._dropped: list[str] = []
        self._system: list[dict[str, Any]] = []  # Any: as above
        self._thinks = False

    def close(self) -> Translated:
        self._refuse()
        conversation = self._converse()
        self._bound_output()
        toolbox = Toolbox.of(self._given, strict=self._family.json_schema == "native")
        self._answer_format(toolbox)
        self._search_web(toolbox)
        self._think(toolbox, conversation)
        self._use_tools(toolbox)
        self._sample()
        self._stop()
        self._identify()
        self._copy_own()
        if bytes(self._given.get("stream", NOTHING)) == b"true":
            self._out["stream"] = True
        self._dropped += [
            name for name, raw in self._given.items() if name not in _READ and not says_nothing(name, raw)
        ]
        body = _encode(self._out)
        betas = (FILES_BETA,) if conversation.has_files else ()
        return Translated(body, tuple(dict.fromkeys(self._dropped)), betas)

    def _get(self, name: str, kind: type[Any]) -> Any:  # Any: what `kind` says, None where it is not there
        raw = self._given.get(name)
        return None if raw is None else convert(raw, kind, name)

    def _drop(self, name: str) -> None:
        self._dropped.append(name)

    def _refuse(self) -> None:
        """Find what no answer of Anthropic's could satisfy."""
        for name in ("n", "best_of"):
            if (self._get(name, int) or 1) > 1:
                raise BadRequest(
                    "This model's provider gives one choice; ask for `n` = 1, or send the request several times.",
                    param=name,
                    code="unsupported_value",
                )
        if self._get("logprobs", bool) or self._get("top_logprobs", int):
            raise BadRequest("This model tells no probabilities.", param="logprobs", code="unsupported_value")
        modalities = self._get("modalities", list[str]) or ()
        if "audio" in self._given or any(kind != "text" for kind in modalities):
            raise BadRequest("This model answers in text alone.", param="modalities", code="unsupported_value")

    def _converse(self) -> Conversation:
        messages = self._get("messages", list[Message])
        if messages is None:
            raise BadRequest("You must provide `messages`.", param="messages", code="missing_required_parameter")
        conversation = conversation_of(messages)
        self._system = conversation.system
        # Held by reference: what is added to it below is written too.
        self._out["system"] = self._system
        self._out["messages"] = conversation.messages
        return conversation

    def _bound_output(self) -> None:
        for name in ("max_completion_tokens", "max_tokens"):
            if (asked := self._get(name, int)) is not None:
                self._bound = asked
                break
        self._out["max_tokens"] = self._bound

    def _answer_format(self, toolbox: Toolbox) -> None:
        wanted = self._get("response_format", Format)
        if wanted is None or wanted.type == "text":
            return
        if wanted.type == "json_object":
            self._system.append({"type": "text", "text": _JSON_NUDGE})
            return
        if wanted.type != "json_schema" or wanted.json_schema is None or wanted.json_schema.schema is NOTHING:
            raise BadRequest("There is no such answer format.", param="response_format", code="invalid_value")
        schema = wanted.json_schema.schema
        if self._family.json_schema == "native":
            self._out["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        elif not toolbox.answer_by(JSON_TOOL, schema, wanted.json_schema.description):
            self._drop("response_format")

    def _search_web(self, toolbox: Toolbox) -> None:
        wish = self._get("web_search_options", WebSearch)
        if wish is None:
            return
        tool: dict[str, Any] = {"type": WEB_SEARCH, "name": "web_search"}  # Any: as above
        if wish.user_location is not None and wish.user_location.approximate is not None:
            place = msgspec.structs.asdict(wish.user_location.approximate)
            tool["user_location"] = {"type": "approximate"} | {key: value for key, value in place.items() if value}
        toolbox.tools.append(tool)

    def _think(self, toolbox: Toolbox, conversation: Conversation) -> None:
        """Whether, and how much; Anthropic's own members beat OpenAI's."""
        if (config := self._get("output_config", dict[str, msgspec.Raw])) is not None:
            self._out["output_config"] = self._out.get("output_config", {}) | config
        own = self._given.get("thinking")
        if own is not None:
            self._out["thinking"] = own
            self._thinks = b'"disabled"' not in bytes(own)
            return
        name, effort, budget = self._wish()
        if effort is None:
            return
        match self._family.thinking:
            case "none":
                if effort != NO_EFFORT:
                    self._drop(name)
            case "budget":
                self._think_within(name, effort, budget, toolbox, conversation)
            case kind:
                if effort == NO_EFFORT:
                    if kind == "always":
                        self._drop(name)
                    else:
                        self._out["thinking"] = {"type": "disabled"}
                    return
                if not toolbox.forced:
                    # Its thoughts would come without a word of them.
                    self._out["thinking"] = {"type": "adaptive", "display": "summarized"}
                    self._thinks = True
                self._set_effort(effort)

    def _wish(self) -> tuple[str, str | None, int | None]:
        """Which member says so, how hard the model is to think, and with how many tokens."""
        effort = self._get("reasoning_effort", str)
        name, budget = "reasoning_effort", None
        wish = self._get("reasoning", ReasoningWish)
        if effort is None and wish is not None:
            name, effort, budget = "reasoning", wish.effort, wish.max_tokens
            if effort is None and budget is not None:
                effort = next((level for level in ("low", "medium") if budget <= BUDGETS[level] * 2), "high")
            if wish.enabled is not None:
                effort = (effort or "medium") if wish.enabled else NO_EFFORT
        if effort is not None and effort != NO_EFFORT and effort not in EFFORTS:
            raise BadRequest("There is no such effort.", param=name, code="invalid_value")
        return name, effort, budget

    def _think_within(
        self, name: str, effort: str, budget: int | None, toolbox: Toolbox, conversation: Conversation
    ) -> None:
        """For models that want to know with how many tokens."""
        if effort == NO_EFFORT:
            return
        # It refuses to think when it is made to call a tool, or is to go on from one that it thought about before.
        tokens = min(budget or BUDGETS[effort], max(self._bound // 2, BUDGET_MIN))
        if BUDGET_MIN <= tokens < self._bound and not toolbox.forced and not conversation.thoughtless:
            self._out["thinking"] = {"type": "enabled", "budget_tokens": tokens}
            self._thinks = True
        elif not self._family.efforts:
            self._drop(name)
        if self._family.efforts:
            self._set_effort(effort)

    def _set_effort(self, effort: str) -> None:
        known = self._family.efforts
        rank = EFFORTS.index(effort)
        level = next((level for level in reversed(known) if EFFORTS.index(level) <= rank), known[0])
        self._out["output_config"] = {"effort": level} | self._out.get("output_config", {})

    def _use_tools(self, toolbox: Toolbox) -> None:
        self._dropped += toolbox.dropped
        if toolbox.tools:
            self._out["tools"] = toolbox.tools
            if (choice := toolbox.choice()) is not None:
                self._out["tool_choice"] = choice

    def _sample(self) -> None:
        """Temperature, `top_p` and `top_k`, as far as the model takes them, thinking or not."""
        sampling = self._family.sampling
        temperature = self._get("temperature", float)
        if temperature is not None and not (temperature == 1 and (self._thinks or sampling == "none")):
            if self._thinks or sampling == "none":
                self._drop("temperature")
                temperature = None
            elif temperature > 1:
                self._drop("temperature")
                temperature = 1.0
            if temperature is not None:
                self._out["temperature"] = temperature
        top_p = self._get("top_p", float)
        if top_p is not None:
            if "temperature" in self._out and sampling == "one":
                taken = False
            else:
                taken = sampling != "none" and not (self._thinks and top_p < _THINKING_TOP_P)
            if taken:
                self._out["top_p"] = top_p
            elif top_p != 1:
                self._drop("top_p")
        if (top_k := self._given.get("top_k")) is not None:
            if sampling == "none" or self._thinks:
                self._drop("top_k")
            else:
                self._out["top_k"] = top_k

    def _stop(self) -> None:
        alone = bytes(self._given.get("stop", NOTHING)).startswith(b'"')
        sequences = [self._get("stop", str)] if alone else self._get("stop", list[str]) or []
        kept = [sequence for sequence in sequences if sequence.strip()]
        if len(kept) < len(sequences):
            self._drop("stop")
        if kept:
            self._out["stop_sequences"] = kept

    def _identify(self) -> None:
        """Who the caller's user is, in a word that is no name: Anthropic wants none."""
        user = self._get("safety_identifier", str) or self._get("user", str)
        if user:
            if "@" in user or len(user) > USER_ID_CHARS_MAX:
                user = sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
            self._out["metadata"] = {"user_id": user}
        tier = self._get("service_tier", str)
        if tier in _SERVICE_TIERS:
            self._out["service_tier"] = _SERVICE_TIERS[tier]
        elif tier:
            self._drop("service_tier")

    def _copy_own(self) -> None:
        for name in _OWN:
            raw = self._given.get(name)
            if raw is None:
                continue
            if name != "metadata":
                self._out[name] = raw
            elif not says_nothing(name, raw):
                # OpenAI's is for its own records; the one thing that both know is who the user is.
                known = convert(raw, dict[str, msgspec.Raw], name)
                if "metadata" not in self._out and bytes(known.get("user_id", NOTHING)).startswith(b'"'):
                    self._out["metadata"] = {"user_id": known["user_id"]}
                    known.pop("user_id")
                if known:
                    self._drop(name)
        if not self._system:
            del self._out["system"]
