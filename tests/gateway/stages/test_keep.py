"""What is remembered of an answer before it leaves, and what ends with it."""

import gzip
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gateway.api import ResponseHead
from gateway.errors import StoreUnavailable, UpstreamMalformed
from gateway.exchange import Exchange, Headers
from gateway.kernel.charging import Charging
from gateway.kernel.objects import Charge, Owned, Terms
from gateway.settings import Batches, Objects, Settings
from gateway.stages.keep import keep
from gateway.wire.dialects import Dialect
from gateway.wire.objects import Operation
from gateway.wire.taps import JSONTap
from gateway.wire.usage import Usage
from tests.parts import HandClock, deps_of, exchange_of, offer_of

DAY_S = 86400.0
CHARGE = Charge(charge_id="later", model="m", upstream_model="m", hold_nanos=9, terms=Terms(), poll_s=1.0)
USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
COUNTED = Usage(input_tokens=10, output_tokens=5)


class _Response:
    """A provider's answer, whole."""

    def __init__(self, body: bytes, headers: Headers, status: int) -> None:
        self.head = ResponseHead(status, headers)
        self._body = body

    async def read(self, size_bytes_max: int) -> bytes:
        assert len(self._body) <= size_bytes_max
        return self._body


class _Downstream:
    """The caller."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    def start(self, status: int, headers: Headers, *, chunked: bool) -> None:
        assert not chunked
        self.status, self.headers = status, dict(headers)

    def end(self, data: bytes = b"") -> None:
        self.body = data

    async def flushed(self) -> None:
        pass


class _Objects:
    """What was written down."""

    def __init__(self, *known: Owned, away: bool = False) -> None:
        self.known = {owned.id: owned for owned in known}
        self.documents: dict[str, bytes | None] = {}
        self.charges: dict[str, Charge | None] = {}
        self.forgotten: list[str] = []
        self.ended: list[str] = []
        self._away = away

    async def remember(
        self, objects: Sequence[Owned], *, documents: Sequence[bytes | None] = (), charge: Charge | None = None
    ) -> None:
        if self._away:
            raise StoreUnavailable
        for number, owned in enumerate(objects):
            self.known[owned.id] = owned
            self.documents[owned.id] = documents[number] if number < len(documents) else None
            self.charges[owned.id] = None if number else charge

    async def describe(self, owned: Owned, document: bytes) -> None:
        self.documents[owned.id] = document

    async def forget(self, owned: Owned) -> None:
        self.forgotten.append(owned.id)

    def find_known(self, object_id: str) -> Owned | None:
        return self.known.get(object_id)

    def settled(self, owned: Owned) -> None:
        self.ended.append(owned.id)


class _Deferred:
    def __init__(self) -> None:
        self.hastened: list[str] = []

    async def hasten(self, object_id: str, *, soon_s: float) -> None:
        self.hastened.append(object_id)


class _Charging(Charging):
    """What ends it is the real one's to decide."""

    def __init__(self, *, away: bool = False) -> None:
        self.charged: list[tuple[str, Usage | None]] = []
        self.deferred = _Deferred()
        self._away = away

    async def end(self, object_id: str, usage: Usage | None) -> None:
        if self._away:
            raise StoreUnavailable
        self.charged.append((object_id, usage))


class _Adapter:
    def tap(self, call: object, head: ResponseHead) -> JSONTap:
        return JSONTap(Dialect.OPENAI_RESPONSES)


class Answered:
    """An answer on its way through the stage."""

    def __init__(
        self,
        document: dict[str, Any] | bytes,
        operation: Operation | None,
        *,
        owned: Owned | None = None,
        charge: Charge | None = None,
        known: tuple[Owned, ...] = (),
        away: bool = False,
        headers: Headers | None = None,
        status: int = 200,
    ) -> None:
        self.body = document if isinstance(document, bytes) else msgspec.json.encode(document)
        self.clock = HandClock()
        self.objects = _Objects(*known, away=away)
        self.charging = _Charging(away=away)
        self.caller = _Downstream()
        self.x: Exchange = exchange_of(path=b"/x")
        self.x.operation, self.x.owned, self.x.charge = operation, owned, charge
        self.x.offer, self.x.spoken = offer_of("m"), self.x.call
        self.x.response = _Response(self.body, headers or [], status)  # type: ignore[assignment]
        self.x.downstream = self.caller  # type: ignore[assignment]
        self.x.on_whole = lambda: 25_000
        provider: Any = SimpleNamespace(name="local", adapter=_Adapter(), fingerprints=("print",))
        self.x.provider = provider
        self.deps = deps_of(
            settings=Settings(objects=Objects(response_days=30), batches=Batches(poll_s=60)),
            clock=self.clock,
            objects=self.objects,
            charging=self.charging,
        )

    async def run(self) -> "Answered":
        async def nobody(x: Exchange) -> None:
            raise AssertionError("nothing comes after it")

        await keep(self.x, deps=self.deps, call_next=nobody)
        return self


