"""The ledger as a state machine: any sequence of verbs, in any order and with any repeats.

The scripts run on a real Valkey beside the twin, with the same clock. After every verb both have given the same answer
and keep the same state, and the books balance: what is in the balance, what the usage stream says was charged and
what was credited add up; what is held is the sum of the live holds; what is in flight is their number.
"""

from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gateway.kernel.ledger import Ledger
from gateway.kernel.limits import BUDGET_WINDOWS, DAY_US, Budget, Limits, pack_limits
from gateway.kernel.record import decode_record
from gateway.kernel.twin import Twin
from gateway.kernel.verbs import Admitted, Credited, Ended, Expired, Loaded, Renewal, Scopes, Settled, Snapshot, Spent
from tests.ledgers import ImmediateHost, TurnClock, describe_scope, make_record, read_scope, run

ACCOUNTS = (3, 67)  # both in partition 3
KEYS = ("one", "two")
REQUESTS = tuple(f"request-{number}" for number in range(8))
SECOND_US = 1_000_000
LEASE_S = 60
TOMBSTONE_US = 120 * SECOND_US

# Few different numbers, so that limits, holds and costs meet each other exactly, and often.
counts = st.sampled_from([None, None, None, 0, 1, 2, 3, 5])
tokens = st.sampled_from([None, None, None, 100, 1000, 1500, 3000])
amounts = st.sampled_from([0, 1, 100, 499, 500, 501, 1000, 1500])
budgets = st.lists(
    st.builds(Budget, st.sampled_from(BUDGET_WINDOWS), st.sampled_from([1, 500, 1000, 1500, 2500]), st.booleans()),
    max_size=4,
).map(tuple)
limits = st.builds(
    Limits,
    requests_per_minute=counts,
    requests_per_hour=counts,
    requests_per_day=counts,
    requests_per_month=counts,
    tokens_per_minute=tokens,
    tokens_per_hour=tokens,
    tokens_per_day=tokens,
    tokens_per_month=tokens,
    burst=counts,
    concurrency=counts,
    budgets=budgets,
)
#: Most of the time there are few limits, or nothing would ever be admitted.
some_limits = st.one_of(
    st.just(Limits()),
    st.builds(Limits, budgets=budgets, concurrency=st.sampled_from([None, 2, 4])),
    st.builds(
        Limits, tokens_per_minute=tokens, tokens_per_day=tokens, requests_per_minute=st.sampled_from([None, 3, 6])
    ),
    limits,
)
mostly = st.sampled_from([True, True, True, False])


