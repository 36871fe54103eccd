"""What is known of a key: how requests say it, how answers show it, and what may be said.

Rules:
- The text of a key is shown when it is made or rotated, and never again; what is shown of it is how it begins and its
  last four characters.
- Nothing here is above the account's plan: whoever could raise a key's limits above it would only think so.
- What a key is good for is checked when it is written, so that the data plane can trust what it reads.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gateway.control.access import PERMISSIONS
from gateway.control.accounts.users import plan_limits
from gateway.control.errors import Invalid, NotPermitted
from gateway.control.parts import Parts
from gateway.infra.postgres import Row, load_queries
from gateway.kernel.constraints import EVERY, INFERENCE, clean_referrer
from gateway.kernel.limits import BUDGETS_MAX, COUNTS, LIMIT_MAX, NO_LIMITS, Budget, BudgetWindow, Limits, halve
from gateway.kernel.money import MAX_NANOS, NANOS_PER_USD, Nanos, parse_usd, usd
from gateway.wire.client_address import parse_networks

queries: Final = load_queries(Path(__file__).with_name("keys.sql"))

#: Entries of a list of a key.
ENTRIES_MAX: Final = 1000
EXPIRATION_DAYS_MAX: Final = 3650
#: A key that ends within so many days is said to end soon.
SOON_DAYS: Final = 7
#: From here on a key's requests are said to be nearly used up, in percent.
NEARLY_PERCENT: Final = 80.0

Environment = Literal["live", "test", "staging", "development"]
AnyEnvironment = Literal["live", "test", "staging", "development", "dev"]
Verb = Literal["read", "write", "admin"]
#: What scopes can name: the resources of the control plane's permissions, and all of `/v1`.
RESOURCES: Final = frozenset(
    {EVERY, INFERENCE, "account", *(name.partition(":")[0] for each in PERMISSIONS.values() for name in each)}
)

KeyName = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\S")]
Count = Annotated[int, Meta(ge=0, le=LIMIT_MAX)]
RequestsMax = Annotated[int, Meta(ge=1, le=LIMIT_MAX)]
Days = Annotated[int, Meta(ge=1, le=EXPIRATION_DAYS_MAX)]
Entry = Annotated[str, Meta(min_length=1, max_length=300)]
Entries = Annotated[tuple[Entry, ...], Meta(max_length=ENTRIES_MAX)]
Scopes = dict[Verb, Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=50)], ...], Meta(max_length=50)]]
Dollars = Annotated[float, Meta(ge=0, le=MAX_NANOS // NANOS_PER_USD)]


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may use; null is as much as its account."""

    requests_per_minute: Count | None = None
    requests_per_hour: Count | None = None
    requests_per_day: Count | None = None
    requests_per_month: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_hour: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    #: Requests at once, where that is less than those per minute.
    burst: Count | None = None
    #: Requests in flight.
    concurrency: Count | None = None


class KeyBudget(msgspec.Struct, frozen=True, kw_only=True):
    """So much money in a calendar window (UTC). A hard one refuses, a soft one only gives notice."""

    window: BudgetWindow
    limit_usd: Dollars
    hard: bool = True


Budgets = Annotated[tuple[KeyBudget, ...], Meta(max_length=BUDGETS_MAX)]


class KeyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What can be changed of a key."""

    name: str
    scopes: dict[str, tuple[str, ...]] = {}
    expires_at: datetime | None = None
    max_requests: int | None = None
    networks: tuple[str, ...] = ()
    referrers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS
    is_active: bool = True


class SecurityStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is narrowed of a key, and what is about to end."""

    is_revoked: bool
    is_expired: bool
    expires_soon: bool
    is_scoped: bool
    has_ip_restrictions: bool
    has_domain_restrictions: bool
    has_model_restrictions: bool
    has_provider_restrictions: bool
    has_expiration: bool
    has_usage_limit: bool
    is_nearly_used_up: bool
    has_limits: bool
    has_budgets: bool


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without what proves it."""

    id: str
    key_name: str
    #: How it begins, and its last four characters.
    key_prefix: str
    last_four: str
    environment_tag: Environment
    #: Whether it can be used now.
    is_active: bool
    is_primary: bool
    #: Whose role it has here; null for one that a command made.
    user_id: int | None
    created_at: datetime
    rotated_at: datetime | None
    #: Until when the text before the last rotation is good.
    previous_until: datetime | None
    revoked_at: datetime | None
    disabled_at: datetime | None
    expiration_date: datetime | None
    #: Whole days until then; null where it does not end.
    days_remaining: int | None
    requests_used: int
    max_requests: int | None
    requests_remaining: int | None
    #: In percent, of `max_requests`.
    usage_percentage: float | None
    #: Dollars.
    cost_total: float
    last_used_at: datetime | None
    #: {read, write or admin: [resource, ...]}; empty is not narrowed.
    scope_permissions: dict[str, tuple[str, ...]]
    #: As this and what follows: empty is not narrowed.
    ip_allowlist: tuple[str, ...]
    domain_referrers: tuple[str, ...]
    model_allowlist: tuple[str, ...]
    provider_allowlist: tuple[str, ...]
    limits: KeyLimits
    budgets: tuple[KeyBudget, ...]
    security_status: SecurityStatus


# -- rules
# -------------------------------------------------------------------------------------------------------------


def environment_of(tag: AnyEnvironment) -> str:
    """What keys are called that callers tag so."""
    return "dev" if tag == "development" else tag


def tag_of(environment: str) -> Environment:
    return "development" if environment == "dev" else environment  # type: ignore[return-value]  # one of the table's


def plan_cap(parts: Parts, plan: str, environment: str) -> Limits:
    """The most that a key of that environment can have: half of the plan where it is not live."""
    cap = plan_limits(parts, plan)
    return cap if environment == "live" else halve(cap)


def check_below(limits: Limits, cap: Limits) -> None:
    """Refuse what is above the plan.

    Raises:
        NotPermitted
    """
    for name in COUNTS:
        wanted, most = getattr(limits, name), getattr(cap, name)
        if wanted is not None and most is not None and wanted > most:
            raise NotPermitted(f"{name} is {wanted}, and the plan of this account allows {most}.", code="above_plan")


def clean_networks(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses and networks as the database keeps them.

    Raises:
        Invalid
    """
    try:
        return tuple(dict.fromkeys(str(network) for network in parse_networks(text.strip() for text in texts)))
    except ValueError as error:
        raise Invalid(f"This is no address and no network: {error}", loc=("body", "ip_allowlist")) from error