def owned_of(object_id: str, kind: str, *, pending: bool = False) -> Owned:
    return Owned(object_id, kind, 7, "key", "local", "print", 1.0, None, pending)


async def test_what_was_made_is_its_makers_and_leaves_as_it_came() -> None:
    body = b'{"id": "file-1",  "object":"file", "expires_at": 99, "x":1.0}'
    answered = await Answered(body, Operation("file", "create")).run()

    assert (answered.caller.status, answered.caller.body) == (200, body)
    assert answered.caller.headers[b"content-length"] == b"%d" % len(body)
    assert answered.caller.headers[b"x-gateway-provider"] == b"local"
    assert answered.caller.headers[b"x-gateway-cost-usd"] == b"0.000025"
    assert answered.objects.known["file-1"] == Owned(
        "file-1", "file", 7, "key", "local", "print", answered.clock.now(), 99.0, False
    )
    assert answered.objects.documents["file-1"] == body


@pytest.mark.parametrize(("coding", "pack"), [(b"gzip", gzip.compress)])
async def test_a_packed_answer_is_unpacked_to_be_read(coding, pack) -> None:
    body = b'{"id":"conv_1"}'
    answered = await Answered(pack(body), Operation("conversation", "create"), headers=[(b"content-encoding", coding)]).run()  # fmt: skip

    assert answered.caller.body == body
    assert b"content-encoding" not in answered.caller.headers
    assert "conv_1" in answered.objects.known


async def test_without_postgresql_nobody_gets_an_id() -> None:
    answered = Answered({"id": "file-1"}, Operation("file", "create"), away=True)

    with pytest.raises(StoreUnavailable):
        await answered.run()

    assert answered.caller.status == 0
    assert not answered.x.committed


async def test_a_batch_is_pending_until_its_charge_ends() -> None:
    answered = await Answered({"id": "batch_1"}, Operation("batch", "create"), charge=CHARGE).run()

    assert answered.objects.known["batch_1"].pending
    assert answered.objects.charges["batch_1"] is CHARGE
    assert answered.x.ordered


async def test_an_upload_is_known_a_day_longer_than_it_lasts() -> None:
    answered = await Answered({"id": "upload_1", "expires_at": 50}, Operation("upload", "create")).run()

    assert answered.objects.known["upload_1"].expires_s == 50 + DAY_S


async def test_an_answer_that_describes_nothing_is_passed_on() -> None:
    for body in (b"not json", b'{"error":"no"}', b"[]"):
        answered = await Answered(body, Operation("file", "create"), status=200).run()
        assert answered.caller.body == body
        assert answered.objects.known == {}


async def test_what_is_deleted_is_forgotten_and_nothing_else_is() -> None:
    file = owned_of("file-1", "file")
    gone = await Answered({"id": "file-1", "deleted": True}, Operation("file", "delete"), owned=file).run()
    kept = await Answered({"id": "file-1", "deleted": False}, Operation("file", "delete"), owned=file).run()
    other = await Answered({"id": "file-2", "deleted": True}, Operation("file", "delete"), owned=file).run()

    assert (gone.objects.forgotten, kept.objects.forgotten, other.objects.forgotten) == (["file-1"], [], [])


@pytest.mark.parametrize("verb", ["read", "change"])
async def test_who_sees_a_batch_end_charges_it_and_owns_its_files(verb) -> None:
    batch = owned_of("batch_1", "batch", pending=True)
    document = {"id": "batch_1", "object": "batch", "status": "completed", "usage": USAGE, "output_file_id": "file-o"}
    answered = await Answered(
        document | {"error_file_id": "file-e"}, Operation("batch", verb), owned=batch, known=(owned_of("file-e", "file"),)
    ).run()  # fmt: skip

    assert answered.charging.charged == [("batch_1", COUNTED)]
    assert answered.objects.ended == ["batch_1"]
    assert answered.objects.documents["batch_1"] == answered.body
    made = answered.objects.known["file-o"]
    assert (made.kind, made.account_id, made.fingerprint) == ("file", 7, "print")
    shown = msgspec.json.decode(answered.objects.documents["file-o"] or b"")
    assert (shown["id"], shown["purpose"], shown["filename"]) == ("file-o", "batch_output", "batch_1_output.jsonl")
    assert "file-e" not in answered.objects.documents, "it was known already"


