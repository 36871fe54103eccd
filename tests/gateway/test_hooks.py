"""Plugins, loaded from entry points made here, and called as the stages call them. That real packages are found is
tested with the template, and that they do what they should to requests in `tests/acceptance/test_plugins.py`.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest

from gateway import hooks
from gateway.api import (
    Call,
    ConfigError,
    Dialect,
    Headers,
    Offer,
    Origin,
    Rejected,
    Request,
    Settled,
    UpstreamRequest,
)
from gateway.errors import PluginFailed
from gateway.exchange import Exchange, Principal
from gateway.hooks import Hooks
from gateway.infra.metrics import Registry as MetricsRegistry
from gateway.infra.tasks import TaskGroup
from gateway.plugins import HOOKS, load_plugins
from gateway.registry import PLUGINS
from gateway.settings import Plugin as PluginSettings
from gateway.settings import Settings
from gateway.telemetry import Record
from gateway.wire.paths import Target
from gateway.wire.peek import peek
from tests.gateway.test_registry import Installed

BODY = b'{"model":"m","stream":false,"messages":[{"role":"user","content":"hi"}]}'
OFFER = Offer(model="m", provider="p", upstream_model="m")
SENT = UpstreamRequest(
    method=b"POST",
    origin=Origin("https", "h.example", 443),
    target=b"/v1/x",
    headers=[(b"authorization", b"Bearer sk-operator"), (b"x-own", b"adapter")],
    body=BODY,
)


class Quiet:
    """Does nothing at all four points, but for what its table says."""

    ID: ClassVar[str] = "quiet"
    API: ClassVar[int] = 1

    def configure(self, table: Mapping[str, object]) -> None:
        if unknown := table.keys() - {"say"}:
            raise ConfigError("is not a key", param=min(unknown))
        self.say = table.get("say")
        self.heard: list[object] = []

    async def on_request(self, x: Request) -> bytes | None:
        self.heard.append(x.model)
        x.notes["quiet"] = self.say
        x.tags["quiet"] = "yes"
        return None

    def on_attempt(self, x: Request, offer: Offer, request: UpstreamRequest) -> Headers | None:
        self.heard.append((offer.provider, request.headers, request.body))
        return [(b"x-quiet", b"1"), (b"x-own", b"plugin")]

    def on_head(self, x: Request, status: int, headers: Headers) -> Headers | None:
        self.heard.append((status, headers))
        return [(b"x-quiet", b"2")]

    async def on_settled(self, record: Settled) -> None:
        self.heard.append(record)


class Reading(Quiet):
    ID = "reading"
    reads_body = True

    async def on_request(self, x: Request) -> bytes | None:
        self.heard.append(x.body)
        return None


class Rewriting(Reading):
    ID = "rewriting"
    rewrites_body = True

    async def on_request(self, x: Request) -> bytes | None:
        return x.body.replace(b"hi", b"HELLO")


class Peeping(Quiet):
    ID = "peeping"

    async def on_request(self, x: Request) -> bytes | None:
        return x.body


class Swapping(Rewriting):
    ID = "swapping"

    async def on_request(self, x: Request) -> bytes | None:
        return x.body.replace(b'"m"', b'"dearer"')


class Breaking(Rewriting):
    ID = "breaking"

    async def on_request(self, x: Request) -> bytes | None:
        return x.body[:-3]


class Meddling(Quiet):
    ID = "meddling"
    reads_body = True

    async def on_request(self, x: Request) -> bytes | None:
        return x.body + b" "


class Refusing(Quiet):
    ID = "refusing"

    async def on_request(self, x: Request) -> bytes | None:
        raise Rejected("Not today.")


class Failing(Quiet):
    ID = "failing"

    async def on_request(self, x: Request) -> bytes | None:
        raise KeyError("oops")

    def on_attempt(self, x: Request, offer: Offer, request: UpstreamRequest) -> Headers | None:
        raise KeyError("oops")

    def on_head(self, x: Request, status: int, headers: Headers) -> Headers | None:
        raise KeyError("oops")

    async def on_settled(self, record: Settled) -> None:
        self.heard.append(record)
        raise KeyError("oops")


class Essential(Failing):
    ID = "essential"
    essential = True


class Hanging(Quiet):
    ID = "hanging"

    async def on_request(self, x: Request) -> bytes | None:
        await asyncio.Event().wait()
        return None

    async def on_settled(self, record: Settled) -> None:
        await asyncio.Event().wait()


class Pausing(Rewriting):
    """Waits for others before it answers, and tells what it was told meanwhile."""

    ID = "pausing"

    async def on_request(self, x: Request) -> bytes | None:
        await asyncio.sleep(0)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, b"HELLO")
        said = await future
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            said += b" THERE"
        return x.body.replace(b"hi", said)

    async def on_settled(self, record: Settled) -> None:
        await asyncio.sleep(0)
        raise KeyError(record.id)


class Forging(Quiet):
    ID = "forging"

    def on_attempt(self, x: Request, offer: Offer, request: UpstreamRequest) -> Headers | None:
        return [(b"authorization", b"Bearer other")]

    def on_head(self, x: Request, status: int, headers: Headers) -> Headers | None:
        return [(b"x-split", b"a\r\nset-cookie: b")]


class Living(Quiet):
    ID = "living"
    journal: ClassVar[list[str]] = []

    async def start(self) -> None:
        if self.say == "broken":
            raise OSError("no socket")
        self.journal.append(f"start {self.say}")

    async def stop(self) -> None:
        self.journal.append(f"stop {self.say}")


class Old(Quiet):
    ID = "old"
    API = 0


class Misnamed(Quiet):
    ID = "other"


class Hookless:
    ID = "hookless"
    API = 1

    def configure(self, table: Mapping[str, object]) -> None: ...


class Misspelt(Quiet):
    ID = "misspelt"

    async def on_setled(self, record: Settled) -> None: ...


class Waiting(Quiet):
    ID = "waiting"

    async def on_head(self, x, status, headers): ...  # type: ignore[override]  # the mistake under test


class Short(Quiet):
    ID = "short"

    def on_attempt(self, x): ...  # type: ignore[override]  # the mistake under test


class Faulty(Quiet):
    ID = "faulty"

    def configure(self, table: Mapping[str, object]) -> None:
        raise ZeroDivisionError


def package(tmp_path: Path, name: str, *classes: str) -> list[EntryPoint]:
    info = tmp_path / f"{name}-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
    lines = "".join(f"{each.lower()} = {__name__}:{each}\n" for each in classes)
    (info / "entry_points.txt").write_text(f"[{PLUGINS}]\n{lines}")
    return list(Distribution.at(info).entry_points)


def load(tmp_path: Path, **tables: dict[str, object]) -> tuple[hooks.Plugged, ...]:
    every = [
        name for name, value in globals().items() if isinstance(value, type) and issubclass(value, (Quiet, Hookless))
    ]
    found = Installed(package(tmp_path, "acme", *every))
    plugins = {
        name: PluginSettings(
            enabled=bool(table.pop("enabled", True)),
            plugin=str(table.pop("plugin", "")),
            timeout_s=0.05,
            extra=table,
        )
        for name, table in tables.items()
    }
    return load_plugins(Settings(plugins=plugins), entry_points=found)


def calls(tmp_path: Path, *names: str) -> Hooks:
    return Hooks(load(tmp_path, **{name: {} for name in names}), metrics=MetricsRegistry(incarnation="t"))


def plugin(loaded: Hooks, number: int = 0):
    return loaded.plugged[number].plugin


def exchange(body: bytes = BODY, headers: Headers | None = None) -> Exchange:
    async def unused(*_):
        raise AssertionError

    scope = {"type": "http", "method": "POST", "headers": headers or []}
    target = Target(Dialect.OPENAI_CHAT, b"/chat/completions", "/v1/chat/completions")
    x = Exchange(scope, unused, unused, target, id="r-1", tags={})
    x.principal = Principal(key_id="k", account_id=7, environment="live", limits=b"")
    x.call = Call(
        id="r-1",
        dialect=Dialect.OPENAI_CHAT,
        method="POST",
        path=b"/chat/completions",
        query=b"",
        headers=headers or [],
        body=body,
        peek=peek(body),
        model="m",
    )
    return x


def record() -> Record:
    return Record(time="t", id="r-1", method="POST", route="/v1/chat/completions", status=200, duration_s=1.0)


def counted(loaded: Hooks, family: str) -> dict[tuple[str, ...], float]:
    found = {"troubles": loaded._troubles, "bodies": loaded._bodies}[family]
    return {labels: cell[0] for labels, cell in found._family.series.items()}


# -- loading ---------------------------------------------------------------------------------------------------


def test_only_what_is_on_is_loaded_in_the_order_of_the_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, second={"plugin": "quiet", "say": 2}, refusing={"enabled": False}, quiet={"say": 1})

    assert [(each.name, each.package) for each in loaded] == [("second", "acme 2.0"), ("quiet", "acme 2.0")]
    assert [each.plugin.say for each in loaded] == [2, 1]
    assert loaded[0].hooks == HOOKS.keys()


def test_none_is_none(tmp_path: Path) -> None:
    assert Hooks.of(Settings()) is None


def test_who_rewrites_is_called_first(tmp_path: Path) -> None:
    loaded = load(tmp_path, reading={}, quiet={}, rewriting={})

    assert [each.name for each in loaded] == ["rewriting", "reading", "quiet"]
    assert [(each.reads_body, each.rewrites_body) for each in loaded] == [(True, True), (True, False), (False, False)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("old", "was written for API version 0; this gateway has 1"),
        ("misnamed", "calls itself 'other'"),
        ("hookless", "has no hook: on_request, on_attempt, on_head, on_settled"),
        ("misspelt", "has a method on_setled, which is no hook; did you mean on_settled?"),
        ("waiting", "has a hook on_head that is not a plain function: it must not wait"),
        ("short", "has a hook on_attempt that does not take (self, x, offer, request)"),
        ("faulty", "failed to configure: ZeroDivisionError"),
    ],
)
def test_a_broken_plugin_stops_the_start_and_its_package_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **{name: {}})

    assert message in caught.value.message
    assert "acme 2.0" in caught.value.message


def test_one_that_is_not_installed_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'plugins.quite: no plugin "quite" is installed; did you mean "quiet"\?'):
        load(tmp_path, quite={})


def test_a_key_it_does_not_know_is_named_with_its_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, quiet={"sya": 1})

    assert (caught.value.param, caught.value.message) == ("plugins.quiet.sya", "plugins.quiet.sya: is not a key")


def test_a_name_that_two_packages_claim_stops_the_start(tmp_path: Path) -> None:
    found = Installed(package(tmp_path / "a", "one", "Quiet"), package(tmp_path / "b", "two", "Quiet"))

    with pytest.raises(ConfigError, match=r'"quiet" is claimed by two packages, one 2.0 and two 2.0'):
        load_plugins(Settings(), entry_points=found)


# -- on_request ------------------------------------------------------------------------------------------------


async def test_a_request_is_shown_without_its_body_and_its_credentials(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "quiet")
    hidden = [b"authorization", b"x-api-key", b"cookie", b"sec-websocket-protocol"]
    headers = [*((name, b"gw_live_secret") for name in hidden), (b"x-team", b"blue")]
    x = exchange(headers=headers)

    await loaded.ask(x)

    seen = x.seen
    assert seen is not None
    assert (seen.id, seen.model, seen.account_id, seen.key_id) == ("r-1", "m", 7, "k")
    assert (seen.method, seen.path, seen.dialect, seen.stream) == (
        "POST",
        b"/chat/completions",
        Dialect.OPENAI_CHAT,
        False,
    )
    assert seen.header(b"x-team") == b"blue"
    assert [seen.header(name) for name in hidden] == [None] * 4
    assert seen.has_body
    assert not seen.has_upload
    with pytest.raises(PermissionError):
        _ = seen.body
    assert x.tags == {"quiet": "yes"}
    assert counted(loaded, "bodies") == {}


async def test_who_declares_it_reads_the_body(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "reading")

    await loaded.ask(exchange())

    assert plugin(loaded).heard == [BODY]
    assert counted(loaded, "bodies") == {("reading", "untouched"): 1}


async def test_a_rewritten_body_is_what_goes_on_and_what_the_next_one_reads(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "reading", "rewriting")
    x = exchange()

    await loaded.ask(x)

    changed = BODY.replace(b"hi", b"HELLO")
    assert x.call is not None
    assert x.call.body == changed
    assert x.call.peek == peek(changed)
    assert plugin(loaded, 1).heard == [changed]
    assert counted(loaded, "bodies") == {("rewriting", "rewritten"): 1, ("reading", "untouched"): 1}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("peeping", "a plugin that reads bodies has to declare it"),
        ("swapping", "asks for something else"),
        ("breaking", "is no request"),
        ("meddling", "does not declare rewrites_body"),
    ],
)
async def test_what_it_may_not_do_to_a_body_is_not_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, why: str
) -> None:
    loaded = calls(tmp_path, name)
    x = exchange()

    await loaded.ask(x)

    assert x.call is not None
    assert x.call.body is BODY
    assert why in caplog.text
    assert counted(loaded, "troubles") == {(name, "on_request", "failed"): 1}


async def test_a_rejection_is_the_callers(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "refusing", "quiet")

    with pytest.raises(Rejected, match="Not today"):
        await loaded.ask(exchange())

    assert plugin(loaded, 1).heard == []
    assert counted(loaded, "troubles") == {("refusing", "on_request", "rejected"): 1}


async def test_a_failure_is_nobodys_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = calls(tmp_path, "failing", "quiet")

    for _ in range(3):
        await loaded.ask(exchange())

    assert plugin(loaded, 1).heard == ["m"] * 3
    assert counted(loaded, "troubles") == {("failing", "on_request", "failed"): 3}
    assert len([line for line in caplog.records if line.levelno == logging.ERROR]) == 1
    assert "plugin failing of acme 2.0 failed in on_request" in caplog.text


async def test_one_without_which_nothing_goes_refuses_by_failing(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "essential")

    with pytest.raises(PluginFailed) as caught:
        await loaded.ask(exchange())

    assert caught.value.status == 503
    assert "oops" not in caught.value.message


async def test_one_that_takes_too_long_is_left_behind(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "hanging", "quiet")

    await loaded.ask(exchange())

    assert plugin(loaded, 1).heard == ["m"]
    assert counted(loaded, "troubles") == {("hanging", "on_request", "late"): 1}


async def test_one_that_has_to_wait_is_waited_for(tmp_path: Path) -> None:
    loaded = Hooks(
        tuple(replace(each, timeout_s=20.0) for each in load(tmp_path, pausing={})),
        metrics=MetricsRegistry(incarnation="t"),
    )
    x = exchange()
    tasks = TaskGroup()
    await loaded.start(tasks)

    await loaded.ask(x)
    loaded.settled(x, record())
    await loaded.stop()

    assert x.call is not None
    assert x.call.body == BODY.replace(b"hi", b"HELLO THERE")
    assert counted(loaded, "troubles") == {("pausing", "on_settled", "failed"): 1}
    await tasks.close()


async def test_a_caller_who_leaves_is_no_fault_of_a_plugin(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "hanging")
    asking = asyncio.ensure_future(loaded.ask(exchange()))
    await asyncio.sleep(0)

    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert counted(loaded, "troubles") == {}


# -- on_attempt and on_head ------------------------------------------------------------------------------------


async def test_headers_are_added_and_none_is_replaced(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "quiet")
    x = exchange()
    await loaded.ask(x)

    sent = loaded.attempt(x, OFFER, SENT)
    added = loaded.head(x, 200, [(b"content-type", b"a/b")])

    assert sent.headers == [*SENT.headers, (b"x-quiet", b"1")]
    assert (sent.body, sent.target) == (SENT.body, SENT.target)
    assert added == [(b"x-quiet", b"2")]
    assert plugin(loaded).heard[1:] == [("p", [], b""), (200, [(b"content-type", b"a/b")])]


@pytest.mark.parametrize("name", ["failing", "forging"])
async def test_nothing_wrong_with_them_reaches_the_wire(tmp_path: Path, name: str) -> None:
    loaded = calls(tmp_path, name)
    x = exchange()
    await loaded.ask(x)

    assert loaded.attempt(x, OFFER, SENT) is SENT
    assert loaded.head(x, 200, []) == []
    assert (
        counted(loaded, "troubles").items()
        >= {
            (name, "on_attempt", "failed"): 1,
            (name, "on_head", "failed"): 1,
        }.items()
    )


# -- on_settled and a life -------------------------------------------------------------------------------------


async def test_what_became_of_it_is_told_with_what_was_noted(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "quiet")
    tasks = TaskGroup()
    await loaded.start(tasks)
    x = exchange()
    await loaded.ask(x)

    loaded.settled(x, record())
    await loaded.stop()

    told = plugin(loaded).heard[-1]
    assert isinstance(told, Settled)
    assert (told.id, told.status, told.tags, told.notes) == ("r-1", 200, {"quiet": "yes"}, {"quiet": None})
    await tasks.close()


async def test_one_that_fails_hears_of_the_next_and_one_that_hangs_delays_nobody(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "failing", "hanging", "quiet")
    tasks = TaskGroup()
    await loaded.start(tasks)

    for _ in range(2):
        loaded.settled(exchange(), record())
    await loaded.stop()

    assert [len(plugin(loaded, number).heard) for number in (0, 2)] == [2, 2]
    assert counted(loaded, "troubles") == {
        ("failing", "on_settled", "failed"): 2,
        ("hanging", "on_settled", "late"): 2,
    }
    await tasks.close()


async def test_records_beyond_the_queue_are_counted_as_lost(tmp_path: Path) -> None:
    loaded = calls(tmp_path, "hanging")

    for _ in range(hooks.QUEUE_MAX + 3):
        loaded.settled(exchange(), record())

    assert counted(loaded, "troubles") == {("hanging", "on_settled", "lost"): 3}


async def test_lives_begin_in_order_and_end_in_reverse(tmp_path: Path) -> None:
    Living.journal.clear()
    tasks = TaskGroup()
    loaded = Hooks(load(tmp_path, living={"say": 1}, other={"plugin": "living", "say": 2}))

    await loaded.start(tasks)
    await loaded.stop()

    assert Living.journal == ["start 1", "start 2", "stop 2", "stop 1"]
    await tasks.close()


async def test_one_that_cannot_start_stops_the_start_and_those_before_it(tmp_path: Path) -> None:
    Living.journal.clear()
    tasks = TaskGroup()
    loaded = Hooks(load(tmp_path, living={"say": 1}, other={"plugin": "living", "say": "broken"}))

    with pytest.raises(ConfigError, match=r"plugins.other: acme 2.0 could not start: OSError: no socket"):
        await loaded.start(tasks)

    assert Living.journal == ["start 1", "stop 1"]
    await tasks.close()
