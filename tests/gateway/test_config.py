"""What is loaded from where, and what a mistake is answered with."""

import re
import traceback
from pathlib import Path

import msgspec
import pytest

from gateway.api import KnownProvider
from gateway.binding import REFERENCE_BYTES_MAX
from gateway.config import FILE_BYTES_MAX, InvalidConfig, load, proxy_variables
from gateway.errors import ConfigError
from gateway.settings import Model, Timeouts

KNOWN = {
    "openai": KnownProvider(
        name="openai",
        title="OpenAI",
        adapter="openai",
        variable="OPENAI_API_KEY",
        base_url="https://api.openai.com/v1",
    ),
    "groq": KnownProvider(
        name="groq",
        title="Groq",
        adapter="compatible",
        variable="GROQ_API_KEY",
        base_url="https://api.groq.com/openai/v1",
    ),
}
SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    """Nothing is found by accident."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "gateway.toml"


def complaint(file: Path, text: str, **variables: str) -> str:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(file), environ=variables)
    return str(caught.value)


# -- mistakes in a file --------------------------------------------------------------------------------------

MISTAKES = [
    # (text, line, key, what the message says)
    ("[server]\nworkers = 1025", 2, "server.workers", "from 0 to 1024"),
    ("[providers.'a b']\nadapter = 'openai'", 1, "providers.'a b'", "letters, digits"),
    ("[providers.'']\nadapter = 'openai'", 1, "providers.''", "letters, digits"),
    ("[providers.\"a\\r\\nx: y\"]\nadapter = 'openai'", 1, r'providers."a\r\nx: y"', "letters, digits"),
    ("[cors]\norigins = ['https://a.example/']", 2, "cors.origins", "'https://a.example/' is no origin"),
    ("[cors]\norigins = ['*', 'a.example']", 2, "cors.origins", "'a.example' is no origin"),
    ("[cors]\norigins = ['https://*.a.example']", 2, "cors.origins", "no star"),
    ("[cors]\norigins = ['https://A.example']", 2, "cors.origins", "is no origin"),
    ("[models.a]\naliases = ['c']\n[models.b]\naliases = ['c']", 4, "models.b.aliases", "an alias of `a` already"),
    ("prot = 1", 1, "prot", "unknown key"),
    ("[server]\nprot = 1", 2, "server.prot", "did you mean `port`?"),
    ("[sever]\nport = 1", 1, "sever", "did you mean `server`?"),
    ("[provider.local]\nadapter = 'openai'", 1, "provider", "did you mean `providers`?"),
    ("[server]\npepper = 'x'", 2, "server.pepper", "did you mean `auth.pepper`?"),
    ("[cors]\nzzz = 1", 2, "cors.zzz", "here may stand `origins`, `max_age_s`"),
    ("zzz = 1", 1, "zzz", "at the top may stand `server`"),
    ("server.max-body-bytes = 1", 1, "server.max-body-bytes", "did you mean `body_bytes_max`?"),
    ("[server]\nport = '80'", 2, "server.port", "expected a whole number from 0 to 65535, got a string"),
    ("[server]\nport = 70000", 2, "server.port", "expected a whole number from 0 to 65535"),
    ("[server]\nport = 80.5", 2, "server.port", "expected a whole number from 0 to 65535"),
    ("[server]\nport = true", 2, "server.port", "got a boolean"),
    ("[server]\nport = {}", 2, "server.port", "got a table"),
    ("[server]\nport = [1]", 2, "server.port", "got a list"),
    ("[server]\nport = 2020-01-01", 2, "server.port", "got a date or time"),
    ("server = 1", 1, "server", "expected a table"),
    ("models = 1", 1, "models", "expected a table"),
    ("[server]\nhost = 1", 2, "server.host", "expected a string, got a whole number"),
    ("[server]\ngrace_s = 0", 2, "server.grace_s", "expected a number above 0"),
    ("[server]\ngrace_s = inf", 2, "server.grace_s", "expected a number above 0"),
    ("[server]\ngrace_s = nan", 2, "server.grace_s", "expected a number above 0"),
    ("[server]\ndevelopment = 1", 2, "server.development", "expected true or false, got a whole number"),
    ("[server]\nplane = 'both'", 2, "server.plane", "expected a string, one of `all`, `data`, `control`"),
    ("[cors]\norigins = 'x'", 2, "cors.origins", "expected a list of strings, got a string"),
    ("[cors]\norigins = ['x', 2]", 2, "cors.origins", "item 2"),
    ("[auth]\npepper = 1", 2, "auth.pepper", "expected a string, got a whole number"),
    ("[auth]\npepper = 'short'", 2, "auth.pepper", "is shorter than 16 bytes"),
    ("[database]\nurl = 'mysql://x'", 2, "database.url", "begins with postgresql://"),
    ("[database]\nurl = 'postgres://u:p/q@h/d'", 2, "database.url", "Percent-encode it"),
    ("[redis]\nurl = 'redis://u:p#q@h/0'", 2, "redis.url", "Percent-encode it"),
    ("[redis]\nurl = 'localhost:6379'", 2, "redis.url", "begins with redis://"),
    ("[upstream.timeouts]\nconect_s = 1", 2, "upstream.timeouts.conect_s", "did you mean `connect_s`?"),
    ("[providers.local]\nmodels = ['x']", 1, "providers.local.adapter", "is missing"),
    ("[providers.local]\nadapter = 3", 2, "providers.local.adapter", "expected a string"),
    ("[providers.x]\nadapter='a'\nbase_url='ftp://x'", 3, "providers.x.base_url", "http:// or https://"),
    ("[providers.x]\nadapter='a'\nbase_url='http://'", 3, "providers.x.base_url", "http:// or https://"),
    ("[providers.x]\nadapter='a'\nbase_url='http://h:99999'", 3, "providers.x.base_url", "http:// or https://"),
    ("[providers.x]\nadapter='a'\nbase_url='http://u:p@h'", 3, "providers.x.base_url", "use `api_key`"),
    ("[providers.x]\nadapter='a'\nmodels=['a*b']", 3, "providers.x.models", "one star, at its end"),
    ("[providers.x]\nadapter='a'\nmodels=['']", 3, "providers.x.models", "never empty"),
    ("[providers.x]\nadapter='a'\ntimeouts.idle = 3", 3, "providers.x.timeouts.idle", "did you mean `idle_s`?"),
    ("[models.'gpt-4.1']\nfre = true", 2, "models.'gpt-4.1'.fre", "did you mean `free`?"),
    ('[models."gpt-4.1"]\nfree = 1', 2, 'models."gpt-4.1".free', "expected true or false"),
    ("[models.x]\ninput_usd_per_mtok = -1", 2, "models.x.input_usd_per_mtok", "a number of at least 0"),
    ("[models.x.upstream]\nlocal = 1", 2, "models.x.upstream.local", "expected a string"),
    ("default_provider = 'ecko'", 1, "default_provider", "did you mean `echo`?"),
    ("default_provider = 'zzz'", 1, "default_provider", "configured are: echo"),
    ("default_provider='x'\n[providers.x]\nadapter='a'\nenabled=false", 1, "default_provider", "not enabled"),
    ("[auth]\npepper = 'env:NO_PEPPER'", 2, "auth.pepper", "environment variable NO_PEPPER is not set"),
    ("[auth]\npepper = 'env:EMPTY'", 2, "auth.pepper", "environment variable EMPTY is empty"),
    ("[auth]\npepper = 'file:gone'", 2, "auth.pepper", "can't be read (No such file or directory)"),
    ("[auth]\npepper = 'file:.'", 2, "auth.pepper", "can't be read (Is a directory)"),
    ('[auth]\npepper = "file:a\\u0000"', 2, "auth.pepper", "can't be read"),
    ("[server]\nport = 'env:WORD'", 2, "server.port", "expected a whole number from 0 to 65535"),
    ("[providers.x]\nadapter='a'\n[providers.x.deep]\nown = ['env:NO']", 4, "providers.x.deep.own", "NO is not set"),
]


@pytest.mark.parametrize(("text", "line", "key", "says"), MISTAKES, ids=[f"{each[2]}-{each[3]}" for each in MISTAKES])
def test_a_mistake_is_named_with_file_line_key_and_remedy(file, text, line, key, says):
    message = complaint(file, text, EMPTY="", WORD="word")

    (only,) = message.splitlines()
    assert only.startswith(f"{file}:{line}: {key}: ")
    assert says in only


def test_every_mistake_is_reported_in_the_order_of_the_file(file):
    message = complaint(file, "[server]\nprot = 1\nport = -1\n[providers.x]\nbase_url = ''\n[log]\nlevel = 3\n")

    assert [int(line.split(":")[1]) for line in message.splitlines()] == [2, 3, 4, 7]


@pytest.mark.parametrize(
    ("data", "place", "says"),
    [
        (b"a = 1\nb = \n", ":2, column 5", "Invalid value"),
        (b"a = 1\na = 2\n", ":2, column 6", "Cannot overwrite a value"),
        (b"a = '''\n\n", ":3", "Expected"),
        (b"a = 1\nb = '\xff'\n", ":2", "is not UTF-8 text"),
        (b"a = " + b"[" * 5000, "", "nested too deeply"),
    ],
)
def test_a_text_that_is_not_toml_is_named_by_its_line(file, data, place, says):
    file.write_bytes(data)

    with pytest.raises(ConfigError) as caught:
        load(str(file), environ={})

    assert str(caught.value).startswith(f"{file}{place}: ")
    assert says in str(caught.value)


def test_a_file_is_not_read_without_end(file):
    file.write_bytes(b"#" * (FILE_BYTES_MAX + 1))

    with pytest.raises(ConfigError, match="is larger than"):
        load(str(file), environ={})


# -- which file ----------------------------------------------------------------------------------------------


def test_without_any_file_the_defaults_hold():
    loaded = load(environ={})

    assert loaded.files == ()
    assert loaded.settings.server.port == 8080


def test_the_default_file_is_read_where_there_is_one(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/gateway.toml").write_text("[server]\nport = 1")

    loaded = load(environ={})

    assert loaded.settings.server.port == 1
    assert loaded.files == ("config/gateway.toml",)


def test_the_variable_names_a_file_or_a_directory(file):
    file.write_text("[server]\nport = 1")

    for name in (file, file.parent):
        assert load(environ={"GATEWAY_CONFIG": str(name)}).settings.server.port == 1


def test_the_argument_wins_over_the_variable(file):
    file.write_text("[server]\nport = 1")

    assert load(str(file), environ={"GATEWAY_CONFIG": "/nowhere"}).settings.server.port == 1


def test_a_file_that_was_asked_for_must_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"--config: there is no file .*gone\.toml"):
        load("gone.toml", environ={})
    with pytest.raises(ConfigError, match=r"GATEWAY_CONFIG: there is no file .*gateway\.toml"):
        load(environ={"GATEWAY_CONFIG": str(tmp_path)})


def test_a_byte_order_mark_is_no_mistake(file):
    file.write_bytes(b"\xef\xbb\xbf[server]\r\nport = 1\r\n")

    assert load(str(file), environ={}).settings.server.port == 1


# -- references ----------------------------------------------------------------------------------------------


def test_values_may_stand_in_variables_and_files(file, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/pepper").write_text("a pepper from a file\n")
    file.write_text(
        """
        [server]
        port = "env:PORT"
        [auth]
        pepper = "file:secrets/pepper"
        [providers.local]
        adapter = "openai"
        api_key = "env:LOCAL_KEY"
        models = ["env:MODEL", "other"]
        headers = { x-team = "env:TEAM" }
        """
    )
    environ = {"PORT": "81", "LOCAL_KEY": SECRET, "MODEL": "small", "TEAM": "blue"}

    settings = load(str(file), environ=environ).settings

    local = settings.providers["local"]
    assert settings.server.port == 81
    assert settings.auth.pepper.reveal() == "a pepper from a file"
    assert local.api_key.reveal() == SECRET
    assert local.models == ("small", "other")
    assert local.extra == {"headers": {"x-team": "blue"}}


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"\xff", "is not UTF-8 text"), (b" \n", "is empty"), (b"x" * (REFERENCE_BYTES_MAX + 1), "is larger than")],
)
def test_a_secret_file_that_holds_no_secret_is_refused(file, tmp_path, data, says):
    (tmp_path / "pepper").write_bytes(data)

    assert says in complaint(file, "[auth]\npepper = 'file:pepper'")


def test_an_empty_secret_is_none(file):
    file.write_text("[auth]\npepper = ''")

    assert load(str(file), environ={}).settings.auth.pepper is None


# -- the environment and the command line --------------------------------------------------------------------


def test_the_environment_overrides_the_file_and_arguments_override_both(file):
    file.write_text("[server]\nport = 1\nhost = '127.0.0.2'\nworkers = 3")
    environ = {"GATEWAY__SERVER__PORT": "2", "GATEWAY__SERVER__WORKERS": "4"}

    server = load(str(file), environ=environ, overrides={"server.port": 5, "server.host": None}).settings.server

    assert (server.port, server.host, server.workers) == (5, "127.0.0.2", 4)


@pytest.mark.parametrize(
    ("name", "text", "path", "value"),
    [
        ("SERVER__PORT", "9000", ("server", "port"), 9000),
        ("SERVER__GRACE_S", "1.5", ("server", "grace_s"), 1.5),
        ("SERVER__DEVELOPMENT", "true", ("server", "development"), True),
        ("METRICS__ENABLED", "0", ("metrics", "enabled"), False),
        ("CORS__ORIGINS", "https://a, https://b", ("cors", "origins"), ("https://a", "https://b")),
        ("CORS__ORIGINS", '["https://a"]', ("cors", "origins"), ("https://a",)),
        ("CORS__ORIGINS", "", ("cors", "origins"), ()),
        ("UPSTREAM__TIMEOUTS__IDLE_S", "7", ("upstream", "timeouts", "idle_s"), 7.0),
        ("LOG__LEVEL", "debug", ("log", "level"), "debug"),
        ("AUTH__PEPPER", "", ("auth", "pepper"), None),
        ("DEFAULT_PROVIDER", "echo", ("default_provider",), "echo"),
    ],
)
def test_a_variable_sets_any_setting(name, text, path, value):
    found = load(environ={f"GATEWAY__{name}": text}).settings
    for part in path:
        found = getattr(found, part)

    assert found == value


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"GATEWAY__SERVER__PORT": "x"}, "GATEWAY__SERVER__PORT: server.port: expected a whole number"),
        ({"GATEWAY__SERVER__PORT": ""}, "GATEWAY__SERVER__PORT: server.port: expected a whole number"),
        ({"GATEWAY__SERVER__PROT": "1"}, "did you mean `GATEWAY__SERVER__PORT`?"),
        ({"GATEWAY__SERVER": "1"}, "GATEWAY__SERVER: server: expected a table"),
        ({"GATEWAY__SERVER__PORT__X": "1"}, "server.port: expected a whole number from 0 to 65535, got a table"),
        ({"GATEWAY__METRICS__ENABLED": "maybe"}, "metrics.enabled: expected true or false"),
        ({"GATEWAY__CORS__ORIGINS": "[1"}, "cors.origins: expected a list of strings"),
        ({"GATEWAY__MODELS__GPT_5__FREE": "1"}, "no file has a row for this model"),
        ({"GATEWAY__": "1"}, "unknown key"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL: database.url: expected a URL"),
        ({"GATEWAY__AUTH__PEPPER": "env:NOPE"}, "GATEWAY__AUTH__PEPPER: auth.pepper: the environment variable NOPE"),
    ],
)
def test_a_wrong_variable_is_named(variables, says):
    with pytest.raises(InvalidConfig) as caught:
        load(environ=variables)

    assert says in str(caught.value)


def test_a_wrong_argument_is_named():
    with pytest.raises(InvalidConfig, match=r"^--port: server\.port: expected a whole number from 0 to 65535$"):
        load(environ={}, overrides={"server.port": 70000})


def test_a_variable_finds_the_row_it_can_only_nearly_spell(file):
    file.write_text('[models."gpt-4.1"]\n[providers.my-own]\nadapter = "openai"\n')
    environ = {"GATEWAY__MODELS__GPT_4_1__FREE": "true", "GATEWAY__PROVIDERS__MY_OWN__BASE_URL": "http://h"}

    settings = load(str(file), environ=environ).settings

    assert settings.models["gpt-4.1"].free
    assert settings.providers["my-own"].base_url == "http://h"


def test_a_variable_that_may_mean_two_rows_is_refused(file):
    assert "may mean `a-b` and `a.b`" in complaint(
        file, '[models."a-b"]\n[models."a.b"]\n', GATEWAY__MODELS__A_B__FREE="1"
    )


def test_store_urls_fill_in_only_what_the_file_leaves_out(file):
    environ = {"DATABASE_URL": "postgresql://env", "REDIS_URL": "redis://env"}
    file.write_text("[database]\nurl = 'postgresql://file'")

    loaded = load(str(file), environ=environ)

    assert loaded.settings.database.url.reveal() == "postgresql://file"
    assert loaded.settings.redis.url.reveal() == "redis://env"
    assert loaded.notes == ("redis.url is taken from REDIS_URL",)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:p%2Fw@a:5432,b:5433/gateway?target_session_attrs=primary",
        "postgresql:///gateway?host=/run/postgresql",
        "postgresql://postgres@/gateway?host=/tmp/x",
        "postgres://[::1]:5432/gateway",
    ],
)
def test_all_forms_of_store_urls_are_taken(url):
    assert load(environ={"DATABASE_URL": url}).settings.database.url.reveal() == url


def test_an_empty_store_url_counts_as_none():
    assert load(environ={"DATABASE_URL": "", "REDIS_URL": ""}).settings.database.url is None


def test_proxy_variables_are_found_in_any_case():
    environ = {"HTTPS_PROXY": "http://a", "no_proxy": "b", "PATH": "/bin"}

    assert proxy_variables(environ) == {"HTTPS_PROXY": "http://a", "no_proxy": "b"}


# -- providers -----------------------------------------------------------------------------------------------


def test_a_usual_variable_enables_its_provider():
    loaded = load(environ={"OPENAI_API_KEY": SECRET, "GROQ_API_KEY": ""}, known=KNOWN)

    openai = loaded.settings.providers["openai"]
    assert (openai.adapter, openai.base_url, openai.models) == ("openai", "https://api.openai.com/v1", ("*",))
    assert openai.api_key.reveal() == SECRET
    assert "groq" not in loaded.settings.providers
    assert loaded.notes == ("provider openai is enabled by OPENAI_API_KEY",)


def test_a_provider_may_have_several_usual_variables():
    known = {"openai": msgspec.structs.replace(KNOWN["openai"], other_variables=("OAI_KEY", "OAI_TOKEN"))}

    def key(**variables: str) -> str:
        api_key = load(environ=variables, known=known).settings.providers["openai"].api_key
        assert api_key is not None
        return api_key.reveal()

    assert key(OAI_TOKEN="c", OAI_KEY="b") == "b"
    assert key(OAI_TOKEN="c", OPENAI_API_KEY="a", OAI_KEY="b") == "a"


def test_usual_variables_can_be_ignored():
    environ = {"OPENAI_API_KEY": SECRET, "GATEWAY__PROVIDERS_FROM_ENVIRONMENT": "false"}

    assert "openai" not in load(environ=environ, known=KNOWN).settings.providers


def test_a_file_lies_over_what_is_known_of_a_provider(file):
    file.write_text("[providers.openai]\nmodels = ['gpt-*']\n[providers.groq]\nenabled = false\napi_key = ''\n")
    environ = {"OPENAI_API_KEY": SECRET, "GROQ_API_KEY": SECRET}

    providers = load(str(file), environ=environ, known=KNOWN).settings.providers

    assert providers["openai"].models == ("gpt-*",)
    assert providers["openai"].base_url == "https://api.openai.com/v1"
    assert providers["openai"].api_key.reveal() == SECRET
    assert not providers["groq"].enabled
    assert providers["groq"].api_key is None


def test_a_row_gives_another_name_to_a_known_provider(file):
    file.write_text("[providers.fast]\nrow = 'groq'\n")

    fast = load(str(file), environ={"GROQ_API_KEY": SECRET}, known=KNOWN).settings.providers["fast"]

    assert (fast.adapter, fast.base_url) == ("compatible", "https://api.groq.com/openai/v1")
    assert fast.api_key.reveal() == SECRET
    assert fast.extra == {"row": "groq"}


def test_another_adapter_is_not_given_the_known_address(file):
    file.write_text("[providers.openai]\nadapter = 'echo'\n")

    assert load(str(file), environ={}, known=KNOWN).settings.providers["openai"].base_url == ""


def test_echo_answers_everything_only_while_it_is_alone(file):
    alone = load(environ={}).settings.providers["echo"]
    beside = load(environ={"OPENAI_API_KEY": SECRET}, known=KNOWN).settings.providers["echo"]

    assert alone.models == ("echo", "echo-*", "*")
    assert beside.models == ("echo", "echo-*")


def test_echo_is_the_operators_where_the_file_has_it(file):
    file.write_text("[providers.echo]\nadapter = 'echo'\nenabled = false\n")

    assert not load(str(file), environ={}).settings.providers["echo"].enabled


def test_timeouts_of_a_provider_inherit_what_they_leave_out(file):
    file.write_text(
        "[upstream.timeouts]\nidle_s = 7\n[providers.x]\nadapter = 'a'\n[providers.x.timeouts]\nconnect_s = 1\n"
    )

    assert load(str(file), environ={}).settings.providers["x"].timeouts == Timeouts(idle_s=7.0, connect_s=1.0)


def test_an_upstream_name_for_a_provider_that_is_not_there_is_a_warning(file):
    file.write_text("[models.x]\nupstream = { gone = 'y' }\n")

    assert load(str(file), environ={}).warnings == ("models.x.upstream.gone: there is no provider of that name",)


# -- production ----------------------------------------------------------------------------------------------


def test_production_refuses_to_start_on_what_development_makes_up():
    with pytest.raises(InvalidConfig) as caught:
        load(environ={"GATEWAY__SERVER__DEVELOPMENT": "false"})

    message = str(caught.value)
    assert re.search(r"auth\.pepper: is required outside development; .*openssl rand -hex 32", message)
    assert re.search(r"server\.host: must be set .*0\.0\.0\.0", message)


def test_production_starts_with_what_it_needs():
    environ = {
        "GATEWAY__SERVER__DEVELOPMENT": "false",
        "GATEWAY__SERVER__HOST": "0.0.0.0",
        "GATEWAY__AUTH__PEPPER": SECRET,
        "DATABASE_URL": "postgresql://db/gateway",
        "REDIS_URL": "rediss://cache:6380/0",
    }

    loaded = load(environ=environ)

    assert loaded.warnings == ()
    assert loaded.settings.providers == {}


def test_development_in_reach_of_other_machines_is_a_warning():
    (warning,) = load(environ={}, overrides={"server.host": "0.0.0.0"}).warnings

    assert "development mode listens on 0.0.0.0" in warning


# -- what was loaded -----------------------------------------------------------------------------------------


def test_a_key_can_be_located(file):
    file.write_text("[server]\nport = 1\n[providers.local]\nadapter = 'a'\nwieght = 1\nheaders = { a = 1 }\n")

    loaded = load(str(file), environ={})

    assert loaded.locate("server.port") == (str(file), 2)
    assert loaded.locate("providers.local.wieght") == (str(file), 5)
    assert loaded.locate("providers.local.base_url") == (str(file), 3)
    assert loaded.locate("log.level") is None


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("providers.local.wieght", 5),
        ("providers.local.base_url", 3),
        ("providers.local.headers.a", 6),
    ],
)
def test_what_an_adapter_refuses_is_located(file, key, line):
    file.write_text("[server]\nport = 1\n[providers.local]\nadapter = 'a'\nwieght = 1\nheaders = { a = 1 }\n")

    loaded = load(str(file), environ={})

    assert loaded.explain(ConfigError(f"{key}: is wrong", param=key)) == f"{file}:{line}: {key}: is wrong"
    assert loaded.explain(ConfigError("two packages claim it")) == "two packages claim it"
    assert loaded.explain(ConfigError("not there", param="providers.env.x")) == "not there"


def test_reload_looks_again(file):
    file.write_text("[server]\nport = 1")
    loaded = load(str(file), environ={}, overrides={"server.workers": 2})

    file.write_text("[server]\nport = 2")
    server = loaded.reload().settings.server

    assert (server.port, server.workers) == (2, 2)


# -- secrets -------------------------------------------------------------------------------------------------


def test_no_secret_shows_in_what_was_loaded(file):
    file.write_text(
        f"""
        [auth]
        pepper = "{SECRET}"
        [database]
        url = "postgresql://user:{SECRET}@db/gateway"
        [providers.x]
        adapter = "a"
        api_key = "{SECRET}"
        aws_secret = "{SECRET}"
        headers = {{ authorization = "{SECRET}" }}
        """
    )

    loaded = load(str(file), environ={"GATEWAY__PROVIDERS__X__TOKEN": SECRET, "REDIS_URL": f"redis://:{SECRET}@h"})

    for shown in (repr(loaded), str(loaded.settings), f"{loaded.settings.providers['x'].extra}", str(loaded.notes)):
        assert SECRET not in shown
    assert loaded.settings.providers["x"].extra["aws_secret"] == SECRET


@pytest.mark.parametrize(
    "text",
    [
        f"[auth]\npepper = ['{SECRET}']",
        f"[auth]\npepper = 'env:{SECRET}'",
        f"[server]\nport = '{SECRET}'",
        f"[server]\nplane = '{SECRET}'",
        "[server]\nplane = 'env:KEY'",
        "[server]\nport = 'env:KEY'",
        "[cors]\norigins = ['env:KEY', 1]",
        f"[database]\nurl = '{SECRET}'",
        f"[providers.x]\nadapter = 'a'\nbase_url = 'http://me:{SECRET}@host'",
        f"[providers.x]\nadapter = 'a'\nbase_url = 'http://[{SECRET}'",
        f"[auth]\npepper = '{SECRET}",
        f"[auth]\npepper = {SECRET}",
        f"[auth]\npepper = '{SECRET}'\npepper = '{SECRET}'",
    ],
)
def test_no_secret_shows_in_an_error(file, text):
    file.write_text(text)

    with pytest.raises(ConfigError) as caught:
        load(str(file), environ={"KEY": SECRET})

    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in shown


# -- several offers ------------------------------------------------------------------------------------------


def test_several_keys_are_secrets_from_wherever_they_come(file):
    file.write_text('[providers.p]\nadapter = "openai"\napi_keys = ["env:ONE", "two"]\nbase_url = "http://h/v1"')

    settings = load(str(file), environ={"ONE": "one"}).settings

    assert [key.reveal() for key in settings.providers["p"].api_keys] == ["one", "two"]
    assert "two" not in repr(settings)


def test_keys_of_ones_own_leave_the_usual_variable_alone(file):
    known = {
        "openai": KnownProvider(name="openai", title="", adapter="openai", variable="USUAL", base_url="http://h")
    }
    file.write_text('[providers.openai]\napi_keys = ["mine"]')

    settings = load(str(file), environ={"USUAL": "theirs"}, known=known).settings

    assert settings.providers["openai"].api_key is None


def test_a_fallback_nobody_serves_is_warned_of(file):
    file.write_text(
        '[providers.p]\nadapter = "openai"\nbase_url = "http://h/v1"\nmodels = ["m", "n-*"]\n'
        '[models.m]\nfallbacks = ["n-1", "gone"]\ncontext_fallbacks = ["nick"]\nweights = { q = 2 }\n'
        'shadow = "dim"\nconditions = [{ when = { x = true }, model = "away", providers = ["p", "q"] }]\n'
        '[models.n-1]\naliases = ["nick"]'
    )

    warnings = load(str(file), environ={}).warnings

    assert [warning for warning in warnings if "no provider serves" in warning] == [
        "models.m.fallbacks: no provider serves `gone`",
        "models.m.shadow: no provider serves `dim`",
        "models.m.conditions: no provider serves `away`",
    ]
    assert "models.m.conditions: there is no provider `q`" in warnings
    assert any(warning.startswith("models.m.weights.q:") for warning in warnings)


# -- models.toml -----------------------------------------------------------------------------------------------------


def test_models_may_stand_in_a_file_of_their_own(tmp_path):
    (tmp_path / "gateway.toml").write_text("[server]\nport = 7000\n")
    (tmp_path / "models.toml").write_text("[models.m]\nfree = true\ncontext_tokens = 5\n")

    loaded = load(str(tmp_path), environ={})

    assert loaded.settings.models == {"m": Model(free=True, context_tokens=5)}
    assert str(tmp_path / "models.toml") in loaded.files


@pytest.mark.parametrize(
    ("main", "models", "says"),
    [
        ("", "[server]\nport = 1\n", "models.toml:1: server: only [models.*] may stand in this file"),
        ("[models.a]\n", "[models.b]\n", "models.toml:1: models: the main configuration file has [models.*] as well"),
        ("", "[models.a]\nfre = true\n", "models.toml:2: models.a.fre: unknown key"),
    ],
)
def test_what_is_wrong_in_the_file_of_models_is_named_by_its_place(tmp_path, main, models, says):
    (tmp_path / "gateway.toml").write_text(main)
    (tmp_path / "models.toml").write_text(models)

    with pytest.raises(InvalidConfig) as raised:
        load(str(tmp_path), environ={})

    assert any(says in str(problem) for problem in raised.value.problems), raised.value.problems


def test_origins_are_taken_as_browsers_write_them(file):
    origins = ["*", "null", "https://a.example", "http://localhost:3000", "http://[::1]:3000", "app://obsidian.md"]
    file.write_text(f"[cors]\norigins = {origins}")

    assert load(str(file), environ={}).settings.cors.origins == tuple(origins)


def test_a_variable_with_too_few_underscores_is_warned_of():
    known = {"GATEWAY_CONFIG": "", "GATEWAY_KEY": "k", "GATEWAY_SERVICE_PORT": "80", "GATEWAY__SERVER__PORT": "81"}
    assert load(environ=known).warnings == ()

    loaded = load(environ={"GATEWAY_SERVER_PORT": "81", **known})
    (warning,) = loaded.warnings
    assert warning.startswith("GATEWAY_SERVER_PORT is not read")


def test_a_provider_of_which_nothing_is_asked_is_warned_of(file):
    rows = "[providers.{}]\nadapter = 'openai'\nbase_url = 'http://a/v1'\nmodels = []\n{}\n"
    file.write_text(rows.format("a", "") + rows.format("b", "enabled = false"))

    (warning,) = load(str(file), environ={}).warnings
    assert warning.startswith("providers.a.models: is empty")
