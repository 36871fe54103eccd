"""What the tests of the ledger's cold side share: the hot and the cold stores together, and accounts with keys."""

from collections.abc import Sequence

from gateway import __version__
from gateway.infra.clock import SystemClock
from gateway.infra.metrics import Registry
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.courier import Courier
from gateway.kernel.journal import credit
from gateway.kernel.ledger import Ledger
from gateway.kernel.limits import pack_limits
from gateway.kernel.loader import Loader
from gateway.kernel.reconciler import Reconciler
from gateway.kernel.record import UsageRecord, encode_record
from gateway.kernel.request_id import RequestIds
from gateway.kernel.settler import Settler
from gateway.kernel.verbs import Admitted, NotLoaded, Settled
from gateway.telemetry import Telemetry

PARTITIONS = 4
CREDIT = 1_000_000


class Books:
    """A ledger of `PARTITIONS` partitions, and everything that keeps its books."""

    def __init__(self, database: Database, redis: Redis) -> None:
        self.database = database
        self.redis = redis
        self.clock = SystemClock()
        self.telemetry = Telemetry(Registry(incarnation="test"), version=__version__)
        self.ledger = Ledger(redis, partitions=PARTITIONS)
        self.loader = Loader(database, self.ledger, partitions=PARTITIONS)
        self.courier = Courier(database, self.ledger, self.loader)
        self.settler = self.new_settler()
        self.reconciler = Reconciler(database, redis, self.loader, partitions=PARTITIONS)
        self.new_id = RequestIds(self.clock).make

    def new_settler(self) -> Settler:
        return Settler(
            self.database, self.redis, clock=self.clock, telemetry=self.telemetry, partitions=range(PARTITIONS)
        )

    async def open_account(self, *, credit_nanos: int = CREDIT, name: str = "acme") -> int:
        account_id = await self.database.fetch_value("insert into accounts (name) values ($1) returning id", name)
        if credit_nanos:
            await self.give(account_id, credit_nanos, f"opening {account_id}")
        return account_id

    async def give(self, account_id: int, amount_nanos: int, key: str) -> None:
        kind = "admin_credit" if amount_nanos > 0 else "admin_debit"
        await credit(self.database, account_id, type=kind, amount_nanos=amount_nanos, idempotency_key=key)

    def scopes(self, account_id: int, key_id: str = "key-1"):
        return self.ledger.scopes(account_id=account_id, key_id=key_id, limits=pack_limits())

    def record(self, account_id: int, cost_nanos: int, **fields) -> UsageRecord:
        known = {"request_id": self.new_id(), "key_id": "key-1", "model": "m", "input_tokens": 3, "output_tokens": 4}
        return UsageRecord(**(known | fields), account_id=account_id, cost_nanos=cost_nanos)

    async def serve(self, account_id: int, cost_nanos: int, *, hold_nanos: int | None = None) -> str:
        """One request from admission to settlement; its id."""
        record = self.record(account_id, cost_nanos)
        scopes = self.scopes(account_id)
        hold = cost_nanos if hold_nanos is None else hold_nanos
        admission = await self.ledger.admit(record.request_id, scopes, hold_nanos=hold, tokens=7)
        if isinstance(admission, NotLoaded):
            await self.loader.ensure_loaded(account_id, key_id="key-1")
            admission = await self.ledger.admit(record.request_id, scopes, hold_nanos=hold, tokens=7)
        assert isinstance(admission, Admitted), admission
        assert isinstance(await self.settle(record), Settled)
        return record.request_id

    async def settle(self, record: UsageRecord):
        return await self.ledger.settle(
            record.request_id,
            self.scopes(record.account_id),
            cost_nanos=record.cost_nanos,
            tokens=record.input_tokens + record.output_tokens,
            record=encode_record(record),
        )

    async def append(self, partition: int, records: Sequence[bytes]) -> None:
        """Straight into the stream, past the scripts."""
        for packed in records:
            await self.redis.execute("XADD", f"{{p{partition}}}:usage", "*", "r", packed)

    async def drain(self, settler: Settler | None = None) -> set[int]:
        """Settle until there is nothing left; the accounts that were charged again."""
        repeated: set[int] = set()
        for _ in range(1000):
            done = await (settler or self.settler).settle_once()
            repeated |= done.repeated
            if not done.settled and not done.rejected and not done.more:
                return repeated
        raise AssertionError("there is no end to it")

    async def hot_nanos(self, account_id: int) -> int | None:
        balance = await self.ledger.peek_balance(account_id)
        return None if balance is None else balance.balance_nanos

    async def book_nanos(self, account_id: int) -> int:
        return await self.database.fetch_value("select balance_nanos from balances where account_id = $1", account_id)

    async def assert_balanced(self) -> None:
        """The books add up, hold every charge once, and Redis agrees with them."""
        from gateway.kernel.reconciler import check_books

        assert await check_books(self.database) == []
        report = await self.reconciler.reconcile()
        assert report.drifts == []
        assert report.unread == []
        doubles = await self.database.fetch("select request_id from entries group by 1 having count(request_id) > 1")
        assert not doubles
        charged = await self.database.fetch_value(
            "select count(*) from usage_records u full join entries e using (request_id) "
            "where (u.cost_nanos > 0 or e.type = 'api_usage') and u.cost_nanos is distinct from -e.amount_nanos"
        )
        assert charged == 0