@pytest.mark.parametrize(
    "members",
    [
        {"status": "in_progress", "usage": USAGE},
        {"status": "completed"},
        {"status": "completed", "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}},
        # What a batch that failed has used, only its file says.
        {"status": "failed", "output_file_id": "file-o"},
    ],
)
async def test_a_batch_that_does_not_say_what_it_used_is_the_pollers(members) -> None:
    batch = owned_of("batch_1", "batch", pending=True)
    answered = await Answered({"id": "batch_1", "object": "batch", **members}, Operation("batch", "read"), owned=batch).run()  # fmt: skip

    assert answered.charging.charged == []
    assert answered.objects.ended == []
    assert answered.caller.status == 200


@pytest.mark.parametrize(
    ("status", "usage", "charged"),
    [
        ("failed", None, None),
        ("cancelled", USAGE, COUNTED),
        ("completed", USAGE, COUNTED),
        ("incomplete", USAGE, COUNTED),
    ],
)
async def test_a_response_that_ended_is_charged_for_what_it_used(status, usage, charged) -> None:
    response = owned_of("resp_1", "response", pending=True)
    document = {"id": "resp_1", "object": "response", "status": status, "usage": usage}
    answered = await Answered(document, Operation("response", "read"), owned=response).run()

    assert answered.charging.charged == [("resp_1", charged)]
    assert answered.objects.ended == ["resp_1"]
    assert answered.objects.documents == {}, "what was said in it is not kept here"


async def test_a_response_that_was_cancelled_is_charged_when_it_is_known_how_much_was_read() -> None:
    response = owned_of("resp_1", "response", pending=True)
    document = {"id": "resp_1", "object": "response", "status": "cancelled", "usage": None}
    answered = await Answered(document, Operation("response", "change"), owned=response).run()

    assert answered.charging.charged == []
    assert answered.charging.deferred.hastened == ["resp_1"]
    assert answered.objects.ended == []
    assert answered.caller.status == 200


async def test_what_can_not_be_charged_now_stays_due_and_is_shown_all_the_same() -> None:
    response = owned_of("resp_1", "response", pending=True)
    document = {"id": "resp_1", "object": "response", "status": "completed", "usage": USAGE}
    answered = await Answered(document, Operation("response", "read"), owned=response, away=True).run()

    assert answered.objects.ended == []
    assert answered.caller.body == answered.body


async def test_a_finished_upload_leads_to_a_file_of_the_same_owner() -> None:
    document = {"id": "upload_1", "object": "upload", "status": "completed", "file": {"id": "file-9"}}
    answered = await Answered(document, Operation("upload", "change"), owned=owned_of("upload_1", "upload")).run()

    assert answered.objects.known["file-9"].account_id == 7


async def test_an_order_in_the_background_is_charged_when_it_is_done() -> None:
    answered = await Answered({"id": "resp_1", "object": "response", "status": "queued"}, None).run()

    owned = answered.objects.known["resp_1"]
    assert owned.pending
    assert owned.expires_s == answered.clock.now() + 30 * DAY_S
    charge = answered.objects.charges["resp_1"]
    assert charge is not None
    assert (charge.charge_id, charge.model, charge.poll_s) == (answered.x.id, "m", answered.clock.now() + 60)
    assert answered.x.deferred
    assert b"x-gateway-cost-usd" not in answered.caller.headers


@pytest.mark.parametrize("document", [{"id": "resp_1", "status": "completed"}, {"id": "resp_1", "usage": USAGE}])
async def test_an_order_that_is_done_at_once_is_charged_at_once(document) -> None:
    answered = await Answered({"object": "response", **document}, None).run()

    assert not answered.objects.known["resp_1"].pending
    assert answered.objects.charges["resp_1"] is None
    assert not answered.x.deferred
    assert answered.x.tap is not None
    assert answered.caller.headers[b"x-gateway-cost-usd"] == b"0.000025"


async def test_an_order_that_is_answered_with_no_response_is_an_error() -> None:
    answered = Answered(b"{}", None)

    with pytest.raises(UpstreamMalformed):
        await answered.run()

    assert answered.caller.status == 0
