"""Prices that administrators have set, over those of the configuration; kept in the database, for every worker.

Rules:
- What is set for a model stands in the place of the prices in its row. Any price replaces all of them, as a row
  replaces the catalogue's; a markup alone leaves prices as they are. Nothing else of the row changes.
- The name is one of the configuration, or any that a wildcard takes; `*` is for models that nothing else is known of.
- Whoever changes them publishes on `CHANNEL`; workers then read all of them and put a new table of offers in place of
  the old one. A request is charged by the table that it was admitted by.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gateway.catalogue.lists import Lists
from gateway.catalogue.prices import Catalogue
from gateway.catalogue.rows import PRICE_KEYS, Pricer
from gateway.infra.postgres import Database, load_queries
from gateway.settings import Model, Settings

#: Says that prices changed, or what providers say of their models; the message means nothing.
CHANNEL: Final = b"gateway:prices"
USD_MAX: Final = 1_000_000.0
MARKUP_MAX: Final = 100.0

_Usd = Annotated[float, Meta(ge=0, le=USD_MAX)]
_queries: Final = load_queries(Path(__file__).with_name("overrides.sql"))


class Override(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is set of one model: dollars, for a million tokens or for one of what the name says."""

    #: Costs nothing.
    free: bool | None = None
    input_usd_per_mtok: _Usd | None = None
    output_usd_per_mtok: _Usd | None = None
    input_cached_usd_per_mtok: _Usd | None = None
    input_cache_write_usd_per_mtok: _Usd | None = None
    input_cache_write_1h_usd_per_mtok: _Usd | None = None
    input_audio_usd_per_mtok: _Usd | None = None
    output_audio_usd_per_mtok: _Usd | None = None
    output_reasoning_usd_per_mtok: _Usd | None = None
    image_usd: _Usd | None = None
    second_usd: _Usd | None = None
    character_usd: _Usd | None = None
    search_usd: _Usd | None = None
    request_usd: _Usd | None = None
    #: What the price is multiplied by.
    markup: Annotated[float, Meta(gt=0, le=MARKUP_MAX)] | None = None

    def over(self, row: Model) -> Model:
        """The row of the configuration with this in the place of its prices."""
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        if PRICE_KEYS.keys() & given.keys():
            given = {**dict.fromkeys(PRICE_KEYS), "images_usd": {}, "free": False, **given}
        return msgspec.structs.replace(row, **given)


assert set(PRICE_KEYS) < set(Override.__struct_fields__) < set(Model.__struct_fields__)


def pricer_with(
    settings: Settings, catalogue: Catalogue, overrides: Mapping[str, Override], lists: Lists | None = None
) -> Pricer:
    """What prices offers under these.

    Raises:
        ConfigError: one of them can't be meant.
    """
    rows = {model: override.over(settings.models.get(model, Model())) for model, override in overrides.items()}
    return Pricer(msgspec.structs.replace(settings, models={**settings.models, **rows}), catalogue, lists)


async def read_overrides(database: Database) -> dict[str, Override]:
    """All of them, by model.

    Raises:
        StoreUnavailable
    """
    rows = await database.fetch(_queries["read_overrides"])
    return {row["model"]: msgspec.json.decode(row["prices"], type=Override) for row in rows}
