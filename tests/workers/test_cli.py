"""The command line: what it lists, and what it imports to run a command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from workers.cli import COMMANDS, app, load

HEAVY = ["aiohttp", "celery", "kombu", "flower", "prometheus_client", "uvloop", "jsonschema_rs", "workers.celery"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_a_command_what_its_help_says(name: str) -> None:
    assert " ".join(load(name).help.split("\n\n")[0].split()) == COMMANDS[name].help


def test_help_lists_all_commands() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert [name for name, entry in COMMANDS.items() if f"{name} " not in text or entry.help not in text] == []


def test_a_command_that_there_is_not_is_refused() -> None:
    done = CliRunner().invoke(app, ["nonsense"])
    assert done.exit_code == 2
    assert "No such command" in done.stderr


@pytest.mark.parametrize("group", ["dead", "cache"])
def test_a_group_has_its_commands(group: str) -> None:
    found = load(group)
    assert isinstance(found, typer.core.TyperGroup)
    assert found.commands


def imported_for(*arguments: str) -> set[str]:
    """All modules of a process that has run a command."""
    code = (
        "import json, sys, workers.cli\n"
        "try:\n    workers.cli.app(sys.argv[1:])\n"
        "except SystemExit:\n    print('\\n' + json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_and_status_import_little() -> None:
    """Each of them took a second of CPU when all commands were imported."""
    listed = imported_for("--help")
    assert {name for name in listed if name.startswith("workers")} == {"workers", "workers.cli"}
    assert not listed & {*HEAVY, "redis", "pydantic", "config"}
    asked = imported_for("status", "--help")
    assert "workers.commands.jobs" in asked
    assert not asked & {*HEAVY, "workers.commands.run", "workers.limiter", "workers.broker"}
