"""Which path is about which object, and what a body refers to."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.wire.objects import (
    REFERENCES_MAX,
    BatchInput,
    BatchOutput,
    StartFinder,
    may_refer,
    object_path,
    read_document,
    references,
)
from gateway.wire.peek import peek


@pytest.mark.parametrize(
    ("path", "kind", "ids", "methods"),
    [
        (b"/files", "file", (), {"POST": "create", "GET": "list"}),
        (b"/files/file-1", "file", ("file-1",), {"GET": "read", "DELETE": "delete"}),
        (b"/files/file-1/content", "file", ("file-1",), {"GET": "relay"}),
        (b"/files/file%2D1/content", "file", ("file-1",), {"GET": "relay"}),
        (b"/batches/b/cancel", "batch", ("b",), {"POST": "change"}),
        (b"/responses/resp_1", "response", ("resp_1",), {"GET": "read", "DELETE": "delete"}),
        (b"/conversations/c/items/i", "conversation", ("c", "i"), {"GET": "answer", "DELETE": "answer"}),
        (b"/vector_stores/v/files/f/content", "vector_store", ("v", "f"), {"GET": "relay"}),
    ],
)
def test_paths_that_are_understood(path, kind, ids, methods):
    found = object_path(path)

    assert found is not None
    assert (found.kind, found.ids, found.methods) == (kind, ids, methods)
    assert found.path == path.replace(b"%2D", b"-")
    assert not any(each in found.label for each in ids if len(each) > 3)


@pytest.mark.parametrize(
    "path",
    [
        b"/fine_tuning/jobs",
        b"/files/a/b",
        b"/files//content",
        b"/files/",
        b"/files/..%2F..%2Forganization/content",
        b"/files/a%3Fb",
        b"/files/" + b"a" * 600,
        b"/batches/x/delete",
        b"/responses",
    ],
)
def test_paths_that_are_not(path):
    assert object_path(path) is None


@given(st.binary(max_size=60))
def test_no_path_is_a_fault_or_leads_elsewhere(tail):
    found = object_path(b"/files/" + tail)

    assert found is None or found.path.count(b"/") == 2 + (found.path.endswith(b"/content"))


def body(**members) -> bytes:
    return msgspec.json.encode(members)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (body(model="m", previous_response_id="resp_1"), ("resp_1",)),
        (body(model="m", previous_response_id=None), ()),
        (body(conversation="conv_1"), ("conv_1",)),
        (body(conversation={"id": "conv_1"}), ("conv_1",)),
        (body(messages=[{"content": [{"type": "file", "file": {"file_id": "file-1"}}]}]), ("file-1",)),
        (body(input=[{"content": [{"type": "input_image", "file_id": "file-1"}]}]), ("file-1",)),
        (body(tools=[{"type": "file_search", "vector_store_ids": ["vs_1", "vs_2"]}]), ("vs_1", "vs_2")),
        (body(tools=[{"type": "code_interpreter", "container": "cntr_1"}]), ("cntr_1",)),
        (body(tools=[{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["f"]}}]), ("f",)),
        (body(input_file_id="file-1", endpoint="/v1/x"), ("file-1",)),
        (b'{"messages":[{"content":[{"file":{"\\u0066ile_id":"file-1"}}]}]}', ("file-1",)),
        (b'{"previous_response_\\u0069d":"resp_1"}', ("resp_1",)),
    ],
)
def test_references_are_found_where_the_apis_have_them(text, found):
    assert may_refer(text) or peek(text).continues or not found
    assert set(references(text)) == set(found)


@pytest.mark.parametrize(
    "text",
    [
        body(metadata={"file_id": "mine", "conversation": "x"}, messages=[]),
        body(
            tools=[{"type": "function", "function": {"parameters": {"properties": {"file_id": {"type": "string"}}}}}]
        ),
        body(
            tools=[{"parameters": {"file_id": "file-1"}}], messages=[{"role": "user", "content": "my file_id is 3"}]
        ),
        body(tools=[{"type": "code_interpreter", "container": {"type": "auto"}}]),
        body(messages=[{"role": "assistant", "tool_calls": [{"function": {"arguments": '{"file_id":"file-1"}'}}]}]),
    ],
)
def test_what_is_the_callers_own_is_no_reference(text):
    assert references(text) == ()


def test_most_bodies_are_not_even_read():
    assert not may_refer(body(model="m", messages=[{"role": "user", "content": "h\u00e9llo \u4f60"}]))
    assert not may_refer(b'{"messages":[{"content":"caf\\u00e9 \\u003cb\\u003e"}]}')


@pytest.mark.parametrize(
    "text",
    [
        b'{"previous_response_id": 7}',
        b'{"conversation": {"id": ["x"]}}',
        b'{"previous_response_id": "a", NaN}',
        body(input=[{"file_id": {"id": 1}}]),
        body(input=[{"file_id": f"file-{n}"} for n in range(REFERENCES_MAX + 1)]),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(text):
    with pytest.raises(BadRequest):
        references(text)


def test_a_description_is_read_and_its_report():
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    done = read_document(body(id="batch_1", object="batch", status="completed", usage=usage, expires_at=1.5))
    early = read_document(body(id="batch_1", object="batch", status="completed", usage={"input_tokens": 0}))

    assert done is not None
    assert early is not None
    assert done.ended
    counted = done.counted()
    assert counted is not None
    assert (counted.input_tokens, counted.output_tokens) == (3, 2)
    assert early.counted() is None
    assert read_document(b"[]") is None
    assert read_document(body(id="../x")) is None
    assert read_document(b'{"id":') is None


STREAM = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"id":"resp_abc",'
    b'"object":"response"}}\n\n'
)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    "text", [STREAM, b'{\n  "id": "resp_abc", "output": []}', b'{"background":true,"id":"resp_abc"}']
)
def test_the_id_of_a_response_is_found_however_it_arrives(text, size):
    finder = StartFinder()
    for start in range(0, len(text), size):
        if finder.done:
            break
        finder.feed(text[start : start + size])

    assert finder.done
    assert finder.id == "resp_abc"


def test_an_answer_without_an_id_is_looked_at_for_a_while_only():
    finder = StartFinder()
    finder.feed(b"x" * (StartFinder.LOOKED_AT_MAX + 1))

    assert finder.done
    assert finder.id == ""


LINE = b'{"custom_id":"%d","body":{"model":"m","max_tokens":10,"n":2,"messages":["' + b"x" * 50 + b'"]}}\n'


@given(st.integers(1, 200), st.integers(0, 8))
def test_a_batch_is_the_same_however_its_file_arrives(size, count):
    text = b"".join(LINE % number for number in range(count)) + b'{"body":{"model":"m"}}'
    lines = BatchInput(output_tokens=7)
    for start in range(0, len(text), size):
        lines.feed(text[start : start + size])
    lines.end()

    assert lines.count == count + 1
    assert lines.model == "m"
    assert lines.output_tokens == count * 20 + 7
    assert lines.input_bytes == len(text.replace(b"\n", b""))


def test_answers_of_a_batch_are_summed_up():
    lines = BatchOutput()
    lines.feed(
        b'{"response":{"body":{"usage":{"prompt_tokens":3,"completion_tokens":2}}}}\n{"response":null}\nnot json\n'
    )
    lines.end()

    usage = lines.usage()
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, lines.silent) == (3, 2, 2)
