"""The registry is tested with entry points made here; that real packages are found is tested with the template."""

from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest

from gateway import registry
from gateway.api import (
    Call,
    ConfigError,
    Dialect,
    Failure,
    KnownProvider,
    Offer,
    ProviderConfig,
    ResponseHead,
    Tap,
    UpstreamRequest,
)
from gateway.registry import ADAPTERS, Registry, discover, known_providers
from gateway.secret import Secret
from gateway.settings import Provider, Settings, Timeouts, Upstream


class Fine:
    """The least an adapter can be."""

    ID: ClassVar[str] = "fine"
    API: ClassVar[int] = 1
    dialects: frozenset[Dialect] = frozenset({Dialect.OPENAI_CHAT})

    def configure(self, config: ProviderConfig) -> None:
        if config.extra.keys() - {"colour"}:
            raise ConfigError("there is no such key")
        self.config = config

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        raise NotImplementedError

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        raise NotImplementedError

    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        raise NotImplementedError


class Old(Fine):
    ID = "old"
    API = 0


class Misnamed(Fine):
    ID = "another"


class Halved:
    ID = "halved"
    API = 1

    def configure(self, config: ProviderConfig) -> None: ...

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        raise NotImplementedError


class Silent(Fine):
    ID = "silent"
    dialects = None  # type: ignore[assignment]  # the mistake under test


class Faulty(Fine):
    ID = "faulty"

    def configure(self, config: ProviderConfig) -> None:
        raise KeyError("region")


class Alive(Fine):
    ID = "alive"
    journal: ClassVar[list[str]] = []

    async def start(self) -> None:
        if self.config.extra.get("colour") == "broken":
            raise OSError("no socket")
        self.journal.append(f"start {self.config.name}")

    async def stop(self) -> None:
        self.journal.append(f"stop {self.config.name}")


class Knowing(Fine):
    ID = "knowing"

    @classmethod
    def known(cls) -> list[KnownProvider]:
        return [KnownProvider(name="acme", title="Acme", adapter="knowing", variable="ACME_API_KEY", base_url="")]


class KnowingToo(Knowing):
    ID = "knowing-too"


not_a_class = Fine()


def package(tmp_path: Path, name: str, version: str = "1.0", **adapters: str) -> list[EntryPoint]:
    """Entry points of an installed distribution, from metadata on disk as an installer writes it."""
    info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "".join(f"{key} = {value}\n" for key, value in adapters.items())
    (info / "entry_points.txt").write_text(f"[{ADAPTERS}]\n{lines}")
    return list(Distribution.at(info).entry_points)


def here(name: str) -> str:
    return f"{__name__}:{name}"


class Installed:
    """Stands for what is installed."""

    def __init__(self, *packages: Iterable[EntryPoint]) -> None:
        self.entry_points = [entry_point for package in packages for entry_point in package]

    def __call__(self, group: str) -> list[EntryPoint]:
        return [entry_point for entry_point in self.entry_points if entry_point.group == group]


def settings(**providers: Provider) -> Settings:
    return Settings(providers=providers, upstream=Upstream(timeouts=Timeouts(connect_s=7)))


def test_each_provider_gets_its_own_configured_instance(tmp_path: Path) -> None:
    installed = Installed(package(tmp_path, "fine-pack", fine=here("Fine")))
    timeouts = Timeouts(connect_s=1)

    loaded = Registry.load(
        settings(
            one=Provider(adapter="fine", base_url="http://one", api_key=Secret("k1"), extra={"colour": "red"}),
            two=Provider(adapter="fine", models=("m",), timeouts=timeouts),
        ),
        entry_points=installed,
    )

    one, two = loaded.providers["one"], loaded.providers["two"]
    assert isinstance(one.adapter, Fine)
    assert isinstance(two.adapter, Fine)
    assert one.adapter is not two.adapter
    assert one.adapter.config.name == "one"
    assert one.adapter.config.base_url == "http://one"
    assert one.adapter.config.extra == {"colour": "red"}
    assert two.adapter.config.base_url is None
    assert (one.models, two.models) == (("*",), ("m",))
    assert (one.timeouts.connect_s, two.timeouts) == (7, timeouts)
    assert repr(loaded) == "<Registry [one: fine, two: fine]>"


def test_what_the_configuration_does_not_name_is_not_imported(tmp_path: Path) -> None:
    installed = Installed(package(tmp_path, "pack", fine=here("Fine"), bomb="no_such_module_here:Adapter"))

    loaded = Registry.load(
        settings(one=Provider(adapter="fine"), off=Provider(adapter="bomb", enabled=False)), entry_points=installed
    )

    assert list(loaded.providers) == ["one"]