def clean_referrers(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Hosts, or `*.` before one.

    Raises:
        Invalid
    """
    try:
        return tuple(dict.fromkeys(clean_referrer(text) for text in texts))
    except ValueError as error:
        raise Invalid(str(error), loc=("body", "domain_referrers")) from error


def clean_models(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Names of models. Which there are changes, so any will do.

    Raises:
        Invalid: there is a `*` within one.
    """
    for text in texts:
        if "*" in text[:-1]:
            raise Invalid("A `*` can only end the name of a model.", loc=("body", "model_allowlist"))
    return tuple(dict.fromkeys(texts))


def clean_providers(parts: Parts, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Names of providers that are configured.

    Raises:
        Invalid
    """
    for text in texts:
        if text not in parts.settings.providers and text not in parts.deps.providers:
            raise Invalid(f"There is no provider {text!r} here.", loc=("body", "provider_allowlist"))
    return tuple(dict.fromkeys(texts))


def clean_scopes(scopes: Scopes | None) -> dict[str, tuple[str, ...]]:
    """What a key may do; empty for everything, which is what every verb with `*` means as well.

    Raises:
        Invalid: there is no such resource.
    """
    found: dict[str, tuple[str, ...]] = {}
    for verb, resources in (scopes or {}).items():
        for resource in resources:
            if resource not in RESOURCES:
                raise Invalid(
                    f"There is no resource {resource!r}; there are {', '.join(sorted(RESOURCES))}.",
                    loc=("body", "scope_permissions", verb),
                )
        found[verb] = (EVERY,) if EVERY in resources else tuple(dict.fromkeys(resources))
    return {} if all(found.get(verb) == (EVERY,) for verb in ("read", "write", "admin")) else found


def kernel_limits(limits: KeyLimits | None, budgets: Budgets) -> Limits:
    """As the limiter knows them.

    Raises:
        Invalid: two budgets of a window are the same.
    """
    kept = tuple(Budget(each.window, _nanos(each.limit_usd), each.hard) for each in budgets)
    if len(set(kept)) < len(kept):
        raise Invalid("Two budgets are the same.", loc=("body", "budgets"))
    counts = {} if limits is None else {name: getattr(limits, name) for name in COUNTS}
    return Limits(**counts, budgets=kept)


def show_limits(limits: Limits) -> KeyLimits:
    return KeyLimits(**{name: getattr(limits, name) for name in COUNTS})


def show_budgets(limits: Limits) -> tuple[KeyBudget, ...]:
    return tuple(
        KeyBudget(window=each.window, limit_usd=usd(each.limit_nanos), hard=each.hard) for each in limits.budgets
    )


def expiry(parts: Parts, days: int | None) -> datetime | None:
    """When a key ends that is made to last so many days."""
    return None if days is None else datetime.fromtimestamp(parts.clock.now(), UTC) + timedelta(days=days)


def facts_of(row: Row) -> KeyFacts:
    """What a row says."""
    return KeyFacts(
        name=row["name"],
        scopes=msgspec.json.decode(row["scopes"], type=dict[str, tuple[str, ...]]),
        expires_at=row["expires_at"],
        max_requests=row["max_requests"],
        networks=tuple(row["networks"]),
        referrers=tuple(row["referrers"]),
        models=tuple(row["models"]),
        providers=tuple(row["providers"]),
        limits=limits_of(row),
        is_active=row["disabled_at"] is None,
    )


def limits_of(row: Row) -> Limits:
    return NO_LIMITS if row["limits"] is None else msgspec.json.decode(row["limits"], type=Limits)


def limits_text(limits: Limits) -> str | None:
    """As the database keeps them."""
    return None if limits == NO_LIMITS else msgspec.json.encode(limits, order="deterministic").decode()


def is_narrowed(facts: KeyFacts) -> bool:
    """Whether a key is for less than everything, scopes apart."""
    plain = KeyFacts(name=facts.name, scopes=facts.scopes, is_active=facts.is_active)
    return facts != plain


def is_within_scopes(scopes: dict[str, tuple[str, ...]], outer: dict[str, tuple[str, ...]]) -> bool:
    """Whether the one permits no more than the other."""
    if not outer:
        return True
    if not scopes:
        return False
    return all(
        EVERY in outer.get(verb, ()) or set(resources) <= set(outer.get(verb, ()))
        for verb, resources in scopes.items()
    )


def view_of(row: Row, *, now: datetime) -> KeyView:
    """What is shown of a key."""
    facts = facts_of(row)
    used, most = row["requests_used"], facts.max_requests
    expired = facts.expires_at is not None and facts.expires_at <= now
    left = None if facts.expires_at is None else facts.expires_at - now
    percentage = None if most is None else round(min(100.0, 100 * used / most), 2)
    environment = row["environment"]
    return KeyView(
        id=row["id"],
        key_name=facts.name,
        key_prefix=f"gw_{environment}_{row['id']}",
        last_four=row["last_four"],
        environment_tag=tag_of(environment),
        is_active=row["revoked_at"] is None and facts.is_active and not expired,
        is_primary=row["is_primary"],
        user_id=row["user_id"],
        created_at=row["created_at"],
        rotated_at=row["rotated_at"],
        previous_until=row["previous_until"] if row["previous_until"] and row["previous_until"] > now else None,
        revoked_at=row["revoked_at"],
        disabled_at=row["disabled_at"],
        expiration_date=facts.expires_at,
        days_remaining=None if left is None else max(0, left.days),
        requests_used=used,
        max_requests=most,
        requests_remaining=None if most is None else max(0, most - used),
        usage_percentage=percentage,
        cost_total=usd(row["cost_nanos"]),
        last_used_at=row["last_used_at"],
        scope_permissions=facts.scopes,
        ip_allowlist=facts.networks,
        domain_referrers=facts.referrers,
        model_allowlist=facts.models,
        provider_allowlist=facts.providers,
        limits=show_limits(facts.limits),
        budgets=show_budgets(facts.limits),
        security_status=SecurityStatus(
            is_revoked=row["revoked_at"] is not None,
            is_expired=expired,
            expires_soon=left is not None and not expired and left.days < SOON_DAYS,
            is_scoped=bool(facts.scopes),
            has_ip_restrictions=bool(facts.networks),
            has_domain_restrictions=bool(facts.referrers),
            has_model_restrictions=bool(facts.models),
            has_provider_restrictions=bool(facts.providers),
            has_expiration=facts.expires_at is not None,
            has_usage_limit=most is not None,
            is_nearly_used_up=percentage is not None and percentage >= NEARLY_PERCENT,
            has_limits=any(getattr(facts.limits, name) is not None for name in COUNTS),
            has_budgets=bool(facts.limits.budgets),
        ),
    )


def _nanos(amount_usd: float) -> Nanos:
    # By its decimal digits: what was written is what is meant.
    return parse_usd(f"{amount_usd:.9f}")
