"""Which adapters there are, and one configured instance for each provider.

Adapters and plugins are ordinary packages found by entry points; those of this distribution come through the same
door. Everything that can be wrong with one is found here, at start-up, and the message names the package.

Rules:
- A name belongs to one distribution. Two that claim it stop the start, whether or not it is used: the standard
  library would hand out either of them without a word.
- Only what the configuration enables is imported.
- An adapter states the API version it was written for; another one is refused, never tried.
- An instance belongs to one key of one provider. Nothing is shared between two of them, nor between two registries,
  so that a reload can start the new one before it stops the old.

No adapter is called here on behalf of a request.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib import metadata
from importlib.metadata import EntryPoint
from types import MappingProxyType

from gateway.api import (
    API_VERSION,
    Adapter,
    ConfigError,
    Dialect,
    Known,
    KnownProvider,
    Lifecycle,
    OwnKeyed,
    ProviderConfig,
    Selective,
)
from gateway.secret import Secret
from gateway.settings import Provider as ProviderSettings
from gateway.settings import Settings, Timeouts

ADAPTERS = "gateway.adapters"
PLUGINS = "gateway.plugins"
#: The distribution whose adapters may say which providers they know by name.
OWN_DISTRIBUTION = "ai-gateway"

#: Gives the entry points of a group.
Discover = Callable[[str], Iterable[EntryPoint]]

#: What a provider's table may hold whatever its adapter is.
COMMON_KEYS = tuple(key for key in ProviderSettings.__struct_fields__ if key != "extra")

_METHODS = ("configure", "prepare", "tap", "classify")


def installed(group: str) -> Iterable[EntryPoint]:
    """The entry points that installed distributions declare in `group`."""
    return metadata.entry_points(group=group)


@dataclass(frozen=True, slots=True)
class Provider:
    """A configured provider: its adapter's instance, and what routing and the client need to know."""

    name: str
    #: One instance for each of its keys; alike but for the key.
    adapters: tuple[Adapter, ...]
    timeouts: Timeouts
    #: Public model names; `*` is every model that no other provider names.
    models: tuple[str, ...]
    #: What the adapter relays, and with that, what it translates.
    native: frozenset[Dialect] = frozenset()
    served: frozenset[Dialect] = frozenset()
    #: What the adapter reads in a chat completion besides what OpenAI's reference has.
    extensions: frozenset[str] = frozenset()
    #: Tells whether one of those dialects is for a model; None where all are for every one.
    picks: Callable[[Dialect, str], bool] | None = None
    #: What tells its keys apart without giving them away, in the order of `adapters`.
    fingerprints: tuple[str, ...] = ()

    def relays(self, dialect: Dialect, model: str) -> bool:
        """Whether calls in this dialect go to this model, as the provider calls it, as they came."""
        return dialect in self.native and (self.picks is None or self.picks(dialect, model))

    def takes(self, dialect: Dialect, model: str) -> bool:
        """Whether the adapter takes calls in this dialect for this model."""
        return dialect in self.served and (self.picks is None or self.picks(dialect, model))

    @property
    def adapter(self) -> Adapter:
        """For what is the same with any key."""
        return self.adapters[0]


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a provider came from: what makes another instance of it."""

    settings: ProviderSettings
    adapter_class: type[Adapter]
    entry_point: EntryPoint


class Registry:
    """The providers of one configuration. `start` before the first request, `stop` after the last."""

    def __init__(self, providers: dict[str, Provider], origins: Mapping[str, _Origin] = MappingProxyType({})) -> None:
        self.providers = providers
        self._origins = origins
        self._running = AsyncExitStack()

    @classmethod
    def load(cls, settings: Settings, *, entry_points: Discover = installed) -> "Registry":
        """Import, check and configure the adapter of every enabled provider.

        Raises:
            ConfigError: naming the provider, and the package where it is the package's fault.
        """
        adapters = discover(ADAPTERS, entry_points=entry_points)
        discover(PLUGINS, entry_points=entry_points)
        classes: dict[str, type[Adapter]] = {}
        providers: dict[str, Provider] = {}
        origins: dict[str, _Origin] = {}
        for name, provider in settings.providers.items():
            if not provider.enabled:
                continue
            if provider.adapter not in adapters:
                raise _unknown_adapter(name, provider.adapter, adapters)
            entry_point = adapters[provider.adapter]
            if provider.adapter not in classes:
                classes[provider.adapter] = load_adapter(entry_point)
            configured = tuple(
                _configured(name, provider, key, classes[provider.adapter], entry_point) for key in _keys_of(provider)
            )
            native = configured[0].dialects
            providers[name] = Provider(
                name=name,
                adapters=configured,
                timeouts=provider.timeouts or settings.upstream.timeouts,
                models=provider.models,
                native=native,
                fingerprints=tuple(map(_fingerprint, _keys_of(provider))),
                served=native | getattr(configured[0], "translates", frozenset()),
                extensions=getattr(configured[0], "extensions", frozenset()),
                picks=configured[0].serves if isinstance(configured[0], Selective) else None,
            )
            origins[name] = _Origin(provider, classes[provider.adapter], entry_point)
        return cls(providers, origins)

    def takes_own_keys(self, name: str) -> bool:
        """Whether a provider may be used with keys that accounts bring themselves."""
        origin = self._origins.get(name)
        return origin is not None and issubclass(origin.adapter_class, OwnKeyed)

    def make_own(self, name: str, key: Secret, *, fingerprint: str) -> Provider:
        """The same provider with an account's own key, and nothing of the operator's credentials.

        Raises:
            ConfigError: it is not configured, takes no such keys, or not this one. With a `param`, that is of the
                table of the provider; `api_key` is the key. Nothing of the key is in the message.
        """
        if not self.takes_own_keys(name):
            raise ConfigError("takes no keys of one's own")
        provider, origin = self.providers[name], self._origins[name]
        assert issubclass(origin.adapter_class, OwnKeyed)
        given = origin.settings
        table = ProviderConfig(name=name, base_url=given.base_url or None, api_key=None, extra=given.extra)
        try:
            adapter = origin.adapter_class()
            adapter.configure(origin.adapter_class.own(table, key))
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  a border: adapters are anybody's, and their words may hold the key
            raise ConfigError(f"can't be used: the adapter failed with {type(error).__name__}") from None
        if isinstance(adapter, Lifecycle):
            raise ConfigError("takes no keys of one's own")
        return replace(provider, adapters=(adapter,), fingerprints=(fingerprint,))

    async def start(self) -> None:
        """Start the adapters that have a life of their own; if one can't, those already started are stopped."""
        async with AsyncExitStack() as stack:
            for provider in self.providers.values():
                for adapter in provider.adapters:
                    if isinstance(adapter, Lifecycle):
                        try:
                            await adapter.start()
                        except BaseException as error:
                            error.add_note(f"while starting provider {provider.name}")
                            raise
                        stack.push_async_callback(adapter.stop)
            self._running = stack.pop_all()

    async def stop(self) -> None:
        """Stop what was started, last first; one that fails to does not keep the others from it."""
        await self._running.aclose()

    def adapters(self) -> Iterator[tuple[str, Adapter]]:
        """Every instance, with its provider's name."""
        return ((provider.name, adapter) for provider in self.providers.values() for adapter in provider.adapters)

    def __repr__(self) -> str:
        return f"<Registry [{', '.join(f'{p.name}: {p.adapter.ID}' for p in self.providers.values())}]>"


