import pytest

from gateway.loadtest.origin import Origin, Unreachable


def test_a_request_is_rendered_whole() -> None:
    origin = Origin("http://gateway.example:8080/v1/chat/completions?beta=1")

    request = origin.render(b'{"a":1}', headers=[("authorization", "Bearer k")])

    assert request == (
        b"POST /v1/chat/completions?beta=1 HTTP/1.1\r\nhost: gateway.example:8080\r\n"
        b"content-type: application/json\r\ncontent-length: 7\r\nauthorization: Bearer k\r\n\r\n"
        b'{"a":1}'
    )


def test_ports_follow_the_scheme_and_tls_is_made_for_https() -> None:
    assert (Origin("http://a.example").port, Origin("http://a.example").tls) == (80, None)
    assert Origin("https://a.example").port == 443
    assert Origin("https://a.example").tls is not None


@pytest.mark.parametrize("url", ["ftp://a.example", "a.example/v1", "http://", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not an http or https URL"):
        Origin(url)


def test_a_header_cannot_smuggle_another() -> None:
    with pytest.raises(ValueError, match="line break"):
        Origin("http://a.example").render(b"", headers=[("x", "1\r\nhost: b.example")])


async def test_a_name_that_does_not_exist_is_told() -> None:
    with pytest.raises(Unreachable, match=r"host nowhere\.invalid not found"):
        await Origin("http://nowhere.invalid/").resolve()
