import ssl

import pytest

from gateway.errors import ConfigError
from gateway.infra.redis.address import Address, parse


@pytest.mark.parametrize(
    ("url", "mode", "addresses", "database"),
    [
        ("redis://localhost", "single", ["localhost:6379"], 0),
        ("redis://:pw@10.0.0.1:7000/2", "single", ["10.0.0.1:7000"], 2),
        ("redis://host?db=5", "single", ["host:6379"], 5),
        ("redis://[::1]:7000", "single", ["::1:7000"], 0),
        ("rediss://host:6380", "single", ["host:6380"], 0),
        ("unix:///run/valkey.sock", "single", ["/run/valkey.sock"], 0),
        ("unix:///run/a%20b.sock?db=2", "single", ["/run/a b.sock"], 2),
        ("redis+cluster://a:1,b:2,[::1]:3", "cluster", ["a:1", "b:2", "::1:3"], 0),
        ("redis+cluster://[::1]:1,[::2]?db=0", "cluster", ["::1:1", "::2:6379"], 0),
        ("rediss+cluster://a", "cluster", ["a:6379"], 0),
        ("redis+sentinel://a,b:2/mymaster/3", "sentinel", ["a:26379", "b:2"], 3),
    ],
)
def test_the_forms_of_url(url, mode, addresses, database):
    target = parse(url)

    assert (target.mode, [str(address) for address in target.addresses], target.database) == (
        mode,
        addresses,
        database,
    )
    assert (target.tls is not None) == url.startswith("rediss")


def test_a_login_is_unquoted_and_secret():
    target = parse("redis+sentinel://us%40er:p%3Aw%2F@host/name?sentinel_username=s&sentinel_password=other")

    assert target.login.username == "us@er"
    assert target.login.password.reveal() == "p:w/"
    assert target.sentinel_login.username == "s"
    assert target.sentinel_login.password.reveal() == "other"
    assert target.master == "name"
    assert "p:w" not in repr(target)
    assert "other" not in repr(target)
    assert parse("redis://host").login.password is None


def test_tls_checks_certificates_unless_told_not_to():
    strict = parse("rediss://host").tls
    lax = parse("rediss://host?ssl_cert_reqs=none").tls

    assert strict.verify_mode == ssl.CERT_REQUIRED
    assert strict.check_hostname
    assert lax.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://host", "must begin with"),
        ("redis+other://host", "must begin with"),
        ("host:6379", "must begin with"),
        ("redis://host:port", "port"),
        ("redis://host:99999", "port"),
        ("redis://[::1", "host"),
        ("redis+cluster://a,[b]", "host"),
        ("redis://host/x", "'x'"),
        ("redis://host?dbb=1", "'dbb'"),
        ("redis://a,b", "several"),
        ("redis+cluster://a/1", "database 0"),
        ("redis+sentinel://a", "name the master"),
        ("unix://", "no path"),
        ("rediss://host?ssl_ca_certs=/does/not/exist", "certificate"),
        ("rediss://host?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
    ],
)
def test_a_wrong_url_says_what_is_wrong_and_keeps_the_password(url, named):
    scheme, _, rest = url.partition("://")
    with pytest.raises(ConfigError) as caught:
        parse(f"{scheme}://user:hunter2@{rest}" if scheme.startswith("redis") else url)

    assert named in caught.value.message
    assert "hunter2" not in caught.value.message


def test_an_address_names_itself():
    assert str(Address("host", 1)) == "host:1"
    assert str(Address(path="/a.sock")) == "/a.sock"
