"""What README and docs say, holds: links lead somewhere, commands and options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workers.cli import app as promptmill

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    named = set(re.findall(r"`make ([a-z-]+)", page.read_text())) | set(
        re.findall(r"^\$ make ([a-z-]+)", page.read_text(), re.MULTILINE)
    )
    assert named <= MAKE_TARGETS


def help_of(command: str) -> str:
    result = CliRunner().invoke(promptmill, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_of_promptmill_exist(page: Path) -> None:
    for command, rest in re.findall(
        r"promptmill (run|simulate|doctor|limits|metrics|status|cancel|dead)\b([^`\n]*)", page.read_text()
    ):
        shown = help_of(command)
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in shown, f"{page.name}: promptmill {command} has no {option}"
