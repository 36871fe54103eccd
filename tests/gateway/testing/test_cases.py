"""The runner of golden cases says what differs. That it finds nothing wrong with sound adapters is tested with them."""

from pathlib import Path

import msgspec
import pytest

from gateway.api import BadRequest, Call, Failure, Offer, ResponseHead, Tap, UpstreamRequest
from gateway.testing import CaseFailed, cases, fill, replay
from tests.gateway.testing.adapters import Sound

CASE = """\
== provider
adapter = "sound"
base_url = "https://h.example/v1"
api_key = "sk-1"
== request
POST /v1/chat/completions
content-type: application/json

{"model":"m","stream":true}
== sent
POST https://h.example:443/v1/chat/completions
content-type: application/json
authorization: Bearer sk-1

{"model":"m","stream":true}
== upstream
200
content-type: text/event-stream

data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}

data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}

data: [DONE]


== downstream
data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}

data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}

data: [DONE]


== usage
{"input_tokens":3,"output_tokens":1}
"""
ERROR = """\
== upstream
429

{}
== failure
{"blame":"provider"}
"""


class Copying(Sound):
    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        sent = super().prepare(call, offer)
        return msgspec.structs.replace(sent, body=bytes(bytearray(call.body)))


class Refusing(Sound):
    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        raise BadRequest("no streams here", param="stream")


class Blaming(Sound):
    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        return Failure(blame="caller")


class Piecewise(Sound):
    """Gives another answer when it comes byte by byte."""

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        tap = super().tap(call, head)

        class Wrong(type(tap)):  # type: ignore[misc]  # whatever it is
            def feed(self, data: bytes) -> bytes:
                return super().feed(data if len(data) != 1 else data.upper())

        return Wrong(call.dialect)


def write(folder: Path, text: str) -> Path:
    path = folder / "one.case"
    path.write_text(text)
    return path


def test_a_case_that_holds_passes(tmp_path: Path) -> None:
    replay(write(tmp_path, CASE), adapters={"sound": Sound})
    replay(write(tmp_path, CASE[: CASE.index("== upstream")] + ERROR), adapters={"sound": Sound})


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("Bearer sk-1", "Bearer sk-2", "another sent"),
        (
            '"finish_reason":"stop"}]}\n\ndata: {"choices":[],',
            '"finish_reason":"length"}]}\n\n: ',
            "another downstream",
        ),
        ('{"input_tokens":3,', '{"input_tokens":4,', "another usage whole, seed 7"),
        ("== upstream\n", "== upstream cut\n", "complete is True"),
        ("== sent", "== dropped\nseed\n== sent", "another dropped"),
        ("== upstream", "== refused\nx: y\n== upstream", "it was not refused"),
    ],
)
def test_what_differs_is_said(tmp_path: Path, wrong: str, right: str, message: str) -> None:
    at = CASE.rindex(wrong)
    path = write(tmp_path, CASE[:at] + right + CASE[at + len(wrong) :])

    with pytest.raises(CaseFailed) as caught:
        replay(path, adapters={"sound": Sound}, seed=7)

    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_difference_is_shown_line_by_line(tmp_path: Path) -> None:
    with pytest.raises(CaseFailed) as caught:
        replay(write(tmp_path, CASE.replace("Bearer sk-1", "Bearer sk-2")), adapters={"sound": Sound})

    assert "-authorization: Bearer sk-2\n+authorization: Bearer sk-1" in str(caught.value)


def test_a_copy_of_the_body_is_found(tmp_path: Path) -> None:
    with pytest.raises(CaseFailed, match="a copy of it"):
        replay(write(tmp_path, CASE), adapters={"sound": Copying})


def test_a_fault_that_only_shows_in_pieces_is_found(tmp_path: Path) -> None:
    with pytest.raises(CaseFailed, match="another downstream byte by byte"):
        replay(write(tmp_path, CASE), adapters={"sound": Piecewise})


def test_another_verdict_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, CASE[: CASE.index("== upstream")] + ERROR)

    with pytest.raises(CaseFailed, match="another failure"):
        replay(path, adapters={"sound": Blaming})


def test_a_refusal_is_compared_with_its_words(tmp_path: Path) -> None:
    begin = CASE[: CASE.index("== sent")]

    replay(write(tmp_path, begin + "== refused\nstream: no streams here\n"), adapters={"sound": Refusing})
    with pytest.raises(CaseFailed, match="another refused"):
        replay(write(tmp_path, begin + "== refused\nstream: never\n"), adapters={"sound": Refusing})


def test_a_file_that_is_no_case_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(CaseFailed, match="no section provider"):
        replay(write(tmp_path, "== request\nPOST /v1/models\n"))
    with pytest.raises(CaseFailed, match='no adapter "sound" is installed'):
        replay(write(tmp_path, CASE))


def test_cases_are_found_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = write(tmp_path / "a", CASE)

    assert cases(tmp_path) == [path]


def test_what_a_case_lacks_is_filled_in_and_holds(tmp_path: Path) -> None:
    begin, upstream = CASE[: CASE.index("== sent")], CASE[CASE.index("== upstream") : CASE.index("== downstream")]
    path = write(tmp_path, begin + upstream)

    assert fill(path, adapters={"sound": Sound}) == ["sent", "downstream", "usage"]

    replay(path, adapters={"sound": Sound})
    assert path.read_text().endswith('== usage\n{"input_tokens":3,"output_tokens":1}\n')
    assert fill(path, adapters={"sound": Sound}) == []


def test_an_error_answer_is_filled_in_by_its_verdict(tmp_path: Path) -> None:
    path = write(tmp_path, CASE[: CASE.index("== sent")] + ERROR[: ERROR.index("== failure")])

    assert fill(path, adapters={"sound": Sound}) == ["sent", "failure"]

    replay(path, adapters={"sound": Sound})


def test_there_is_nothing_to_fill_in_without_an_answer(tmp_path: Path) -> None:
    with pytest.raises(CaseFailed, match="no section upstream"):
        fill(write(tmp_path, CASE[: CASE.index("== sent")]), adapters={"sound": Sound})