def discover(group: str, *, entry_points: Discover = installed) -> dict[str, EntryPoint]:
    """Everything installed in `group` by name, nothing of it imported.

    Raises:
        ConfigError: two distributions claim one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry_point in entry_points(group):
        other = found.setdefault(entry_point.name, entry_point)
        if other is not entry_point:
            first, second = sorted((distribution(other), distribution(entry_point)))
            raise ConfigError(
                f'{group}: "{entry_point.name}" is claimed by two packages, {first} and {second}; uninstall one'
            )
    return found


def distribution(entry_point: EntryPoint) -> str:
    """Name and version of the package that declares it."""
    return f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "(unknown package)"


def load_object(entry_point: EntryPoint) -> object:
    """What an entry point names.

    Raises:
        ConfigError: importing it failed, in whatever way; the cause is chained.
    """
    try:
        return entry_point.load()
    except Exception as error:
        raise ConfigError(
            f'{entry_point.group}: "{entry_point.name}" of {distribution(entry_point)} could not be imported '
            f"from {entry_point.value}: {type(error).__name__}: {error}"
        ) from error


def load_class(entry_point: EntryPoint, *, kind: str) -> tuple[type, str]:
    """The class an entry point names, for this API and under its own name; and what a message calls it.

    Raises:
        ConfigError: it can't be imported, is no class, was written for another API version, or has another name.
    """
    loaded = load_object(entry_point)
    who = f'{kind} "{entry_point.name}" of {distribution(entry_point)}'
    if not isinstance(loaded, type):
        raise ConfigError(f"{who} is not a class: {entry_point.value}")
    version = getattr(loaded, "API", None)
    if version != API_VERSION:
        raise ConfigError(f"{who} was written for API version {version}; this gateway has {API_VERSION}")
    if getattr(loaded, "ID", None) != entry_point.name:
        raise ConfigError(f"{who} calls itself {getattr(loaded, 'ID', None)!r}; ID must be the entry-point name")
    return loaded, who


def load_adapter(entry_point: EntryPoint) -> type[Adapter]:
    """The adapter class an entry point names, held to the contract.

    Raises:
        ConfigError: it can't be imported, was written for another API version, or is not shaped like an adapter.
    """
    loaded, who = load_class(entry_point, kind="adapter")
    missing = [method for method in _METHODS if not callable(getattr(loaded, method, None))]
    if missing:
        raise ConfigError(f"{who} has no {', no '.join(missing)}")
    return loaded


def known_providers(*, entry_points: Discover = installed) -> dict[str, KnownProvider]:
    """Every provider that needs no word on how to reach it, by name: a variable alone can turn most of them on.

    Only this distribution's adapters are asked: a third party's code is not imported unless the configuration names
    it.

    Raises:
        ConfigError: two adapters know a provider of the same name, or one can't be imported.
    """
    known: dict[str, KnownProvider] = {}
    for entry_point in discover(ADAPTERS, entry_points=entry_points).values():
        if entry_point.dist is None or entry_point.dist.name != OWN_DISTRIBUTION:
            continue
        adapter = load_adapter(entry_point)
        if not issubclass(adapter, Known):
            continue
        for provider in adapter.known():
            other = known.setdefault(provider.name, provider)
            if other is not provider:
                raise ConfigError(f"adapters {other.adapter} and {provider.adapter} both know {provider.name}")
    return known


def _keys_of(provider: ProviderSettings) -> tuple[Secret | None, ...]:
    """All keys, the plain one first; a provider without any has one that is None."""
    first = () if provider.api_key is None else (provider.api_key,)
    return (*first, *provider.api_keys) or (None,)


def _fingerprint(secret: Secret | None) -> str:
    """The same for the same key, for ever: what a key owns is found again by it."""
    return (
        "" if secret is None else blake2b(secret.reveal().encode(), digest_size=8, person=b"provider key").hexdigest()
    )


def _configured(
    name: str,
    provider: ProviderSettings,
    secret: Secret | None,
    adapter_class: type[Adapter],
    entry_point: EntryPoint,
) -> Adapter:
    """An instance for this provider and this key alone."""
    try:
        adapter = adapter_class()
        adapter.configure(
            ProviderConfig(name=name, base_url=provider.base_url or None, api_key=secret, extra=provider.extra)
        )
    except ConfigError as error:
        key = f"providers.{name}.{error.param}" if error.param else f"providers.{name}"
        raise ConfigError(f"{key}: {error.message}{_meant(error, provider)}", param=key) from error
    except Exception as error:
        raise ConfigError(
            f'providers.{name}: adapter "{entry_point.name}" of {distribution(entry_point)} failed to configure: '
            f"{type(error).__name__}: {error}",
            param=f"providers.{name}",
        ) from error
    dialects = getattr(adapter, "dialects", None)
    if not isinstance(dialects, frozenset) or not all(isinstance(dialect, Dialect) for dialect in dialects):
        raise ConfigError(
            f'providers.{name}: adapter "{entry_point.name}" of {distribution(entry_point)} states no dialects; '
            "a frozenset of Dialect is needed",
            param=f"providers.{name}",
        )
    return adapter


def _meant(error: ConfigError, provider: ProviderSettings) -> str:
    """The key that every provider has and that was probably meant, where an adapter refused one as its own."""
    if error.param not in provider.extra or "did you mean" in error.message:
        return ""
    close = difflib.get_close_matches(error.param, COMMON_KEYS, n=1, cutoff=0.75)
    return f"; did you mean `{close[0]}`?" if close else ""


def _unknown_adapter(name: str, adapter: str, adapters: Mapping[str, EntryPoint]) -> ConfigError:
    close = difflib.get_close_matches(adapter, adapters, n=1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    names = ", ".join(sorted(adapters))
    key = f"providers.{name}.adapter"
    return ConfigError(f'{key}: no adapter "{adapter}" is installed; {hint}there are: {names}', param=key)
