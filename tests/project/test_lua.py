"""The Lua scripts of all rooms: how they are put together, and that they share what Python knows."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_says_what_it_is_and_takes_or_gives(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"-- {path.name}: ")
    is_script = re.search(r"^-- KEYS", text, re.MULTILINE) is not None
    is_part = re.search(r"^-- Gives: ", text, re.MULTILINE) is not None
    assert is_script != is_part


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_word_or_lifetime_of_pythons_is_written_a_second_time(path: Path) -> None:
    code = code_of(path)
    assert [word for word in SHARED_WORDS if re.search(rf"['\"]{re.escape(word)}['\"]", code)] == []
    assert re.findall(r"['\"]P?EXPIRE['\"].*, *[\d.]+\)", code) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_file_takes_for_a_constant_is_one(path: Path) -> None:
    code = re.sub(r"'[^']*'|\"[^\"]*\"", "", code_of(path))
    defined = set(re.findall(r"local ([A-Z][A-Z_]+)\b", code))
    assert set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", code)) - defined - OF_REDIS <= set(CONSTANTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_that_names_a_constant_includes_them(path: Path) -> None:
    code = re.sub(r"'[^']*'|\"[^\"]*\"", "", code_of(path))
    names = set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", code)) & set(CONSTANTS)
    included = re.findall(r"^--- @include (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert bool(names) == ("constants" in " ".join(included).split()), names


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
