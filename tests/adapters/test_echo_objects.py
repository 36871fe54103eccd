"""What the echo provider makes believe to keep: the same for every worker, since it is all in the ids."""

import msgspec
import pytest

from gateway_adapters import echo_answers

REQUEST = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
LINES = b'{"custom_id":"a","url":"/v1/chat/completions","body":%b}' % msgspec.json.encode(REQUEST)


def ask(method: str, path: str, body: bytes = b""):
    made = echo_answers.answer(method.encode(), f"/v1{path}".encode(), body)
    return made.status, b"".join(frame for _, frame in made.frames)


def form(content: bytes, purpose: str = "batch") -> bytes:
    return (
        b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n' + purpose.encode() + b"\r\n"
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        + content
        + b"\r\n--x--\r\n"
    )


def read(answered):
    status, body = answered
    assert status == 200, body
    return msgspec.json.decode(body)


def test_a_small_file_comes_back():
    file = read(ask("POST", "/files", form(b"\x00some\xffbytes")))

    assert (file["bytes"], file["filename"], file["purpose"]) == (11, "in.jsonl", "batch")
    assert ask("GET", f"/files/{file['id']}/content") == (200, b"\x00some\xffbytes")
    assert read(ask("GET", f"/files/{file['id']}"))["id"] == file["id"]
    assert read(ask("DELETE", f"/files/{file['id']}"))["deleted"]


def test_of_a_large_file_the_size_is_kept():
    file = read(ask("POST", "/files", form(bytes(range(256)) * 100)))

    assert file["bytes"] == 25_600
    assert len(file["id"]) < 250
    assert b"25600" in ask("GET", f"/files/{file['id']}/content")[1]


def test_a_batch_is_done_when_it_is_asked_for():
    file = read(ask("POST", "/files", form(LINES)))
    order = msgspec.json.encode({"input_file_id": file["id"], "endpoint": "/v1/chat/completions"})

    batch = read(ask("POST", "/batches", order))
    done = read(ask("GET", f"/batches/{batch['id']}"))
    status, output = ask("GET", f"/files/{done['output_file_id']}/content")
    line = msgspec.json.decode(output)

    assert batch["status"] == "validating"
    assert (done["status"], done["usage"]) == (
        "completed",
        {"input_tokens": 3, "output_tokens": 3, "total_tokens": 6},
    )
    assert status == 200
    assert line["response"]["body"]["choices"][0]["message"]["content"] == "one two three"
    assert read(ask("POST", f"/batches/{batch['id']}/cancel"))["status"] == "cancelled"


def test_an_answer_in_the_background_comes_later():
    body = msgspec.json.encode({"model": "echo", "input": "hello you", "background": True})

    ordered = read(ask("POST", "/responses", body))
    done = read(ask("GET", f"/responses/{ordered['id']}"))

    assert (ordered["status"], ordered["usage"]) == ("queued", None)
    assert (done["status"], done["usage"]["total_tokens"], done["id"]) == ("completed", 4, ordered["id"])


@pytest.mark.parametrize("path", ["/files/file-x", "/batches/batch_AAAA", "/responses/resp_1", "/files"])
def test_what_it_can_not_have_made_is_not_there(path):
    assert ask("GET", path)[0] == 404


def test_no_two_objects_have_one_id():
    ids = {read(ask("POST", "/files", form(b"same")))["id"] for _ in range(4)}

    assert len(ids) == 4
