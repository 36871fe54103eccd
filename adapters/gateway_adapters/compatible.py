"""Every OpenAI-compatible provider: the relay of `openai.py`, told by a row of `providers.toml` what differs.

The row is the one of the provider's own name, or the one that `row` names. A provider without a row is described by
its table in the configuration, which takes the same keys. A provider earns a module of its own only where data can't
say what differs.
"""

from collections.abc import Iterable
from typing import ClassVar

from gateway.api import Adapter, ConfigError, KnownProvider, ProviderConfig
from gateway_adapters import rows
from gateway_adapters.openai import OpenAI


class Compatible(OpenAI):
    """A provider that speaks OpenAI's dialects, more or less."""

    ID: ClassVar[str] = "compatible"

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        return [row for row in rows.known(cls.ID) if row.name != "openai"]

    def configure(self, config: ProviderConfig) -> None:
        table = dict(config.extra)
        name = table.pop("row", None)
        if name is not None and (not isinstance(name, str) or name not in rows.built_in()):
            near = rows.suggestion(str(name), rows.built_in())
            raise ConfigError(f'there is no row "{name}"{near}', param="row")
        self.take(rows.row_of(name or config.name, table), config)


_: type[Adapter] = Compatible
