"""The OpenAPI document says what the application does: requests made from it, sensible and mad, find no server error and
no answer that it does not name.
"""

import asyncio
import itertools
from html import escape

import hypothesis
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.control import openapi
from gateway.control.app import ROUTES
from gateway.control.docs import routes as documentation
from gateway.control.http import encode
from gateway.infra.embedded import Stores
from gateway.settings import Identity, Settings
from tests.control.desk import Desk

#: Requests for each operation.
EXAMPLES = 12
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
#: They end the caller's session or the caller, so their requests are made by somebody new.
FINAL = {"/user/account", "/auth/session", "/user/password"}

DOCUMENT = msgspec.json.decode(encode(openapi.build((*ROUTES, *documentation(ROUTES)))))
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]


async def test_the_document_is_served_and_every_operation_has_its_own_name(desk: Desk):
    document = (await desk.nobody.get("/openapi.json")).json

    names = [each["operationId"] for path in document["paths"].values() for each in path.values()]

    assert document == DOCUMENT
    assert len(names) == len(set(names))


async def test_the_pages_load_nothing_from_anywhere(desk: Desk):
    for path in ("/docs", "/redoc"):
        answer = await desk.nobody.get(path)
        text = answer.body.decode()

        assert "<script" not in text
        assert "src=" not in text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert all(escape(each.summary) in text for each in ROUTES if not each.hidden)


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def fuzzed(loop, people_database, stores):
    """A desk that outlives its requests, with room for many tries."""
    many = Identity(tries_per_client=10**6, tries_per_address=10**6)
    desk = Desk(Stores(people_database, stores.flush()), Settings(identity=many))
    loop.run(desk.__aenter__())
    yield desk
    loop.run(desk.__aexit__(None, None, None))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
def test_no_request_finds_a_bug(loop, fuzzed, operation):
    boss = loop.run(fuzzed.person(role="admin"))
    numbers = itertools.count()

    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        caller = boss
        if operation.path in FINAL:
            caller = loop.run(fuzzed.person(role="admin"))
        elif next(numbers) % 6 == 5:
            caller = fuzzed.nobody
        arguments = case.as_transport_kwargs(base_url="http://gateway", headers=caller.headers)
        for name in ("allow_redirects", "cookies"):
            arguments.pop(name, None)
        response = loop.run(fuzzed.client.request(**arguments))
        case.validate_response(schemathesis.Response.from_any(response), checks=CHECKS)

    check()
