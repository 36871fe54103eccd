"""The OpenAPI 3.1 document of the control plane, made from the declarations that also decode and validate."""

import inspect
import re
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec

from gateway import __version__
from gateway.control.access import ADMIN, PUBLIC, SIGNED_IN
from gateway.control.errors import Conflict, Invalid, NotFound, NotPermitted, SignInNeeded
from gateway.control.http import ErrorAnswer
from gateway.control.idempotency import HEADER, KEY_MAX
from gateway.control.route import ID_MAX, Nothing, Raw, Route
from gateway.errors import BadRequest, BodyTooLarge, GatewayError, Overloaded, StoreUnavailable, UnsupportedEncoding

#: A JSON object of the document; what is in it is the specification's business.
Json: TypeAlias = dict[str, Any]

_PARAMETER: Final = re.compile(r"\{(\w+)(?::(\w+))?\}")
_TEMPLATE: Final = "#/components/schemas/{name}"
_SECURITY: Final[tuple[Json, ...]] = ({"session": []}, {"key": []})


def build(routes: Sequence[Route]) -> Json:
    """The document."""
    routes = [route for route in routes if not route.hidden]
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    found = {repr(type_): schema for type_, schema in zip(types, schemas, strict=True)}
    paths: Json = {}
    for route in routes:
        for number, path in enumerate(route.paths):
            operation = _operation(route, path, found, components, alias=number > 0)
            paths.setdefault(_PARAMETER.sub(r"{\1}", path), {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AI Gateway",
            "version": __version__,
            "description": "Accounts and administration. Inference is under /v1 and speaks its callers' dialects.",
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "session": {"type": "http", "scheme": "bearer", "description": "A session's token, from POST /auth."},
                "key": {"type": "http", "scheme": "bearer", "description": "A gateway key, gw_..."},
            },
        },
    }


def _types(routes: Sequence[Route]) -> list[Any]:  # Any: types and generic aliases
    types: list[Any] = [ErrorAnswer]
    for route in routes:
        types += [each for each in (route.request, route.query) if each is not Nothing]
        if not _is_raw(route):
            types.append(route.response)
    unique = {repr(type_): type_ for type_ in types}
    return list(unique.values())


def _operation(route: Route, path: str, found: Json, components: Json, *, alias: bool) -> Json:
    description = inspect.getdoc(route.handler) or ""
    operation: Json = {
        "operationId": _operation_id(route, path),
        "summary": route.summary,
        "description": f"{description}\n\n{_who(route)}".strip(),
        "tags": [route.tag],
        "parameters": [*_path_parameters(path), *_query_parameters(route, components), *_header_parameters(route)],
        "responses": _responses(route, path, found),
    }
    if alias:
        operation["deprecated"] = True
    if route.access != PUBLIC:
        operation["security"] = list(_SECURITY)
    if route.writes and route.request is not Nothing:
        schema = found[repr(route.request)]
        required = bool(components.get(route.request.__name__, {}).get("required"))
        operation["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
    return operation


def _operation_id(route: Route, path: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", _PARAMETER.sub(r"by_\1", path))
    return "_".join([route.method.lower(), *words])


def _who(route: Route) -> str:
    if route.access == PUBLIC:
        return "For anyone."
    if route.access == SIGNED_IN:
        return "For anyone who is signed in."
    what = route.access.removeprefix(ADMIN)
    return f"For administrators (`{what}`)." if route.access.startswith(ADMIN) else f"Asks for `{what}`."


def _path_parameters(path: str) -> list[Json]:
    parameters = []
    for name, kind in _PARAMETER.findall(path):
        number: Json = {"type": "integer", "minimum": 0, "maximum": ID_MAX}
        schema = number if kind == "int" else {"type": "string", "minLength": 1}
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    return parameters


def _query_parameters(route: Route, components: Json) -> list[Json]:
    if route.query is Nothing:
        return []
    schema = components[route.query.__name__]
    parameters = []
    for name, each in schema["properties"].items():
        shown = {key: value for key, value in each.items() if key != "description"}
        if "anyOf" in shown:
            # Null can't be written in a query: leaving it out says so.
            kinds = [kind for kind in shown.pop("anyOf") if kind.get("type") != "null"]
            shown = {key: value for key, value in shown.items() if key != "default" or value is not None}
            shown |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        parameter: Json = {"name": name, "in": "query", "required": name in schema["required"], "schema": shown}
        if "description" in each:
            parameter["description"] = each["description"]
        parameters.append(parameter)
    return parameters


def _header_parameters(route: Route) -> list[Json]:
    if not route.idempotent:
        return []
    return [
        {
            "name": HEADER,
            "in": "header",
            "required": False,
            "description": "Makes the request repeatable: the same key with the same request gets the first answer.",
            "schema": {"type": "string", "minLength": 1, "maxLength": KEY_MAX, "pattern": "^[!-~]+$"},
        }
    ]


def _responses(route: Route, path: str, found: Json) -> Json:
    responses: Json = {}
    good: Json = {"description": "It worked."}
    if _is_raw(route):
        shape = {"type": "object"} if route.media_type == "application/json" else {"type": "string"}
        good["content"] = {route.media_type: {"schema": shape}}
    else:
        good["content"] = {"application/json": {"schema": found[repr(route.response)]}}
    responses[str(route.status)] = good
    for error in _errors(route, path):
        responses.setdefault(
            str(error.status),
            {
                "description": (error.__doc__ or "").strip(),
                "content": {"application/json": {"schema": found[repr(ErrorAnswer)]}},
            },
        )
    return dict(sorted(responses.items()))


def _errors(route: Route, path: str) -> list[type[GatewayError]]:
    errors: list[type[GatewayError]] = [*route.errors]
    if route.access != PUBLIC:
        errors += [SignInNeeded, NotPermitted]
    if "{" in path:
        errors.append(NotFound)
    if route.writes:
        errors.append(BodyTooLarge)
        if route.request is not Nothing:
            errors += [BadRequest, UnsupportedEncoding, Invalid]
    if route.query is not Nothing or route.idempotent:
        errors.append(Invalid)
    if route.idempotent:
        errors.append(Conflict)
    return [*errors, Overloaded, StoreUnavailable]


def _is_raw(route: Route) -> bool:
    return route.response is Raw
