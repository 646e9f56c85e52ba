"""A job's options are defined once, in `tasks/wire/options.py`; whoever spells them out besides agrees with it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from tasks import Group, PromptQueue, SyncGroup, SyncQueue
from tasks.errors import InvalidJob
from tasks.wire.options import OPTIONS, names_read_by, problem
from tasks.wire.request import new_job
from workers.commands.run.input.input_file import Line
from workers.commands.run.input.rows import BadRow, RowReader
from workers.prompt.failure import Failure
from workers.prompt.job import Options, parse

DOC = (Path(__file__).parents[2] / "docs" / "reference" / "jobs.md").read_text(encoding="utf-8")
REQUEST = {"model", "messages", "input", "extra_body", "body"}
SUBMITS = [PromptQueue.submit, Group.submit, SyncQueue.submit, SyncGroup.submit]
MESSAGES = [{"role": "user", "content": "Hello"}]

BAD: dict[str, Any] = {
    "id": "two words",
    "kind": "draw",
    "priority": "urgent",
    "deadline_s": 0,
    "delay_s": -1,
    "tenant": "",
    "metadata": 2**70,
    "max_attempts": 0,
    "repeat_timeouts": "yes",
    "schema": "a schema",
    "repair": 11,
    "fallbacks": ["m", "m"],
    "fallback_on": ["timeout"],
    "tag": "",
    "cache_ttl_s": -1,
    "sample": 1.5,
    "too_long": "shorten",
    "vectors": "float",
    "stream": "yes",
    "submitted_at": "now",
}


def test_submit_has_the_options_with_their_defaults() -> None:
    parameters = inspect.signature(PromptQueue.submit).parameters
    given = {name: each.default for name, each in parameters.items() if name not in REQUEST | {"self"}}
    assert given == {name: OPTIONS[name].default for name in names_read_by("client")}


def test_every_submit_has_one_signature_with_types() -> None:
    template, *others = (inspect.signature(submit) for submit in SUBMITS)
    assert all(other.parameters == template.parameters for other in others)
    assert all(
        each.annotation is not inspect.Parameter.empty for name, each in template.parameters.items() if name != "self"
    )
    hints = [typing.get_type_hints(submit) for submit in SUBMITS]
    assert [hint.pop("return").__name__ for hint in hints] == ["Job", "Job", "SyncJob", "SyncJob"]
    assert all(hint == hints[0] for hint in hints)


def test_submit_explains_each_option() -> None:
    explained = re.findall(r"`(\w+)`", PromptQueue.submit.__doc__ or "")
    assert set(names_read_by("client")) <= set(explained)


def test_the_worker_has_a_place_for_each_option_that_travels() -> None:
    places = [field.name for field in dataclasses.fields(Options)] + ["schema"]  # which stands in the body
    assert sorted(places) == sorted(name.replace("deadline_s", "deadline_at") for name in names_read_by("worker"))


def test_what_run_takes_travels() -> None:
    assert set(names_read_by("run")) <= set(names_read_by("client")) & set(names_read_by("worker"))


def refused_by_client(options: dict[str, Any]) -> str:
    with pytest.raises(InvalidJob) as caught:
        new_job(model="m", messages=MESSAGES, **options)
    return str(caught.value)


def refused_by_worker(options: dict[str, Any]) -> str:
    with pytest.raises(Failure) as caught:
        parse("chat", "id", [], {"model": "m", "messages": MESSAGES, "promptmill": options}, now=0.0)
    return caught.value.message


def refused_by_run(options: dict[str, Any]) -> str:
    row = RowReader().read(Line(1, json.dumps({"prompt": "Hello", "promptmill": options}).encode()))
    assert isinstance(row, BadRow)
    return row.reason


REFUSED = {"client": refused_by_client, "worker": refused_by_worker, "run": refused_by_run}


@pytest.mark.parametrize("reader", REFUSED)
def test_each_reader_refuses_with_the_words_of_the_table(reader: Any) -> None:
    assert BAD.keys() == OPTIONS.keys()
    for name in names_read_by(reader):
        said = problem(name, BAD[name], reader=reader)
        assert said is not None
        assert REFUSED[reader]({name: BAD[name]}).endswith(f"{said}")


def test_a_providers_field_of_that_name_goes_through_extra_body() -> None:
    assert '"fallbacks":["b"]' in new_job(model="m", messages=MESSAGES, extra_body={"fallbacks": ["b"]}).body


def table_of_options() -> list[str]:
    def mark(name: str, reader: Any) -> str:
        return "yes" if name in names_read_by(reader) else ""

    return [
        f"| `{name}` | {option.default_text} | {mark(name, 'client')} | {mark(name, 'worker')} | {mark(name, 'run')} "
        f"| {option.doc} |"
        for name, option in OPTIONS.items()
    ]


def test_the_docs_have_the_table() -> None:
    section = DOC.split("\n## Options\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert rows == table_of_options(), "docs/reference/jobs.md should have:\n" + "\n".join(table_of_options())
