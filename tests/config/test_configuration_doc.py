"""docs/reference/configuration.md and .env.example name every setting and key, with the defaults that hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from dotenv import dotenv_values
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from config.catalog import Limits, Model, Price, Provider, Route, Timeout, When, load_catalog
from config.settings import get_settings, settings_variables

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")

# What the reader is told instead of a value.
DEFAULTS_IN_WORDS: Mapping[tuple[type[BaseModel], str], str] = {
    (Provider, "limits"): "nothing known",
    (Provider, "organisation_limits"): "nothing known",
    (Model, "upstream"): "the alias",
    (Model, "limits"): "the provider's",
    (Model, "organisation_limits"): "the provider's",
    (Provider, "timeout"): "see [below](#timeout)",
    (Model, "timeout"): "the provider's",
    (Model, "repeat_timeouts"): "the provider's",
    (Model, "structured_outputs"): "the provider's",
    (Model, "tokenizer"): "none",
}


def table_under(heading: str) -> dict[str, list[str]]:
    """The first table under a heading: its first column, without backticks, and the other cells."""
    section = DOC.split(f"\n{heading}\n", 1)[1]
    lines = re.search(r"(?m)(^\|.*\n)+", section)
    assert lines is not None, f"{heading} has no table"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in rows}


def default_in_toml(field: FieldInfo, *, unset: str) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return unset
    if isinstance(field.default, tuple):
        return f"`{json.dumps(field.default)}`"
    text = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    return f'`"{text}"`' if isinstance(field.default, str) else f"`{text}`"


def test_each_setting_is_listed_with_its_default() -> None:
    listed = {variable: cells[0] for variable, cells in table_under("## Settings").items()}
    expected = {}
    for variable, field in settings_variables().items():
        value = str(field.default).lower() if isinstance(field.default, bool) else field.default
        expected[variable] = "not set" if value in (None, "") else f"`{value}`"
    assert listed == expected


@pytest.mark.parametrize(
    ("heading", "table", "unset"),
    [
        ("### `[providers.NAME]`", Provider, "not set"),
        ('### `[models."ALIAS"]`', Model, "unknown"),
        ("### `limits`", Limits, "unknown"),
        ("### `price`", Price, "unknown"),
        ("### `timeout`", Timeout, "not set"),
        ('### `[routes."NAME"]`', Route, "none"),
        ("### `when`", When, "not asked"),
    ],
)
def test_each_key_of_the_catalogue_is_listed_with_its_default(heading: str, table: type[BaseModel], unset: str) -> None:
    listed = {key: cells[0] for key, cells in table_under(heading).items()}
    expected = {
        key: DEFAULTS_IN_WORDS.get((table, key)) or default_in_toml(field, unset=unset)
        for key, field in table.model_fields.items()
        if key != "name"
    }
    assert listed == expected


def test_each_row_says_what_it_means() -> None:
    headings = ("## Settings", "### `[providers.NAME]`", "### `limits`", "### `price`", "### `timeout`")
    assert all(len(cells[1]) > 10 for heading in headings for cells in table_under(heading).values())


def preset_row(model: Model) -> list[str]:
    amounts = [getattr(model.price, key, None) for key in ("input", "cached_input", "output")]
    numbers = [model.limits.rpm, model.limits.tpm, *amounts]
    return [f"`{model.provider}`", *("?" if number is None else str(number) for number in numbers)]


def test_the_presets_are_listed_as_they_are() -> None:
    assert table_under("## The presets") == {alias: preset_row(model) for alias, model in load_catalog().models.items()}


def test_the_example_environment_is_the_defaults(clean_environment: pytest.MonkeyPatch) -> None:
    defaults = get_settings()
    get_settings.cache_clear()
    Path(".env").write_text((ROOT / ".env.example").read_text(encoding="utf-8"), encoding="utf-8")
    assert get_settings() == defaults


def test_the_example_environment_names_nothing_else() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    names = set(re.findall(r"(?m)^(?:# )?([A-Z][A-Z0-9_]*)=", text))
    keys = {variable for provider in load_catalog().providers.values() for variable in provider.api_keys}
    assert names - set(settings_variables()) == keys | {"FLOWER_USER", "FLOWER_PASSWORD"}  # docker-compose.yml
    assert all(not dotenv_values(ROOT / ".env.example")[variable] for variable in keys), (
        "no key, not even a made-up one"
    )