class LedgerMachine(RuleBasedStateMachine):
    """Both ledgers, and the model of what they should say: which requests are held, and what was charged."""

    client: "redis.Redis[bytes]"

    @initialize(
        data=st.data(),
        accounts=st.tuples(some_limits, some_limits),
        grants=st.tuples(*[st.sampled_from([None, 0, 1000, 3000, 10_000])] * 2),
    )
    def start(
        self, data: st.DataObject, accounts: tuple[Limits, Limits], grants: tuple[int | None, int | None]
    ) -> None:
        self.client.flushall()
        self.clock = TurnClock()
        self.kept: list[tuple[int, bytes]] = []
        self.ledger = Ledger(ImmediateHost(self.client), now_us=self.clock)
        self.twin = Twin(
            now_us=self.clock,
            keep=lambda _, record, now_us: self.kept.append((now_us // 1000, record)),
            backlog=lambda _, cursor: self.kept[self.position(cursor) :],
        )
        self.callers: list[tuple[int, str, Scopes]] = []
        self.credits = dict.fromkeys(ACCOUNTS, 0)
        self.seqs = dict.fromkeys(ACCOUNTS, 0)
        #: By request: who holds it, and how much.
        self.live: dict[str, tuple[int, int]] = {}
        for account_id, account, grant in zip(ACCOUNTS, accounts, grants, strict=True):
            for key in KEYS:
                model = data.draw(st.none() | limits)
                packed = pack_limits(
                    account=account if data.draw(mostly) else Limits(),
                    key=data.draw(some_limits),
                    model=model,
                    overdraft_nanos=data.draw(st.sampled_from([0, 0, 500])),
                    key_requests_max=data.draw(st.sampled_from([None, None, 0, 2, 5])),
                )
                key_id = f"{account_id}-{key}"
                scopes = self.ledger.scopes(
                    account_id=account_id, key_id=key_id, model=None if model is None else "m", limits=packed
                )
                self.callers.append((account_id, key_id, scopes))
            if grant is not None:
                self.credits[account_id] = grant
                spent = Spent(as_of_us=self.clock.now_us)
                for key in KEYS:
                    snapshot = Snapshot(
                        balance_nanos=grant, seq=0, cursor="0-0", account_spent=spent, key_spent=spent
                    )
                    self.both("load", account_id, snapshot, key_id=f"{account_id}-{key}")

    def pick(self, data: st.DataObject) -> tuple[str, int]:
        """A request and a caller: mostly one that is live, with its own."""
        if self.live and data.draw(mostly):
            request = data.draw(st.sampled_from(sorted(self.live)))
            return request, self.live[request][0] if data.draw(mostly) else data.draw(st.integers(0, 3))
        return data.draw(st.sampled_from(REQUESTS)), data.draw(st.integers(0, 3))

    def position(self, cursor: str) -> int:
        """How many entries of the stream a cursor covers."""
        ids = [entry_id.decode() for entry_id, _ in self.client.xrange("{p3}:usage")]
        return 0 if cursor == "0-0" else ids.index(cursor) + 1

    def both(self, verb: str, *args: object, **more: object) -> object:
        """Do it to both, and get the one answer."""
        left = run(getattr(self.ledger, verb)(*args, **more))
        right = run(getattr(self.twin, verb)(*args, **more))
        assert left == right, verb
        return left

    def end(self, request_id: str) -> None:
        self.live.pop(request_id, None)

    # -- the verbs ---------------------------------------------------------------------------------------------

    @rule(request=st.sampled_from(REQUESTS), who=st.integers(0, 3), amount=amounts, estimate=amounts)
    def admit(self, request: str, who: int, amount: int, estimate: int) -> None:
        answer = self.both(
            "admit", request, self.callers[who][2], hold_nanos=amount, tokens=estimate, lease_ms=LEASE_S * 1000
        )
        if isinstance(answer, Admitted) and request not in self.live:
            self.live[request] = (who, amount)

    @rule(data=st.data(), cost=amounts, used=amounts)
    def settle(self, data: st.DataObject, cost: int, used: int) -> None:
        request, who = self.pick(data)
        account_id, key_id, scopes = self.callers[who]
        before = len(self.kept)
        record = make_record(request, account_id, key_id, cost)
        answer = self.both("settle", request, scopes, cost_nanos=cost, tokens=used, record=record)
        if isinstance(answer, Settled) and len(self.kept) > before:
            assert answer.held == (request in self.live)
            self.end(request)

    @rule(data=st.data(), with_record=st.booleans())
    def void(self, data: st.DataObject, with_record: bool) -> None:
        request, who = self.pick(data)
        account_id, key_id, scopes = self.callers[who]
        record = make_record(request, account_id, key_id, 0) if with_record else b""
        answer = self.both("void", request, scopes, record=record)
        if not isinstance(answer, Ended) and answer.held:
            self.end(request)

    @rule(data=st.data(), many=st.integers(0, 4), cost=amounts, used=amounts)
    def renew(self, data: st.DataObject, many: int, cost: int, used: int) -> None:
        renewals = {}
        for request in (self.pick(data)[0] for _ in range(many)):
            account_id, key_id, _ = self.callers[self.live.get(request, (0, 0))[0]]
            record = make_record(request, account_id, key_id, cost)
            renewals[request] = Renewal(request, cost, used, record if data.draw(mostly) else b"")
        unknown = self.both("renew", 3, list(renewals.values()), lease_ms=LEASE_S * 500)
        assert set(unknown) == renewals.keys() - self.live.keys()

    @rule(at_most=st.integers(1, 12))
    def sweep(self, at_most: int) -> None:
        swept = self.both("sweep", 3, at_most=at_most)
        for expired in swept:
            assert isinstance(expired, Expired)
            assert expired.request_id in self.live
            self.end(expired.request_id)

    @rule(
        account_id=st.sampled_from(ACCOUNTS),
        amount=st.integers(-500, 3000),
        step=st.sampled_from([1, 1, 1, 0, -1, 2]),
    )
    def credit(self, account_id: int, amount: int, step: int) -> None:
        seq = self.seqs[account_id] + step
        answer = self.both("credit", account_id, seq=seq, previous_seq=seq - 1, amount_nanos=amount)
        if isinstance(answer, Credited) and not answer.repeated:
            assert step == 1
            self.seqs[account_id] = seq
            self.credits[account_id] += amount

    @rule(
        account_id=st.sampled_from(ACCOUNTS),
        covered=st.floats(0, 1),
        key=st.sampled_from(["", *KEYS]),
        force=st.booleans(),
    )
    def load(self, account_id: int, covered: float, key: str, force: bool) -> None:
        """From a snapshot that was taken when the settler had come so far in the stream."""
        entries = self.client.xrange("{p3}:usage")
        done = entries[: round(covered * len(entries))]
        settled, by_key, requests, key_requests = 0, 0, 0, 0
        for _, fields in done:
            record = decode_record(fields[b"r"])
            settled += record.cost_nanos if record.account_id == account_id else 0
            by_key += record.cost_nanos if record.key_id == f"{account_id}-{key}" else 0
            requests += record.account_id == account_id
            key_requests += record.key_id == f"{account_id}-{key}"
        # All of it in the present windows: what the counters of a load are made from is not the model's business.
        now_us = self.clock.now_us
        snapshot = Snapshot(
            balance_nanos=self.credits[account_id] - settled,
            seq=self.seqs[account_id],
            cursor=done[-1][0].decode() if done else "0-0",
            account_spent=Spent(
                as_of_us=now_us,
                day_nanos=settled,
                week_nanos=settled,
                month_nanos=settled,
                total_nanos=settled,
                requests=requests,
            ),
            key_spent=Spent(
                as_of_us=now_us,
                day_nanos=by_key,
                week_nanos=by_key,
                month_nanos=by_key,
                total_nanos=by_key,
                requests=key_requests,
            )
            if key
            else None,
        )
        answer = self.both("load", account_id, snapshot, key_id=f"{account_id}-{key}" if key else "", force=force)
        if not isinstance(answer, Loaded):
            # A credit was announced while the account was not loaded: it exists, so the next snapshot has it.
            self.seqs[account_id] = answer.seq

    @rule(
        us=st.sampled_from(
            [0, 1, 999, SECOND_US, 7 * SECOND_US, LEASE_S * 500_000, LEASE_S * SECOND_US, TOMBSTONE_US]
        )
    )
    def wait(self, us: int) -> None:
        self.clock.now_us += us

    @rule(days=st.integers(1, 40), odd_us=st.sampled_from([0, 12_345]))
    def wait_days(self, days: int, odd_us: int) -> None:
        self.clock.now_us += days * DAY_US + odd_us

    # -- what is always true -----------------------------------------------------------------------------------

    @invariant()
    def same_state_and_books_balance(self) -> None:
        names = sorted({name for _, _, s in self.callers for name in (s.account_key, s.key_key, s.model_key) if name})
        look = self.client.pipeline(transaction=False)
        for name in names:
            look.hgetall(name)
        look.xrange("{p3}:usage").zrange("{p3}:leases", 0, -1).hkeys("{p3}:progress")
        *hashes, stream, leases, progress = look.execute()

        for name, fields in zip(names, hashes, strict=True):
            state = self.twin.states.get(name)
            assert bool(fields) == (state is not None), name
            assert state is None or read_scope(fields) == describe_scope(state), name
        assert [fields[b"r"] for _, fields in stream] == [record for _, record in self.kept]
        assert {member.decode() for member in leases} == self.live.keys()
        assert {member.decode() for member in progress} <= self.live.keys()

        records = [decode_record(record) for _, record in self.kept]
        for account_id in ACCOUNTS:
            state = self.twin.states.get(f"{{p3}}:a:{account_id}".encode())
            if state is not None and state.balance is not None:
                charged = sum(record.cost_nanos for record in records if record.account_id == account_id)
                assert state.balance == self.credits[account_id] - charged
            if state is not None:
                mine = [amount for who, amount in self.live.values() if self.callers[who][0] == account_id]
                assert (state.held, state.in_flight) == (sum(mine), len(mine))


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis[bytes]"]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.mark.timeout(900)  # a failure takes its time to be made small
def test_scripts_and_twin_agree_and_the_books_balance(client: "redis.Redis[bytes]") -> None:
    LedgerMachine.client = client

    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
