"""Who may do what: the roles, what each is permitted, and how a route says what it asks for.

Rules:
- Permissions are written `resource:action`. A role below `admin` has them for what is its own account's; handlers
  ask the database for things together with the account, so that another account's are not found.
- A route asks for exactly one of these, and there is none by default:
    "public"                 nobody is asked who they are
    "signed_in"              any person's session or any key
    "resource:action"        a role with that permission, about what belongs to the caller's account
    "admin:resource:action"  an administrator with that permission, about anything of anybody
- A key acts in the role of the person who made it, narrowed by its own scopes: `{verb: [resource, ...]}`, where the
  verb is `read`, `write` or, for `admin:` routes, `admin`, and `*` is every resource. No scopes: not narrowed.
- In an account, its owner may do more than its administrators, and these more than its members.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, get_args

Role: TypeAlias = Literal["admin", "developer", "user"]
AccountRole: TypeAlias = Literal["owner", "admin", "member"]
Access: TypeAlias = str

PUBLIC: Final = "public"
SIGNED_IN: Final = "signed_in"
ADMIN: Final = "admin:"

#: From the least to the most.
ROLES: Final[tuple[Role, ...]] = ("user", "developer", "admin")
ACCOUNT_ROLES: Final[tuple[AccountRole, ...]] = ("member", "admin", "owner")

_OWN: Final = ("users:read", "users:update", "users:delete", "coupons:redeem", "coupons:list_available")
_HISTORY: Final = (
    "coupons:view_history",
    "usage:read",
    "teams:read",
    "teams:update",
    "payments:read",
    "payments:create",
)

#: What each role may do.
PERMISSIONS: Final[Mapping[Role, frozenset[str]]] = MappingProxyType(
    {
        "user": frozenset(
            {
                *_OWN,
                *_HISTORY,
                "api_keys:read",
                "api_keys:list",
                "provider_keys:read",
                "provider_keys:list",
                "rate_limits:read",
            }
        ),
        "developer": frozenset(
            {
                *_OWN,
                *_HISTORY,
                *(f"api_keys:{action}" for action in ("create", "read", "update", "delete", "list")),
                *(f"provider_keys:{action}" for action in ("create", "read", "update", "delete", "list")),
                *(f"rate_limits:{action}" for action in ("read", "update")),
                "analytics:read",
            }
        ),
        "admin": frozenset(
            {
                *_OWN,
                *_HISTORY,
                *(f"users:{action}" for action in ("create", "read", "update", "delete", "list")),
                *(f"roles:{action}" for action in ("read", "update", "list")),
                *(f"coupons:{action}" for action in ("create", "read", "update", "delete", "list", "analytics")),
                *(f"api_keys:{action}" for action in ("create", "read", "update", "delete", "list")),
                *(f"provider_keys:{action}" for action in ("create", "read", "update", "delete", "list")),
                *(f"rate_limits:{action}" for action in ("read", "update")),
                *(f"plans:{action}" for action in ("create", "read", "update", "delete")),
                *(f"credits:{action}" for action in ("create", "read")),
                *(f"models:{action}" for action in ("read", "update", "refresh")),
                *(f"payments:{action}" for action in ("read", "create", "refund")),
                *(f"notifications:{action}" for action in ("read", "process")),
                "analytics:read",
                "monitoring:read",
                "audit_logs:read",
            }
        ),
    }
)

_READING: Final = frozenset({"read", "list", "list_available", "view_history", "analytics"})
_KNOWN: Final = frozenset().union(*PERMISSIONS.values())


def check_access(access: Access) -> None:
    """Refuse what no route can ask for.

    Raises:
        ValueError: no role is permitted that, so it must be mistyped.
    """
    if access not in {PUBLIC, SIGNED_IN} and access.removeprefix(ADMIN) not in _KNOWN:
        raise ValueError(f"no role has the permission {access!r}; see PERMISSIONS")


def is_permitted(role: Role, access: Access) -> bool:
    """Whether somebody of that role may."""
    if access in {PUBLIC, SIGNED_IN}:
        return True
    if access.startswith(ADMIN):
        return role == "admin" and access.removeprefix(ADMIN) in PERMISSIONS["admin"]
    return access in PERMISSIONS[role]


def is_in_scope(scopes: Mapping[str, tuple[str, ...]], access: Access, *, writes: bool) -> bool:
    """Whether a key of these scopes may. `writes` decides where the permission's name does not say it."""
    if not scopes or access == PUBLIC:
        return True
    if access == SIGNED_IN:
        verb, resource = ("write" if writes else "read"), "account"
    else:
        resource, _, action = access.removeprefix(ADMIN).partition(":")
        verb = "admin" if access.startswith(ADMIN) else "read" if action in _READING else "write"
    return not {"*", resource}.isdisjoint(scopes.get(verb, ()))


def is_at_least(role: AccountRole, least: AccountRole) -> bool:
    """Whether one role in an account includes another."""
    return ACCOUNT_ROLES.index(role) >= ACCOUNT_ROLES.index(least)


assert set(ROLES) == set(get_args(Role)) == set(PERMISSIONS)
assert set(ACCOUNT_ROLES) == set(get_args(AccountRole))
