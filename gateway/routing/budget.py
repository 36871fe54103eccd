"""How many tries beyond the first there may be: a share of the traffic, so that retries can't make an outage worse.

When everything fails, every request wants to be tried again; with three tries each, a provider in trouble would get
three times its traffic. A bucket lets through `share` of the requests as further tries, and `floor_per_s` besides, so
that little traffic may retry too; what is not used is kept, up to `burst`.
"""

import msgspec


class BudgetRules(msgspec.Struct, frozen=True, kw_only=True):
    """How the bucket fills."""

    share: float = 0.2
    floor_per_s: float = 10.0
    burst: float = 100.0


class RetryBudget:
    """The bucket of one worker; full at the start."""

    __slots__ = ("_balance", "_filled_s", "_rules", "begun", "refused")

    def __init__(self, rules: BudgetRules, *, now_s: float) -> None:
        #: Add 1 for each request that begins.
        self.begun = 0
        #: Tries it did not allow.
        self.refused = 0
        self._rules = rules
        self._balance = rules.burst
        self._filled_s = now_s

    def spend(self, now_s: float) -> bool:
        """Take one further try out of the bucket; False where there is none left."""
        rules = self._rules
        earned = self.begun * rules.share + max(0.0, now_s - self._filled_s) * rules.floor_per_s
        balance = min(rules.burst, self._balance + earned)
        self.begun = 0
        self._filled_s = now_s
        self._balance = balance - 1 if balance >= 1 else balance
        if balance < 1:
            self.refused += 1
        return balance >= 1


def backoff_s(number: int, *, base_s: float, most_s: float, chance: float) -> float:
    """How long to wait before asking the same offer for the `number`th time again (from 1): doubling, and spread over
    the upper half, so that those who failed together do not come back together. `chance` is from 0 to 1.
    """
    full_s: float = min(most_s, base_s * 2 ** min(number - 1, 32))
    return full_s * (0.5 + chance / 2)
