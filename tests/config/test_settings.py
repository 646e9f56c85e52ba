from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from config.settings import Settings, SettingsError, environment, get_settings, settings_variables

SECRET = "hunter2-canary"


@pytest.fixture(autouse=True)
def _clean(clean_environment: pytest.MonkeyPatch) -> None:
    pass


def settings_from(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"PROMPTMILL_{name}", value)
    return get_settings()


def refusal_of(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        settings_from(monkeypatch, variables)
    return str(caught.value)


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = get_settings()
    assert settings.broker == settings.results == "redis://localhost:6379/0"
    assert (settings.concurrency, settings.result_expires_s, settings.catalog) == (100, 86_400, None)
    assert (settings.retry.max_attempts, settings.http.limit, settings.log.json) == (4, 0, False)


def test_each_variable_reaches_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_from(
        monkeypatch,
        {
            "CONCURRENCY": " 7 ",
            "RETRY__MAX_ATTEMPTS": "2",
            "HTTP__PROXY": "http://proxy:3128",
            "HTTP__FORCE_CLOSE": "true",
            "LOG__JSON": "1",
            "LOG__LEVEL": "debug",
            "CATALOG": "~/models.toml",
            "LIMIT__TENANT_WEIGHTS": '{"Web": 3, "batch": 0.5}',
        },
    )
    assert settings.limit.tenant_weights == {"Web": 3.0, "batch": 0.5}
    assert (settings.concurrency, settings.retry.max_attempts) == (7, 2)
    assert (settings.http.proxy, settings.http.force_close) == ("http://proxy:3128", True)
    assert (settings.log.json, settings.log.level) == (True, "DEBUG")
    assert settings.catalog == Path.home() / "models.toml"


def test_queue_and_results_can_live_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_from(
        monkeypatch,
        {"REDIS_URL": "redis://a", "BROKER_URL": "rediss://b:6380/1", "RESULT_URL": "unix:///run/redis.sock"},
    )
    assert (settings.broker, settings.results) == ("rediss://b:6380/1", "unix:///run/redis.sock")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_from(monkeypatch, {"BROKER_URL": "", "CONCURRENCY": ""})
    assert (settings.broker, settings.concurrency) == ("redis://localhost:6379/0", 100)


def test_the_environment_stands_over_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("PROMPTMILL_CONCURRENCY=5\nPROMPTMILL_RETRY__BASE_S=2\nSOME_API_KEY=sk-a$b\n")
    settings = settings_from(monkeypatch, {"CONCURRENCY": "6"})
    assert (settings.concurrency, settings.retry.base_s) == (6, 2.0)
    assert environment()["SOME_API_KEY"] == "sk-a$b"
    assert environment()["PROMPTMILL_CONCURRENCY"] == "6"


def test_settings_are_read_once_until_the_cache_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_settings()
    monkeypatch.setenv("PROMPTMILL_CONCURRENCY", "9")
    assert get_settings() is first
    get_settings.cache_clear()
    assert get_settings().concurrency == 9


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("CONCURRENCY", "many", "valid integer"),
        ("CONCURRENCY", "0", "greater than 0"),
        ("RESULT_EXPIRES_S", "-1", "greater than 0"),
        ("RETRY__BASE_S", "nan", "finite"),
        ("RETRY__CAP_S", "0.5", "must not be below the base_s"),
        ("HTTP__LIMIT", "-1", "greater than or equal to 0"),
        ("HTTP__PROXY", "socks5://proxy", "begins with http:// or https://"),
        ("HTTP__PROXY", "http://", "name the host"),
        ("LOG__LEVEL", "LOUD", "'DEBUG'"),
        ("LOG__JSON", "maybe", "boolean"),
        ("REDIS_URL", "localhost:6379", "begins with redis://"),
        ("REDIS_URL", "redis:///0", "name a host"),
        ("REDIS_URL", "redis://host:99999/0", "valid host and port"),
        ("REDIS_URL", "redis://host/zero", "number of a Redis database"),
        ("REDIS_URL", "redis://ho st/0", "white space"),
        ("REDIS_URL", "unix://", "the socket's path"),
        ("REDIS_URL", "sentinel://host:26379/0", "name the master"),
        ("REDIS_URL", "sentinel://host:26379,host2:26379/0?master_name=m", "valid host and port"),
        ("FLOWER_URL", "127.0.0.1:5555", "begins with http:// or https://"),
        ("BROKER_URL", "amqp://host", "begins with redis://"),
        ("KEY_PREFIX", "{tag}", "braces"),
        ("LIMIT__TENANT_WEIGHTS", "web=3", "a JSON object"),
        ("LIMIT__TENANT_WEIGHTS", '{"web": 0}', "greater than 0"),
    ],
)
def test_a_bad_value_is_named_with_its_problem_and_an_example(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    text = refusal_of(monkeypatch, {name: value})
    assert text.count("\n") == 1, "one problem, one line"
    assert f"PROMPTMILL_{name}: " in text
    assert problem in text
    assert f"For example: PROMPTMILL_{name}=" in text


def test_every_problem_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal_of(monkeypatch, {"CONCURRENCY": "x", "HTTP__LIMIT": "x", "LOG__LEVEL": "x"})
    assert all(name in text for name in ("CONCURRENCY", "HTTP__LIMIT", "LOG__LEVEL"))


def test_base_above_the_default_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "PROMPTMILL_RETRY__CAP_S: must not be below" in refusal_of(monkeypatch, {"RETRY__BASE_S": "100"})


@pytest.mark.parametrize("value", ["5", "[5]", "{"])
def test_a_group_that_is_no_object_points_to_its_parts(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    text = refusal_of(monkeypatch, {"RETRY": value})
    assert "PROMPTMILL_RETRY: must be a JSON object" in text
    assert "PROMPTMILL_RETRY__MAX_ATTEMPTS" in text


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CONCURENCY", "CONCURRENCY"),
        ("LOG_LEVEL", "LOG__LEVEL"),
        ("RESULTS_URL", "RESULT_URL"),
        ("RETRY__MAXATTEMPTS", "RETRY__MAX_ATTEMPTS"),
        ("HTTP__KEEP_ALIVE_S", "HTTP__KEEPALIVE_S"),
    ],
)
def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, meant: str) -> None:
    text = refusal_of(monkeypatch, {name: "1"})
    assert f"PROMPTMILL_{name}: there is no such setting. Did you mean PROMPTMILL_{meant}?" in text


