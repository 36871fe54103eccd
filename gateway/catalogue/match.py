"""Which model a name means: the clauses a catalogue entry is found by, and an index over the entries of a provider.

Rules:
- Clauses are data (`["^", "gpt-4o"]`), written once when the catalogue is built; their texts are lower case, and so
  is the name they are asked about. An expression that can't be compiled matches nothing.
- The first entry in the catalogue's order wins. Most clauses are plain equality, so a name is looked up in one
  dictionary, and only the remaining clauses of entries before that one are tried.
- Names come from callers: one that is longer than `NAME_LENGTH_MAX` matches nothing.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import msgspec

NAME_LENGTH_MAX: Final = 256


class Equals(msgspec.Struct, frozen=True, array_like=True, tag="="):
    """The name is `text`."""

    text: str

    def matches(self, name: str) -> bool:
        return name == self.text


class StartsWith(msgspec.Struct, frozen=True, array_like=True, tag="^"):
    """The name begins with `text`."""

    text: str

    def matches(self, name: str) -> bool:
        return name.startswith(self.text)


class EndsWith(msgspec.Struct, frozen=True, array_like=True, tag="$"):
    """The name ends with `text`."""

    text: str

    def matches(self, name: str) -> bool:
        return name.endswith(self.text)


class Contains(msgspec.Struct, frozen=True, array_like=True, tag="~"):
    """`text` is somewhere in the name."""

    text: str

    def matches(self, name: str) -> bool:
        return self.text in name


class Expression(msgspec.Struct, frozen=True, array_like=True, tag="/"):
    """The regular expression `text` is found in the name."""

    text: str

    def matches(self, name: str) -> bool:
        found = _compiled(self.text)
        return found is not None and found.search(name) is not None


class AnyOf(msgspec.Struct, frozen=True, array_like=True, tag="|"):
    """At least one of `clauses` matches."""

    clauses: tuple["Clause", ...]

    def matches(self, name: str) -> bool:
        return any(clause.matches(name) for clause in self.clauses)


class AllOf(msgspec.Struct, frozen=True, array_like=True, tag="&"):
    """Every one of `clauses` matches."""

    clauses: tuple["Clause", ...]

    def matches(self, name: str) -> bool:
        return all(clause.matches(name) for clause in self.clauses)


Clause: TypeAlias = Equals | StartsWith | EndsWith | Contains | Expression | AnyOf | AllOf


class Index:
    """Finds the first of a provider's entries that a name means."""

    def __init__(self, entries: Iterable[tuple[str, Clause]]) -> None:
        """`entries` are ids and clauses, in the catalogue's order."""
        self._equal: dict[str, int] = {}
        self._others: list[tuple[int, Clause]] = []
        self._ids: dict[str, int] = {}
        for number, (entry_id, clause) in enumerate(entries):
            self._ids.setdefault(entry_id.lower(), number)
            for each in _alternatives(clause):
                if isinstance(each, Equals):
                    self._equal.setdefault(each.text, number)
                else:
                    self._others.append((number, each))

    def find(self, name: str) -> int | None:
        """The number of the entry that the clauses say `name` (in lower case) means."""
        if len(name) > NAME_LENGTH_MAX:
            return None
        first = self._equal.get(name)
        for number, clause in self._others:
            if first is not None and number >= first:
                break
            if clause.matches(name):
                return number
        return first

    def find_id(self, name: str) -> int | None:
        """The number of the entry whose id is `name` (in lower case)."""
        return self._ids.get(name)


def _alternatives(clause: Clause) -> Iterator[Clause]:
    if isinstance(clause, AnyOf):
        for each in clause.clauses:
            yield from _alternatives(each)
    else:
        yield clause


@functools.lru_cache(maxsize=512)
def _compiled(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text)
    except re.error:
        return None
