"""How much an open model is used and liked, from Hugging Face; where the configuration turns that on.

Source: https://huggingface.co/docs/hub/api, "Models endpoints".
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.infra.postgres import Database, load_queries

#: Who and what, as Hugging Face lets them be named.
_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_NUMBER_MAX: Final = 2**53
_queries: Final = load_queries(Path(__file__).with_name("metrics.sql"))


class HuggingFaceMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one repository."""

    downloads: int = 0
    likes: int = 0
    pipeline_tag: str | None = None
    num_parameters: int | None = None
    gated: bool = False
    private: bool = False
    last_modified: str | None = None
    author: str | None = None


class MetricCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Models about which Hugging Face was, or is to be, asked."""

    known: int
    unknown: int
    due: int


def is_id(text: str) -> bool:
    """Whether it can be the name of a repository."""
    return _ID.fullmatch(text) is not None and ".." not in text


def read_metrics(body: bytes) -> HuggingFaceMetrics:
    """Read an answer of `/api/models/{id}`.

    Raises:
        ValueError: it is none.
    """
    try:
        answer = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("not an answer of Hugging Face") from error
    tensors = answer.get("safetensors")
    return HuggingFaceMetrics(
        downloads=_number(answer.get("downloads")) or 0,
        likes=_number(answer.get("likes")) or 0,
        pipeline_tag=_text(answer.get("pipeline_tag")),
        num_parameters=_number(tensors.get("total")) if isinstance(tensors, dict) else None,
        # `auto` and `manual` say how access is granted.
        gated=bool(answer.get("gated")),
        private=answer.get("private") is True,
        last_modified=_text(answer.get("lastModified")),
        author=_text(answer.get("author")),
    )


class MetricStore:
    """The metrics in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def know(self, ids: Iterable[str]) -> None:
        """These are to be asked about."""
        if known := sorted({each for each in ids if is_id(each)}):
            await self._database.execute(_queries["know"], known)

    async def claim(self, *, lease_s: float) -> list[str]:
        """Whose turn it is, a few at a time."""
        return [row["hugging_face_id"] for row in await self._database.fetch(_queries["claim"], lease_s)]

    async def put(self, hugging_face_id: str, metrics: HuggingFaceMetrics | None, *, next_s: float) -> None:
        """None: there is no such model."""
        data = None if metrics is None else msgspec.msgpack.encode(metrics)
        await self._database.execute(_queries["put"], hugging_face_id, data, next_s)

    async def doubt(self) -> None:
        """It is everybody's turn."""
        await self._database.execute(_queries["doubt"])

    async def count(self) -> MetricCounts:
        row = await self._database.fetch_row(_queries["count"])
        assert row is not None
        return msgspec.convert(dict(row), MetricCounts)

    async def read(self, ids: Iterable[str]) -> dict[str, HuggingFaceMetrics]:
        """What is known of these."""
        rows = await self._database.fetch(_queries["read"], list(ids))
        return {
            row["hugging_face_id"]: msgspec.msgpack.decode(row["metrics"], type=HuggingFaceMetrics) for row in rows
        }


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _NUMBER_MAX else None


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) else None