def test_variables_that_an_orchestrator_adds_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    added = ("PORT", "PORT_6379_TCP", "SERVICE_HOST", "REDIS_PORT", "REDIS_SERVICE_HOST", "REDIS_PORT_6379_TCP_ADDR")
    assert settings_from(monkeypatch, dict.fromkeys(added, "tcp://10.0.0.1:6379")).concurrency == 100


def test_an_unreadable_dotenv_is_a_settings_error() -> None:
    Path(".env").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"\.env: can't be read as UTF-8"):
        get_settings()


@pytest.mark.parametrize(
    "variables",
    [
        {"REDIS_URL": f"redis://:{SECRET}@host:port/0"},
        {"REDIS_URL": f"redis://:{SECRET}/x@host/0"},
        {"REDIS_URL": f"redis://:{SECRET}#x@host/0"},
        {"REDIS_URL": f"sentinel://host/0?master_name=m&sentinel_pasword={SECRET}"},
        {"REDIS_URL": f"sentinel://:{SECRET}@host;sentinel://:other@host2/0?master_name=m"},
        {"BROKER_URL": f"amqp://user:{SECRET}@host"},
        {"HTTP__PROXY": f"ftp://user:{SECRET}@host"},
        {"HTTP__PROXY": f"http://user:{SECRET}@[host"},
        {"HTTP": f'{{"proxy": "{SECRET}'},
        {"HTTP": f'{{"proxy": "{SECRET}"}}'},
        {"HTTP__PORXY": f"http://user:{SECRET}@host"},
        {"CONCURRENCY": SECRET},
    ],
)
def test_a_refusal_never_repeats_a_value(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    assert SECRET not in refusal_of(monkeypatch, variables)


def test_passwords_stay_out_of_the_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"redis://:{SECRET}@host/0"
    proxy = f"http://u:{SECRET}@proxy"
    settings = settings_from(
        monkeypatch, {"REDIS_URL": url, "BROKER_URL": url, "RESULT_URL": url, "HTTP__PROXY": proxy}
    )
    assert settings.broker == url
    assert settings.http.proxy == proxy
    assert SECRET not in repr(settings) + str(settings)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        get_settings().concurrency = 1


def test_every_example_in_an_error_is_a_value_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, field in settings_variables().items():
        for example in field.examples or ():
            monkeypatch.setenv(variable, example)
    get_settings()
