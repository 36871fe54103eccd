"""What is known of each OpenAI-compatible provider, as data: the rows of `providers.toml`.

A provider's own table in the configuration is laid over the row, key by key; unknown keys are refused with a
suggestion. What each key means stands at the top of `providers.toml`.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from gateway.api import ConfigError, Dialect, KnownProvider

StreamUsage = Literal["inject", "native", "reject"]


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one provider differs from OpenAI's own API."""

    title: str = ""
    base_url: str = ""
    variable: str = ""
    key_required: bool = True
    auth_header: str = "authorization"
    auth_scheme: str = "Bearer"
    headers: dict[str, str] = {}
    dialects: frozenset[Dialect] = frozenset(
        {
            Dialect.OPENAI_CHAT,
            Dialect.OPENAI_COMPLETIONS,
            Dialect.OPENAI_EMBEDDINGS,
            Dialect.OPENAI_IMAGES,
            Dialect.OPENAI_IMAGE_EDITS,
            Dialect.OPENAI_SPEECH,
            Dialect.OPENAI_TRANSCRIPTIONS,
            Dialect.OPENAI_MODERATIONS,
            Dialect.RERANK,
            Dialect.OPENAI_OTHER,
        }
    )
    stream_usage: StreamUsage = "inject"
    drop: tuple[str, ...] = ()
    rename: dict[str, str] = {}
    model_prefix: str = ""
    trust_cost: bool = False
    reasoning_in_total: bool = False
    extensions: frozenset[str] = frozenset()


@cache
def built_in() -> Mapping[str, Mapping[str, object]]:
    """The tables of `providers.toml`, by provider."""
    text = resources.files(__package__).joinpath("providers.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def known(adapter: str) -> list[KnownProvider]:
    """Every row, as a provider that the configuration may name, or the environment turn on, without saying how."""
    return [
        KnownProvider(name=name, title=row.title, adapter=adapter, variable=row.variable, base_url=row.base_url)
        for name in built_in()
        for row in (row_of(name, {}),)
    ]


def row_of(name: str, table: Mapping[str, object]) -> Row:
    """The row called `name` (an empty one where there is none) with a provider's own table over it.

    Raises:
        ConfigError: a key is unknown or its value is of the wrong kind.
    """
    for key in table:
        if key not in Row.__struct_fields__:
            raise ConfigError(f'there is no key "{key}"{suggestion(key, Row.__struct_fields__)}', param=key)
    try:
        return msgspec.convert({**built_in().get(name, {}), **table}, Row)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error).replace("`$.", "`")) from error


def suggestion(word: str, words: Iterable[str]) -> str:
    """The nearest of `words`, as the end of a message; empty where none is near."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