def test_a_name_claimed_twice_stops_the_start_even_unused_and_names_both(tmp_path: Path) -> None:
    installed = Installed(
        package(tmp_path, "pack-b", "2.0", fine=here("Fine")), package(tmp_path, "pack-a", fine=here("Fine"))
    )

    with pytest.raises(ConfigError) as caught:
        Registry.load(settings(), entry_points=installed)

    assert 'gateway.adapters: "fine" is claimed by two packages, pack-a 1.0 and pack-b 2.0' in caught.value.message


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("gone", "no_such_module_here:Adapter", '"gone" of bad-pack 1.0 could not be imported'),
        ("gone", "no_such_module_here:Adapter", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("typo", here("Fime"), "AttributeError"),
        ("old", here("Old"), 'adapter "old" of bad-pack 1.0 was written for API version 0; this gateway has 1'),
        ("fine", here("not_a_class"), 'adapter "fine" of bad-pack 1.0 is not a class'),
        ("misnamed", here("Misnamed"), "calls itself 'another'"),
        ("halved", here("Halved"), 'adapter "halved" of bad-pack 1.0 has no prepare, no classify'),
        ("silent", here("Silent"), 'adapter "silent" of bad-pack 1.0 states no dialects'),
        ("faulty", here("Faulty"), "bad-pack 1.0 failed to configure: KeyError: 'region'"),
    ],
)
def test_a_broken_package_stops_the_start_and_is_named(tmp_path: Path, name: str, target: str, message: str) -> None:
    installed = Installed(package(tmp_path, "bad-pack", **{name: target}))

    with pytest.raises(ConfigError) as caught:
        Registry.load(settings(one=Provider(adapter=name)), entry_points=installed)

    assert message in caught.value.message


def test_a_refused_table_names_the_provider(tmp_path: Path) -> None:
    installed = Installed(package(tmp_path, "fine-pack", fine=here("Fine")))

    with pytest.raises(ConfigError, match=r"providers\.one: there is no such key"):
        Registry.load(settings(one=Provider(adapter="fine", extra={"color": 1})), entry_points=installed)


@pytest.mark.parametrize(
    ("key", "meant"), [("modles", "models"), ("api_keyz", "api_key"), ("droop", "drop"), ("colour", None)]
)
def test_a_misspelt_key_gets_a_suggestion(key: str, meant: str | None) -> None:
    provider = Provider(adapter="openai", base_url="http://127.0.0.1:1/v1", extra={key: "x"})

    with pytest.raises(ConfigError) as caught:
        Registry.load(settings(one=provider))

    message = caught.value.message
    assert message.startswith(f"providers.one.{key}: ")
    assert ("did you mean" in message) is (meant is not None)
    assert meant is None or meant in message.partition("did you mean")[2]


def test_an_unknown_adapter_gets_a_suggestion(tmp_path: Path) -> None:
    installed = Installed(package(tmp_path, "fine-pack", fine=here("Fine"), alive=here("Alive")))

    with pytest.raises(ConfigError) as caught:
        Registry.load(settings(one=Provider(adapter="fin")), entry_points=installed)

    assert caught.value.message == (
        'providers.one.adapter: no adapter "fin" is installed; did you mean "fine"? there are: alive, fine'
    )


async def test_adapters_with_a_life_are_started_in_order_and_stopped_in_reverse(tmp_path: Path) -> None:
    Alive.journal.clear()
    installed = Installed(package(tmp_path, "pack", fine=here("Fine"), alive=here("Alive")))
    loaded = Registry.load(
        settings(a=Provider(adapter="alive"), b=Provider(adapter="fine"), c=Provider(adapter="alive")),
        entry_points=installed,
    )

    await loaded.start()
    await loaded.stop()
    await loaded.stop()

    assert Alive.journal == ["start a", "start c", "stop c", "stop a"]


async def test_when_one_cannot_start_those_started_are_stopped_and_it_is_named(tmp_path: Path) -> None:
    Alive.journal.clear()
    installed = Installed(package(tmp_path, "pack", alive=here("Alive")))
    loaded = Registry.load(
        settings(a=Provider(adapter="alive"), b=Provider(adapter="alive", extra={"colour": "broken"})),
        entry_points=installed,
    )

    with pytest.raises(OSError, match="no socket") as caught:
        await loaded.start()

    assert caught.value.__notes__ == ["while starting provider b"]
    assert Alive.journal == ["start a", "stop a"]


def test_only_our_own_adapters_are_asked_what_they_know(tmp_path: Path) -> None:
    installed = Installed(
        package(tmp_path, registry.OWN_DISTRIBUTION, fine=here("Fine"), knowing=here("Knowing")),
        package(tmp_path, "third-party", bomb="no_such_module_here:Adapter"),
    )

    assert list(known_providers(entry_points=installed)) == ["acme"]


def test_two_adapters_must_not_know_the_same_provider(tmp_path: Path) -> None:
    installed = Installed(
        package(
            tmp_path, registry.OWN_DISTRIBUTION, **{"knowing": here("Knowing"), "knowing-too": here("KnowingToo")}
        )
    )

    with pytest.raises(ConfigError, match="both know acme"):
        known_providers(entry_points=installed)


def test_what_is_really_installed_has_no_duplicates() -> None:
    assert {"openai", "compatible", "echo"} <= discover(ADAPTERS).keys()


def test_each_key_of_a_provider_has_an_instance_of_its_own() -> None:
    row = Provider(adapter="openai", base_url="http://127.0.0.1/v1", api_key=Secret("a"), api_keys=(Secret("b"),))

    provider = Registry.load(Settings(providers={"p": row})).providers["p"]

    assert len({id(adapter) for adapter in provider.adapters}) == 2
    assert provider.adapter is provider.adapters[0]
