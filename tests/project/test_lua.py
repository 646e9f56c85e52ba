"""The Lua scripts of all rooms: how they are put together, and that they share what Python knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import tasks
from tasks.redis.script import CONSTANTS, Script

ROOT = Path(tasks.__file__).parents[1]
FILES = sorted(path for room in ("tasks", "workers") for path in (ROOT / room).rglob("*.lua"))
SHARED_WORDS = sorted({value for value in CONSTANTS.values() if isinstance(value, str)})
OF_REDIS = {"KEYS", "ARGV"}


def code_of(path: Path) -> str:
    """Without comments."""
    return re.sub(r"--.*", "", path.read_text(encoding="utf-8"))


def test_there_are_scripts() -> None:
    assert {path.stem for path in FILES} >= {"submit", "exchange", "store", "acquire"}


def offending(names: Callable[[Path], Iterable[str]]) -> dict[str, list[str]]:
    """By file, what `names` finds wrong with it."""
    found = {str(path.relative_to(ROOT)): sorted(names(path)) for path in FILES}
    return {file: wrong for file, wrong in found.items() if wrong}


def uncited(path: Path) -> str:
    """Its code without strings."""
    return re.sub(r"'[^']*'|\"[^\"]*\"", "", code_of(path))


def test_a_file_says_what_it_is_and_takes_or_gives() -> None:
    def untold(path: Path) -> Iterator[str]:
        text = path.read_text(encoding="utf-8")
        if not text.startswith(f"-- {path.name}: "):
            yield "what it is"
        is_script = re.search(r"^-- KEYS", text, re.MULTILINE) is not None
        is_part = re.search(r"^-- Gives: ", text, re.MULTILINE) is not None
        if is_script == is_part:
            yield "what it takes, or what it gives"

    assert offending(untold) == {}


def test_no_word_or_lifetime_of_pythons_is_written_a_second_time() -> None:
    def written(path: Path) -> Iterator[str]:
        code = code_of(path)
        yield from (word for word in SHARED_WORDS if re.search(rf"['\"]{re.escape(word)}['\"]", code))
        yield from re.findall(r"['\"]P?EXPIRE['\"].*, *[\d.]+\)", code)

    assert offending(written) == {}


def test_what_a_file_takes_for_a_constant_is_one() -> None:
    def unknown(path: Path) -> set[str]:
        code = uncited(path)
        defined = set(re.findall(r"local ([A-Z][A-Z_]+)\b", code))
        return set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", code)) - defined - OF_REDIS - set(CONSTANTS)

    assert offending(unknown) == {}


def test_a_file_that_names_a_constant_includes_them() -> None:
    def missed(path: Path) -> Iterator[str]:
        names = set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", uncited(path))) & set(CONSTANTS)
        included = re.findall(r"^--- @include (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        if bool(names) != ("constants" in " ".join(included).split()):
            yield "names " + ", ".join(sorted(names))

    assert offending(missed) == {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "top": "--- @include left right\n-- top\n",
        "left": "--- @include base\n-- left\n",
        "right": "--- @include base time\n-- right QUEUED\n",
        "base": "-- base\n",
        "lone": "--- @include nowhere\n",
    }.items():
        (tmp_path / f"{name}.lua").write_text(text)
    return tmp_path


def test_each_part_stands_once_and_before_those_that_include_it(folder: Path) -> None:
    text = Script.read(folder, "top").text
    places = [text.index(f"\n-- {name}" if name != "base" else "-- base") for name in ("base", "left", "right", "top")]
    assert places == sorted(places)
    assert text.count("-- base") == 1
    assert "local function now_ms()" in text, "a part that is not in the folder is one of those that all share"


def test_only_the_constants_that_a_script_names_stand_before_it(folder: Path) -> None:
    assert Script.read(folder, "top").text.startswith("local QUEUED = 'queued'\n-- base\n")
    assert "local" not in Script.read(folder, "base").text


def test_a_part_that_is_missing_is_an_error(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.lua"):
        Script.read(folder, "lone")


def test_a_script_does_not_show_its_text(folder: Path) -> None:
    assert repr(Script.read(folder, "top")) == "Script(name='top')"
