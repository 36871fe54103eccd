"""Providers' own lists of their models, as they are kept: whole for the catalogue that people read, in short for the
data plane.

Rules:
- What a provider said last stays until it says something else, however long it can't be reached.
- A list that changed is announced on `overrides.CHANNEL`: workers read the facts of all of them and put a new table
  of offers in place of the old one.
- Facts of a model are decoded when it is first asked for: most of some thousands are never called, and a worker has
  streams to serve meanwhile. Whole lists are taken apart in turns with the event loop.
"""

import asyncio
import zlib
from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from gateway.catalogue.listing import ListedModel
from gateway.infra.postgres import Database, load_queries
from gateway.kernel.money import Price

_queries: Final = load_queries(Path(__file__).with_name("lists.sql"))


class Facts(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What of a listed model the data plane works with."""

    context_tokens: int | None = None
    output_tokens_max: int | None = None
    lacks: tuple[str, ...] = ()
    price: Price | None = None


class ListState(msgspec.Struct, frozen=True, kw_only=True):
    """What became of asking a provider."""

    provider: str
    model_count: int
    #: Unix time of its last answer; None where it gave none.
    listed_s: float | None
    #: In a row, since then, and what the last one was.
    failures: int
    error: str


_NOTHING: Final = Facts()
#: Of a list that is taken apart, as many before others get a turn.
_MODELS_AT_ONCE: Final = 250
_decode_names: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_facts: Final = msgspec.msgpack.Decoder(Facts).decode
_decode_parts: Final = msgspec.msgpack.Decoder(tuple[msgspec.Raw, ...]).decode
_decode_models: Final = msgspec.msgpack.Decoder(tuple[ListedModel, ...]).decode


class Lists:
    """The facts of all providers' models, by the names that the configuration gives providers."""

    def __init__(self, encoded: Mapping[str, bytes] | None = None) -> None:
        self.encoded = encoded or {}
        self._decoded: dict[str, dict[str, msgspec.Raw]] = {}

    def facts(self, provider: str, upstream_model: str) -> Facts:
        """What a provider says of the model that it calls `upstream_model`; nothing where it says nothing."""
        raw = self._models(provider).get(upstream_model)
        return _NOTHING if raw is None else _decode_facts(raw)

    def names(self, provider: str) -> Collection[str]:
        """The models that a provider says it has; none where it says nothing."""
        return self._models(provider).keys()

    def _models(self, provider: str) -> Mapping[str, msgspec.Raw]:
        models = self._decoded.get(provider)
        if models is None:
            raw = self.encoded.get(provider)
            models = self._decoded[provider] = {} if raw is None else _decode_names(raw)
        return models

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lists) and self.encoded == other.encoded

    __hash__ = None  # type: ignore[assignment]  # it is compared, never a key


def encode_facts(models: Iterable[ListedModel]) -> bytes:
    """The facts of a list, in its order."""
    return msgspec.msgpack.encode(
        {model.id: Facts(model.context_tokens, model.output_tokens_max, model.lacks, model.price) for model in models}
    )


def encode_models(models: tuple[ListedModel, ...]) -> bytes:
    parts = [models[start : start + _MODELS_AT_ONCE] for start in range(0, len(models), _MODELS_AT_ONCE)]
    return zlib.compress(msgspec.msgpack.encode(parts))


async def decode_models(data: bytes) -> tuple[ListedModel, ...]:
    """The list again; others get their turns meanwhile."""
    models: list[ListedModel] = []
    for part in _decode_parts(await asyncio.to_thread(zlib.decompress, data)):
        models += _decode_models(part)
        await asyncio.sleep(0)
    return tuple(models)


def digest_of(models: tuple[ListedModel, ...]) -> bytes:
    """The same for the same list."""
    return blake2b(msgspec.msgpack.encode(models), digest_size=16).digest()


async def read_lists(database: Database) -> Lists:
    """The facts of all of them.

    Raises:
        StoreUnavailable
    """
    rows = await database.fetch(_queries["read_facts"])
    return Lists({row["provider"]: row["facts"] for row in rows})


class ListStore:
    """The lists in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def know(self, providers: Iterable[str]) -> None:
        """These can be asked."""
        await self._database.execute(_queries["know"], list(providers))

    async def claim(self, providers: Iterable[str], *, lease_s: float) -> list[tuple[str, bytes | None, int]]:
        """Whose turn it is, some at a time: the provider, the digest of what it said last, failures in a row."""
        rows = await self._database.fetch(_queries["claim"], list(providers), lease_s)
        return [(row["provider"], row["digest"], row["failures"]) for row in rows]

    async def put(self, provider: str, models: tuple[ListedModel, ...], *, next_s: float) -> None:
        await self._database.execute(
            _queries["put"],
            provider,
            digest_of(models),
            encode_models(models),
            encode_facts(models),
            len(models),
            next_s,
        )

    async def keep(self, provider: str, *, next_s: float) -> None:
        await self._database.execute(_queries["keep"], provider, next_s)

    async def postpone(self, provider: str, why: str, *, next_s: float) -> None:
        await self._database.execute(_queries["postpone"], provider, why, next_s)

    async def doubt(self) -> None:
        """It is everybody's turn."""
        await self._database.execute(_queries["doubt"])

    async def digests(self) -> dict[str, bytes]:
        """Of every list there is."""
        return {row["provider"]: row["digest"] for row in await self._database.fetch(_queries["read_digests"])}

    async def states(self) -> tuple[ListState, ...]:
        """Of every provider that can be asked."""
        rows = await self._database.fetch(_queries["read_states"])
        return tuple(
            ListState(
                provider=row["provider"],
                model_count=row["model_count"] or 0,
                listed_s=row["listed_s"],
                failures=row["failures"],
                error=row["error"],
            )
            for row in rows
        )

    async def read(self, provider: str) -> tuple[ListedModel, ...]:
        data = await self._database.fetch_value(_queries["read_list"], provider)
        return () if data is None else await decode_models(data)
