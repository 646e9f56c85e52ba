"""See the package."""

from __future__ import annotations

from .marks import claims
from .names import FOR_PEOPLE, names


def test_each_name_has_a_test_that_it_acts() -> None:
    unproven = sorted(names() - claims().keys() - FOR_PEOPLE.keys())
    assert unproven == [], "mark a test that fails when the code ignores it: @pytest.mark.covers(KIND, NAME)"


def test_each_claim_is_about_a_name_that_there_is() -> None:
    assert sorted(claims().keys() - names()) == []


def test_what_is_for_people_alone_is_there_and_claims_nothing() -> None:
    assert FOR_PEOPLE.keys() <= names()
    assert not FOR_PEOPLE.keys() & claims().keys()
