from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from config.api_keys import KeyProblem, MissingKey, UnusableKey, fingerprint, read_keys
from config.catalog import Provider, load_catalog

# On a fresh machine hypothesis spends a second on tables of its own, which its time limits would put down to us.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

GOOD = "sk-proj-Qm3T_8vYwZr-41bLkXc9dEfGh"
KEY_CHARACTERS = string.ascii_letters + string.digits


def provider(*variables: str, key_prefix: str | None = "sk-") -> Provider:
    return Provider(name="openai", base_url="https://api.test/v1", api_keys=variables, key_prefix=key_prefix)


def values(keys: list[SecretStr]) -> list[str]:
    return [key.get_secret_value() for key in keys]


def refusal_of(value: str, *, key_prefix: str | None = "sk-") -> str:
    with pytest.raises(UnusableKey) as caught:
        read_keys(provider("THE_KEY", key_prefix=key_prefix), {"THE_KEY": value})
    assert caught.value.variable == "THE_KEY"
    return str(caught.value)


@pytest.mark.covers("catalog", "providers.api_keys")
def test_keys_come_in_the_catalogues_order_and_as_secrets() -> None:
    keys = read_keys(provider("B", "A"), {"A": "sk-one1", "B": "sk-two2", "C": "sk-three3"})
    assert values(keys) == ["sk-two2", "sk-one1"]
    assert "two2" not in repr(keys) + str(keys[0])


def test_a_provider_without_keys_needs_none() -> None:
    assert read_keys(provider(), {}) == []


@pytest.mark.parametrize("template", ["{}\n", "  {}\t", '"{}"', "'{}'", ' "{}" \r\n', '" {} "'])
def test_white_space_and_quotes_around_a_key_are_taken_off(template: str) -> None:
    assert values(read_keys(provider("K"), {"K": template.format(GOOD)})) == [GOOD]


@pytest.mark.parametrize("environ", [{}, {"K": ""}, {"K": " \n"}, {"K": '""'}])
def test_a_key_that_is_not_set_is_missing(environ: Mapping[str, str]) -> None:
    with pytest.raises(MissingKey, match=r"^K is not set\. Put a key of provider 'openai' into it") as caught:
        read_keys(provider("K"), environ)
    assert caught.value.variable == "K"


def test_each_variable_that_is_named_must_be_set() -> None:
    with pytest.raises(MissingKey, match=r"^SECOND is not set"):
        read_keys(provider("FIRST", "SECOND"), {"FIRST": GOOD})


@pytest.mark.parametrize(
    "value",
    [
        "sk-your-key",
        "YOUR_API_KEY",
        "your-openai-api-key-here",
        "yourapikey",
        "YOUR_HOLYSHEEP_API_KEY",
        "changeme",
        "change-me",
        "CHANGE_ME",
        "sk-changeme",
        "sk-xxxx",
        "sk-xxxx-xxxx",
        "sk-proj-xxxxxxxxxxxxxxxxxxxx",
        "sk-abcdxxxxxxxxxxxx",
        "sk-********",
        "<key>",
        "<your key>",
        "sk-<key>",
        "...",
        "sk-...",
        "sk-…",
        "${OPENAI_API_KEY}",
        "$OPENAI_API_KEY",
        "$(cat key)",
        "{{ openai_key }}",
        "OPENAI_API_KEY",
        "api_key_here",
        "placeholder",
        "sk-",
        "insert-your-key",
    ],
)
@pytest.mark.parametrize("key_prefix", ["sk-", None])
def test_a_placeholder_is_no_key(value: str, key_prefix: str | None) -> None:
    text = refusal_of(value, key_prefix=key_prefix)
    assert "THE_KEY holds a placeholder, not a key." in text
    assert "start again" in text


@pytest.mark.covers("catalog", "providers.key_prefix")
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (f"Bearer {GOOD}", "begins with 'Bearer'"),
        (f"bearer:{GOOD}", "begins with 'Bearer'"),
        (f"{GOOD} {GOOD}", "white space"),
        (f"{GOOD}\n{GOOD}", "white space"),
        (f"{GOOD}\x00", "control characters"),
        (f"{GOOD}\u200b", "letters that no key has"),
        (f"{GOOD}ы", "letters that no key has"),
        ("pk-Qm3T8vYwZr", "does not begin with 'sk-'"),
        (f'"{GOOD}', "does not begin with 'sk-'"),
    ],
)
def test_a_malformed_key_is_told_what_is_wrong(value: str, problem: str) -> None:
    assert problem in refusal_of(value)


def test_the_same_key_twice_is_refused() -> None:
    with pytest.raises(UnusableKey, match=r"^B holds the same key as A,") as caught:
        read_keys(provider("A", "B"), {"A": GOOD, "B": f"{GOOD}\n"})
    assert caught.value.variable == "B"


def test_without_an_own_environment_process_and_dotenv_are_read(
    clean_environment: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("IN_FILE=sk-file1\nIN_BOTH=sk-file2\n")
    clean_environment.setenv("IN_BOTH", "sk-process")
    assert values(read_keys(provider("IN_FILE", "IN_BOTH"))) == ["sk-file1", "sk-process"]


def test_keys_that_local_servers_are_used_to_are_accepted() -> None:
    for key in ("EMPTY", "sk-1234", "test", "my-secret"):
        assert values(read_keys(provider("K", key_prefix=None), {"K": key})) == [key]


@untimed
@given(st.text(KEY_CHARACTERS, min_size=20, max_size=160))
def test_a_random_key_is_accepted_as_it_is(body: str) -> None:
    # A run of x, or nothing but one letter, is what documentation prints.
    if re.search("x{8}", body, re.IGNORECASE) or len(set(body.lower())) < 2:
        return
    assert values(read_keys(provider("K"), {"K": f"sk-{body}"})) == [f"sk-{body}"]


@untimed
@given(st.text(min_size=1))
def test_whatever_a_variable_holds_its_refusal_never_repeats_it(value: str) -> None:
    canary = f"canary{value}canary"
    try:
        keys = read_keys(provider("THE_KEY"), {"THE_KEY": canary})
    except KeyProblem as problem:
        assert "canary" not in str(problem)
        assert "canary" not in repr(problem)
    else:
        pytest.fail(f"{keys} lacks the prefix and was accepted")


@untimed
@given(st.text(KEY_CHARACTERS, min_size=1), st.text(KEY_CHARACTERS, min_size=1))
def test_a_fingerprint_is_short_and_tells_keys_apart(one: str, other: str) -> None:
    assert re.fullmatch("[0-9a-f]{8}", fingerprint(SecretStr(one)))
    assert (fingerprint(SecretStr(one)) == fingerprint(SecretStr(other))) == (one == other)


def test_the_preset_of_openai_knows_what_its_keys_begin_with() -> None:
    with pytest.raises(UnusableKey, match="does not begin with 'sk-'"):
        read_keys(load_catalog().providers["openai"], {"OPENAI_API_KEY": "hs-Qm3T8vYwZr"})
