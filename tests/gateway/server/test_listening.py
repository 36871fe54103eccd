import socket
import sys

import pytest

from gateway.server.listening import AddressRefused, Listening


def test_all_slots_are_on_one_port() -> None:
    listening = Listening("127.0.0.1", 0)
    listening.occupy(1)
    listening.occupy(1)

    assert listening.url == f"http://127.0.0.1:{listening.port}"
    kept = listening.keep_only(1)
    assert kept.getsockname() == ("127.0.0.1", listening.port)
    assert kept.getblocking() is False
    kept.close()


def test_place_that_was_left_is_taken_again() -> None:
    listening = Listening("127.0.0.1", 0)
    for slot in (0, 1, 2):
        listening.occupy(slot)
    listening.vacate(1)
    listening.vacate(1)
    listening.shrink(1)
    listening.occupy(1)

    kept = listening.keep_only(1)
    assert kept.getsockname()[1] == listening.port
    kept.close()


@pytest.mark.skipif(sys.platform != "linux", reason="what SO_REUSEPORT allows is Linux'")
@pytest.mark.parametrize("shared", [False, True])
def test_port_of_another_program_is_refused_even_if_it_would_share(shared: bool) -> None:
    with socket.socket() as other:
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        with pytest.raises(AddressRefused, match=f"127.0.0.1:{port} is in use by another program.*--port"):
            Listening("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("nowhere.invalid", "'nowhere.invalid' is not an address"),
        ("192.0.2.1", "192.0.2.1 is not an address of this machine"),
    ],
)
def test_address_that_is_not_ours_is_refused(host: str, message: str) -> None:
    with pytest.raises(AddressRefused, match=message):
        Listening(host, 0)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_addresses_of_either_kind() -> None:
    six = Listening("::1", 0)
    assert six.url == f"http://[::1]:{six.port}"
    six.close()

    every = Listening("::", 0)
    listener = every.keep_only(0)
    listener.listen()
    with listener, socket.create_connection(("127.0.0.1", every.port), timeout=30):
        assert every.url == f"http://localhost:{every.port}"
