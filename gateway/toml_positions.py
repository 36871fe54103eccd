"""Where each key of a TOML text stands, so that a wrong setting can be pointed at.

`tomllib` gives values and forgets lines. This scanner gives lines and forgets values: it walks a text that `tomllib`
has accepted and notes for every table and key the line it begins on and how its last part was written. Rules:
- A path is a tuple of names, and of indices where an array stands between them: `("providers", "local", "keys", 0)`.
- The first place a path appears at is its place; a table that only exists through its children has theirs.
- It never raises for a text that is not TOML: it stops and gives what it found so far.
"""

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

Part = str | int
KeyPath = tuple[Part, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PART = re.compile(rf"""{_BARE.pattern}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
# A closing triple quote may have up to two more quotes before it that belong to the string.
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?""""{0,2}' + r"|'''.*?''''{0,2}" + r'|"(?:[^"\\\n]|\\.)*"' + r"|'[^'\n]*'", re.DOTALL
)
_SCALAR = re.compile(r"[^,\]}\n#]+")


class Position(NamedTuple):
    """Line (from 1) of a key, and its last part as written, quotes and all."""

    line: int
    written: str


def scan(text: str) -> dict[KeyPath, Position]:
    """The position of every table and key in `text`."""
    scanner = _Scanner(text)
    with suppress(_Unexpected, RecursionError):  # a text that is no TOML; what was found so far stands
        scanner.document()
    return scanner.found


def split_key(text: str) -> KeyPath:
    """The parts of a dotted key: `models."gpt-4.1".free` has three. Anything else is one part as it stands."""
    scanner = _Scanner(text)
    try:
        parts = tuple(name for name, _, _ in scanner.key())
    except _Unexpected:
        return (text,)
    return parts if scanner.at == len(text) else (text,)


def join_key(path: KeyPath, positions: Mapping[KeyPath, Position] | None = None) -> str:
    """The dotted key for `path`, its parts as written where that is known, else quoted where they must be."""
    text = ""
    for depth, part in enumerate(path, 1):
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        known = positions.get(path[:depth]) if positions else None
        text += ("." if text else "") + (known.written if known else _quote(part))
    return text


def _quote(part: str) -> str:
    if _BARE.fullmatch(part):
        return part
    return '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unquote(written: str) -> str:
    if written[0] not in "\"'":
        return written
    try:
        return str(tomllib.loads(f"name = {written}")["name"])
    except tomllib.TOMLDecodeError as error:
        raise _Unexpected from error


class _Unexpected(Exception):
    """The text does not go on as TOML does."""


class _Scanner:
    """A cursor over the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[KeyPath, Position] = {}
        self._newlines = [place for place, character in enumerate(text) if character == "\n"]
        self._array_sizes: dict[KeyPath, int] = {}

    def document(self) -> None:
        prefix: KeyPath = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self._take("[["):
                prefix = self._header("]]", array=True)
            elif self._take("["):
                prefix = self._header("]", array=False)
            else:
                self._pair(prefix)
            self._skip(_BLANK)

    def key(self) -> list[tuple[str, str, int]]:
        """A dotted key: for each part its name, as written, and where it begins."""
        parts = []
        while True:
            start = self.at
            written = self._match(_PART)
            parts.append((_unquote(written), written, start))
            if not _DOT.match(self.text, self.at):
                return parts
            self._match(_DOT)

    def _header(self, close: str, *, array: bool) -> KeyPath:
        self._skip(_SPACE)
        path: KeyPath = ()
        parts = self.key()
        for number, (name, written, start) in enumerate(parts, 1):
            path = (*path, name)
            self._note(path, written, start)
            if array and number == len(parts):
                self._array_sizes[path] = self._array_sizes.get(path, 0) + 1
            if size := self._array_sizes.get(path):
                path = (*path, size - 1)
                self._note(path, written, start)
        self._skip(_SPACE)
        self._expect(close)
        return path

    def _pair(self, prefix: KeyPath) -> None:
        path = prefix
        for name, written, start in self.key():
            path = (*path, name)
            self._note(path, written, start)
        self._skip(_SPACE)
        self._expect("=")
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip(_SPACE)
        if self._take("{"):
            self._items(path, "}")
        elif self._take("["):
            self._items(path, "]")
        elif _STRING.match(self.text, self.at):
            self._match(_STRING)
        else:
            self._match(_SCALAR)

    def _items(self, path: KeyPath, close: str) -> None:
        index = 0
        self._skip(_BLANK)
        while not self._take(close):
            if close == "}":
                self._pair(path)
            else:
                self._note((*path, index), "", self.at)
                self._value((*path, index))
                index += 1
            self._skip(_BLANK)
            if not self._take(","):
                self._expect(close)
                return
            self._skip(_BLANK)

    def _note(self, path: KeyPath, written: str, start: int) -> None:
        self.found.setdefault(path, Position(bisect_right(self._newlines, start) + 1, written))

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if found := pattern.match(self.text, self.at):
            self.at = found.end()

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise _Unexpected
        self.at = found.end()
        return found.group()

    def _take(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise _Unexpected
