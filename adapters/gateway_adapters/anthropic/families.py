"""What a model of Claude's takes, by its family: the rows of `families.toml`, which says what each fact means.

A model nobody wrote down is taken for the newest kind: Anthropic's new models refuse more than its old ones did, and
what is left out is accepted by all of them.
"""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

#: Names kept at hand: callers choose them where a provider serves any.
REMEMBERED_MAX = 1024

_ENDINGS = re.compile(r"(?:@.*|:.*|-v\d+|-20\d{6}|-latest|-thinking|-fast)$")
#: Some put the version first: `claude-3-5-sonnet`, `claude-4.6-opus`.
_VERSION_FIRST = re.compile(r"claude-(\d+(?:-\d+)?)-([a-z]+)$")


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the models of one family have in common."""

    models: tuple[str, ...]
    thinking: Literal["none", "budget", "adaptive", "always"]
    efforts: tuple[str, ...] = ()
    sampling: Literal["both", "one", "none"]
    json_schema: Literal["native", "tool"]
    output_tokens: int


@cache
def families() -> Mapping[str, Family]:
    """The tables of `families.toml`, by name."""
    text = resources.files(__package__).joinpath("families.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Family])


@cache
def _by_model() -> Mapping[str, Family]:
    return {model: family for family in families().values() for model in family.models}


_remembered: dict[str, Family] = {}


def family_of(model: str) -> Family:
    """The family of a model as a provider names it."""
    found = _remembered.get(model)
    if found is None:
        found = _by_model().get(plain_name(model))
        if found is None:
            found = families()["newest" if "claude" in model.lower() else "other"]
        if len(_remembered) >= REMEMBERED_MAX:
            _remembered.clear()
        _remembered[model] = found
    return found


def plain_name(model: str) -> str:
    """`claude-`, the kind and the version, dashes between them: what is left of a name without all that varies."""
    name = model.lower().replace(".", "-")
    name = name[max(name.find("claude"), 0) :]
    while (shorter := _ENDINGS.sub("", name)) != name:
        name = shorter
    if swapped := _VERSION_FIRST.fullmatch(name):
        name = f"claude-{swapped[2]}-{swapped[1]}"
    return name
