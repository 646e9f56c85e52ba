"""Which models rows may name, before anything is sent."""

from __future__ import annotations

import pytest

from config.catalog import Catalog
from workers.commands.run.input.models import ModelCheck


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """`a` and `c` lack their key, `b` has one."""
    monkeypatch.setenv("B_KEY", "sk-0123456789abcdef")
    providers = {name: {"base_url": "http://127.0.0.1:9/v1", "api_keys": [f"{name.upper()}_KEY"]} for name in "abc"}
    models = {name: {"provider": name} for name in "abc"} | {"d": {"provider": "a", "fallbacks": ["c", "b"]}}
    routes = {
        "some": {"targets": ["a", "b"]},
        "none": {"rules": [{"when": {"tag": "x"}, "model": "a"}], "default": "c"},
    }
    return Catalog.model_validate({"providers": providers, "models": models, "routes": routes})


@pytest.mark.parametrize(
    ("name", "code"),
    [("a", "auth"), ("b", None), ("d", None), ("some", None), ("none", "auth"), ("nobody", "not_found")],
)
def test_a_row_may_name_what_something_with_a_key_may_answer(catalog: Catalog, name: str, code: str | None) -> None:
    found = ModelCheck(catalog, with_keys=True).problem(name)
    assert (None if found is None else found.code) == code
    assert found is None or code != "auth" or "A_KEY" in found.text


def test_without_keys_only_names_are_looked_at(catalog: Catalog) -> None:
    check = ModelCheck(catalog, with_keys=False)
    assert [check.problem(name) for name in ("a", "none")] == [None, None]
