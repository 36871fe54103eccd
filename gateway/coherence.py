"""What settings mean together: what follows from others is filled in, and what no single key can be blamed for is
reported, as a fault that nothing starts on, or as a warning.
"""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from gateway.binding import Binder, Table, nearest
from gateway.secret import Secret, decode_key
from gateway.settings import (
    MASTER_BYTES,
    PEPPER_BYTES_MIN,
    PLANS,
    UNLIMITED,
    Condition,
    OwnKeys,
    Plan,
    Provider,
    Settings,
    Timeouts,
)
from gateway.toml_positions import KeyPath, join_key
from gateway.wire.client_address import is_network

_STORE_SCHEMES = {
    ("database", "url"): ("postgresql", "postgres"),
    ("redis", "url"): ("redis", "rediss", "unix", "valkey", "valkeys"),
}
_PROVIDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: As browsers write it: a scheme, a host in small letters, a port where it is not the usual one; no path.
_WEB_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_MASTER_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
ECHO = "echo"


class Rules:
    """What settings mean together."""

    def __init__(self, bound: Settings, table: Table, binder: Binder) -> None:
        self.warnings: list[str] = []
        self._bound = bound
        self._table = table
        self._binder = binder

    def complete(self) -> Settings:
        """The settings with what follows from others filled in."""
        bound = self._bound
        providers = {name: self._inherit(name, provider) for name, provider in bound.providers.items()}
        if bound.server.development and ECHO not in (self._rows("providers")):
            alone = not any(provider.enabled for provider in providers.values())
            models = ("echo", "echo-*", "*") if alone else ("echo", "echo-*")
            providers[ECHO] = Provider(adapter=ECHO, models=models)
        plans = {name: self._complete_plan(name, plan) for name, plan in bound.plans.items()}
        return msgspec.structs.replace(bound, providers=providers, plans=PLANS | plans)

    def _inherit(self, name: str, provider: Provider) -> Provider:
        given = self._table.get("providers", name, "timeouts")
        if provider.timeouts is None or not isinstance(given, Table):
            return provider
        own = {key: getattr(provider.timeouts, key) for key in Timeouts.__struct_fields__ if key in given.entries}
        timeouts = msgspec.structs.replace(self._bound.upstream.timeouts, **own)
        return msgspec.structs.replace(provider, timeouts=timeouts)

    def _complete_plan(self, name: str, plan: Plan) -> Plan:
        """A row of a file is the whole plan; variables alone change what we know of it."""
        given = self._table.get("plans", name)
        if name not in PLANS or not isinstance(given, Table) or given.origin is None:
            return plan
        if given.origin.kind != "environment":
            return plan
        return msgspec.structs.replace(PLANS[name], **{key: getattr(plan, key) for key in given.entries})

    def check(self, settings: Settings) -> None:
        """Report what no single key can be blamed for in its own right."""
        for name, provider in settings.providers.items():
            self._check_provider(name, provider)
        self._check_references(settings)
        self._check_aliases(settings)
        self._check_cors(settings)
        self._check_pepper(settings.auth.pepper)
        self._check_own_keys(settings.own_keys)
        if UNLIMITED in settings.plans:
            self._fault(("plans", UNLIMITED), "is the name of the plan that has no limits")
        for path, schemes in _STORE_SCHEMES.items():
            self._check_store(path, settings, schemes)
        self._check_control(settings)
        if settings.server.development:
            if settings.server.host not in _LOOPBACK:
                self.warnings.append(
                    f"development mode listens on {settings.server.host}, which other machines may reach; "
                    "set `server.development = false` for anything but trying it out"
                )
        else:
            self._check_production(settings)

    def _check_provider(self, name: str, provider: Provider) -> None:
        path = ("providers", name)
        if not _PROVIDER_NAME.fullmatch(name):
            # It stands in headers, labels and paths.
            self._fault(
                path, "a name has 1 to 64 letters, digits, `.`, `_` or `-`, and begins with one of the first two"
            )
        if provider.enabled and not provider.models:
            self.warnings.append(f"{join_key((*path, 'models'))}: is empty, so nothing is asked of this provider")
        if provider.base_url:
            self._check_url((*path, "base_url"), provider.base_url)
        for model in provider.models:
            if not model or "*" in model[:-1]:
                self._fault((*path, "models"), "a name may hold one star, at its end, and is never empty")

    def _check_url(self, path: KeyPath, text: str) -> None:
        try:
            url = urlsplit(text)
            sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            sound = False
        if not sound:
            self._fault(path, "expected an http:// or https:// URL with a host")
        elif url.username is not None or url.password is not None:
            self._fault(path, "a URL with a user or password in it would show up in logs; use `api_key`")

    def _check_store(self, path: tuple[str, str], settings: Settings, schemes: tuple[str, ...]) -> None:
        secret = getattr(getattr(settings, path[0]), path[1])
        if secret is None:
            return
        url = secret.reveal()
        if url.partition("://")[0].partition("+")[0] not in schemes:
            self._fault(path, f"expected a URL that begins with {schemes[0]}://")
            return
        try:
            # Of several hosts each may have a port; the last one is enough to find a password that was not encoded.
            urlsplit(url.replace(",", "@")).port  # noqa: B018  it raises
        except ValueError:
            how = "is there a `/`, `#`, `?` or `@` in its password? Percent-encode it"
            self._fault(path, "is not a URL with a host and a port", how)

    def _check_references(self, settings: Settings) -> None:
        names = list(settings.providers)
        if (name := settings.default_provider) and name not in settings.providers:
            near = nearest(name, names)
            hint = f"did you mean `{near}`?" if near else f"configured are: {', '.join(names) or 'none'}"
            self._fault(("default_provider",), "there is no such provider", hint)
        elif name and not settings.providers[name].enabled:
            self._fault(("default_provider",), "this provider is not enabled")
        for model, row in settings.models.items():
            for table in ("upstream", "weights", "priorities"):
                for name in getattr(row, table):
                    if name not in settings.providers:
                        key = join_key(("models", model, table, name))
                        self.warnings.append(f"{key}: there is no provider of that name")
            for chain in ("fallbacks", "context_fallbacks", "policy_fallbacks"):
                for name in getattr(row, chain):
                    if not _is_offered(name, settings):
                        key = join_key(("models", model, chain))
                        self.warnings.append(f"{key}: no provider serves `{name}`")
            if row.shadow and not _is_offered(row.shadow, settings):
                self.warnings.append(f"{join_key(('models', model, 'shadow'))}: no provider serves `{row.shadow}`")
            for condition in row.conditions:
                self._check_condition(join_key(("models", model, "conditions")), condition, settings)

    def _check_aliases(self, settings: Settings) -> None:
        owners: dict[str, str] = {}
        for model, row in settings.models.items():
            for alias in row.aliases:
                if (owner := owners.setdefault(alias, model)) != model:
                    self._fault(("models", model, "aliases"), f"`{alias}` is an alias of `{owner}` already")

    def _check_cors(self, settings: Settings) -> None:
        for origin in settings.cors.origins:
            if origin != "*" and not _WEB_ORIGIN.fullmatch(origin):
                how = 'browsers send https://app.example.com: no path, no `/` at the end, no star; or ["*"] for any'
                self._fault(("cors", "origins"), f"{origin!r} is no origin", how)

    def _check_condition(self, key: str, condition: Condition, settings: Settings) -> None:
        if condition.model and not _is_offered(condition.model, settings):
            self.warnings.append(f"{key}: no provider serves `{condition.model}`")
        for name in condition.providers:
            if name not in settings.providers:
                self.warnings.append(f"{key}: there is no provider `{name}`")

    def _check_pepper(self, pepper: Secret | None) -> None:
        if pepper is not None and len(pepper.reveal().encode()) < PEPPER_BYTES_MIN:
            how = "make one with `openssl rand -hex 32`"
            self._fault(("auth", "pepper"), f"is shorter than {PEPPER_BYTES_MIN} bytes", how)

    def _check_own_keys(self, own: OwnKeys) -> None:
        path = ("own_keys", "masters")
        for name, master in own.masters.items():
            if not _MASTER_ID.fullmatch(name):
                self._fault((*path, name), "an id has 1 to 32 letters, digits, `-` or `_`")
            try:
                decode_key(master, size_bytes=MASTER_BYTES)
            except ValueError as error:
                self._fault((*path, name), str(error), "make one with `openssl rand -hex 32`")
        if own.active and own.active not in own.masters:
            near = nearest(own.active, list(own.masters))
            hint = f"did you mean `{near}`?" if near else f"there are: {', '.join(own.masters) or 'none'}"
            self._fault(("own_keys", "active"), "there is no such master key", hint)
        elif not own.active and len(own.masters) > 1:
            self._fault(("own_keys", "active"), "of several master keys one has to be named", "the one that encrypts")

    def _check_control(self, settings: Settings) -> None:
        for proxy in settings.server.trusted_proxies:
            if not is_network(proxy):
                self._fault(("server", "trusted_proxies"), f"{proxy!r} is no address and no network")
        if settings.control.url:
            self._check_url(("control", "url"), settings.control.url)
        if settings.identity.plan not in {*settings.plans, UNLIMITED}:
            self._fault(("identity", "plan"), "there is no such plan", f"plans are: {', '.join(settings.plans)}")
        for name, issuer in settings.issuers.items():
            # The issuer's name need not be one: Privy's is a bare word. Its keys are at a URL in any case.
            if issuer.jwks_url:
                self._check_url(("issuers", name, "jwks_url"), issuer.jwks_url)
            elif issuer.kind == "oidc":
                self._check_url(("issuers", name, "issuer"), issuer.issuer)
            if not issuer.algorithms:
                self._fault(("issuers", name, "algorithms"), "name at least one")

    def _check_production(self, settings: Settings) -> None:
        switch = "or set `server.development = true` to try things out"
        if settings.auth.pepper is None:
            how = "generate one with `openssl rand -hex 32`, keep it for good and share it between all gateways"
            self._fault(("auth", "pepper"), "is required outside development", f"{how}, {switch}")
        if self._table.get("server", "host") is None:
            how = "127.0.0.1 behind a proxy on this machine, 0.0.0.0 for every interface"
            self._fault(("server", "host"), "must be set explicitly outside development", f"{how}, {switch}")
        for section, what in (("database", "PostgreSQL"), ("redis", "Redis or Valkey")):
            if getattr(settings, section).url is None:
                self.warnings.append(f"{section}.url is not set: outside development, use a {what} of your own")

    def _rows(self, name: str) -> Mapping[str, object]:
        rows = self._table.get(name)
        return rows.entries if isinstance(rows, Table) else {}

    def _fault(self, path: KeyPath, message: str, suggestion: str = "") -> None:
        node = self._table.get(*(str(part) for part in path))
        self._binder.report(path, message, origin=node.origin if node else None, suggestion=suggestion)


def _is_offered(model: str, settings: Settings) -> bool:
    """Whether some enabled provider lists the model, by its name, an alias or a star."""
    names = {model, *(name for name, row in settings.models.items() if model in row.aliases)}
    return any(
        listed in names or (listed.endswith("*") and any(name.startswith(listed[:-1]) for name in names))
        for provider in settings.providers.values()
        if provider.enabled
        for listed in provider.models
    )
