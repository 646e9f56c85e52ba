"""The same tasks on our pool and on a stock one: same states, results, signals, handlers and requests.

Each case also names the state it must end in, so that two workers that fail alike don't pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, chord, group

from .harness import Report, Side

if TYPE_CHECKING:
    from celery.canvas import Signature

Runs = Mapping[str, int]
"""Task id -> how often it must run."""


@dataclass(frozen=True)
class Case:
    """`send` starts the case, given the worker and an id for its main task, and says which tasks must end how often."""

    name: str
    send: Callable[[Side, str], Runs | None]
    state: str | None = "SUCCESS"
    runs: int = 1
    joins: str | None = None
    """The task that follows several: its parent, and its root, is whichever of them ended last."""


def single(
    task: str,
    *args: Any,
    label: str = "",
    state: str | None = "SUCCESS",
    runs: int = 1,
    options: Callable[[], dict[str, Any]] = dict,
    **kwargs: Any,
) -> list[Case]:
    """One task, as a `def` and as a coroutine."""

    def sender(name: str) -> Callable[[Side, str], None]:
        def send(side: Side, id_: str) -> None:
            side.signature(name, *args, **kwargs).apply_async(task_id=id_, **options())

        return send

    suffix = f"-{label}" if label else ""
    return [Case(f"{name}{suffix}", sender(name), state, runs) for name in (task, f"{task}_async")]


def send_foreign(side: Side, id_: str) -> None:
    side.send("foreign", 5, task_id=id_)


JSON_KINDS = ["none", "true", "float", "big", "text", "nested", "tuple", "int_keys"]
RICH_KINDS = ["datetime", "date", "uuid", "decimal", "bytes"]
ERRORS = ["value", "key", "custom", "os", "timeout", "group", "unpicklable"]

SINGLES = [
    *(case for kind in JSON_KINDS + RICH_KINDS for case in single("give", kind, label=kind)),
    *single("give", "unencodable", label="unencodable", state="FAILURE"),
    *single("echo", 1, "two", label="arguments", named={"deep": [None]}),
    *single("echo", {"__type__": "x", "value": 1}, label="odd-keys"),
    *(case for kind in ERRORS for case in single("fail", kind, label=kind, state="FAILURE")),
    *single("fail", "ignore", label="ignore", state=None),
    *single("fail", "reject", label="reject", state="FAILURE"),
    *single("reject_once", runs=2),
    *single("retry_until", 2, label="retried", runs=3),
    *single("retry_until", 1, label="countdown", runs=2, countdown=0.1),
    *single("retry_in_vain", label="given-exc", state="FAILURE", runs=2, with_exc=True),
    *single("retry_in_vain", label="no-exc", state="FAILURE", runs=2, with_exc=False),
    *single("retry_after_error", runs=3),
    *single("autoretry", label="succeeds", runs=2, succeeds=True),
    *single("autoretry", label="fails", state="FAILURE", runs=2, succeeds=False),
    *single("autoretry_but", "value", label="wanted", state="FAILURE", runs=2),
    *single("autoretry_but", "key", label="excluded", state="FAILURE"),
    *single("progress"),
    *single("about_request", 1, "x", label="plain", key=2),
    *single("about_request", label="headers", options=lambda: {"headers": {"tenant": "blue"}}),
    *single("about_request", label="priority", options=lambda: {"priority": 3}),
    *single("about_request", label="limits", options=lambda: {"time_limit": 60, "soft_time_limit": 50}),
    *single("about_request", label="countdown", options=lambda: {"countdown": 0.1}),
    *single("about_request", label="eta", options=lambda: {"eta": datetime.now(UTC) + timedelta(seconds=0.1)}),
    *single("about_request", label="in-time", options=lambda: {"expires": 60}),
    *single("silent", label="option", state=None, options=lambda: {"ignore_result": True}),
    *single("early", label="succeeds"),
    *single("early", label="fails", state="FAILURE", fails=True),
    *single("unacknowledged_failure", state="FAILURE"),
    *single("replaced", 5, runs=2),
    *single("replaced_by_group", 5, runs=2),
    *single("spawn_chord", 5),
    *single("give", "none", label="expired", state="REVOKED", options=lambda: {"expires": -1}),
    Case("foreign", send_foreign),
]


def named(side: Side, task: str, *args: Any, id_: str) -> Signature:
    return side.signature(task, *args).set(task_id=id_)


def send_link(side: Side, id_: str) -> Runs:
    linked = [named(side, f"add{kind}", 10, id_=f"{id_}:link{kind}") for kind in KINDS]
    side.signature("add_async", 1, 2).apply_async(task_id=id_, link=linked)
    return {id_: 1, **{f"{id_}:link{kind}": 1 for kind in KINDS}}


def send_link_error(side: Side, id_: str) -> Runs:
    errbacks = [named(side, f"errback{kind}", id_=f"{id_}:errback{kind}") for kind in KINDS]
    side.signature("fail_async", "value").apply_async(task_id=id_, link_error=errbacks)
    return {id_: 1, **{f"{id_}:errback{kind}": 1 for kind in KINDS}}


def send_chain(side: Side, id_: str) -> Runs:
    steps = [
        named(side, "add", 1, 2, id_=f"{id_}:1"),
        named(side, "add_async", 3, id_=f"{id_}:2"),
        named(side, "replaced_async", id_=f"{id_}:3"),
        named(side, "add", 10, id_=id_),
    ]
    chain(*steps).apply_async()
    return {f"{id_}:1": 1, f"{id_}:2": 1, f"{id_}:3": 2, id_: 1}


def send_broken_chain(side: Side, id_: str) -> Runs:
    steps = [
        named(side, "add_async", 1, 2, id_=f"{id_}:1"),
        side.signature("fail_async", "value").set(task_id=id_, immutable=True),
        named(side, "add", 3, id_=f"{id_}:never"),
    ]
    chain(*steps).apply_async(link_error=named(side, "errback_async", id_=f"{id_}:errback"))
    return {f"{id_}:1": 1, id_: 1, f"{id_}:errback": 1}


def header(side: Side, id_: str, *extra: Signature) -> group:
    return group(*(named(side, f"add{KINDS[n % 2]}", n, n, id_=f"{id_}:{n}") for n in range(5)), *extra, app=side.app)


def send_group(side: Side, id_: str) -> Runs:
    header(side, id_, named(side, "fail_async", "value", id_=id_)).apply_async(task_id=f"{id_}:group")
    return {id_: 1, **{f"{id_}:{n}": 1 for n in range(5)}}


def send_chord(side: Side, id_: str) -> Runs:
    chord(header(side, id_), app=side.app)(named(side, "total_async", id_=id_))
    return {id_: 1, **{f"{id_}:{n}": 1 for n in range(5)}}


def send_chord_of_def(side: Side, id_: str) -> Runs:
    chord(header(side, id_), app=side.app)(named(side, "total", id_=id_))
    return {id_: 1, **{f"{id_}:{n}": 1 for n in range(5)}}


def send_failing_chord(side: Side, id_: str) -> Runs:
    body = named(side, "total_async", id_=id_)
    body.link_error(named(side, "errback_async", id_=f"{id_}:errback"))
    chord(header(side, id_, named(side, "fail_async", "value", id_=f"{id_}:bad")), app=side.app)(body)
    return {f"{id_}:errback": 1, f"{id_}:bad": 1, **{f"{id_}:{n}": 1 for n in range(5)}}


def send_nested(side: Side, id_: str) -> Runs:
    """A chain, a chord of chains, a group at its end: ids of inner steps are named, so that all are compared."""
    branches = [
        chain(named(side, "add_async", n, id_=f"{id_}:{n}a"), named(side, "add", 1, id_=f"{id_}:{n}b"))
        for n in range(3)
    ]
    flow = chain(
        named(side, "add", 1, 1, id_=f"{id_}:first"),
        group(*branches, app=side.app),
        named(side, "total_async", id_=f"{id_}:sum"),
        named(side, "add_async", 100, id_=id_),
    )
    flow.apply_async()
    branch_ids = [f"{id_}:{n}{step}" for n in range(3) for step in "ab"]
    return dict.fromkeys((f"{id_}:first", *branch_ids, f"{id_}:sum", id_), 1)


def send_stamped(side: Side, id_: str) -> Runs:
    side.signature("about_request_async").apply_async(task_id=id_, tenant="blue", stamped_headers=["tenant"])
    return {id_: 1}


KINDS = ("", "_async")

CANVAS = [
    Case("link", send_link),
    Case("link_error", send_link_error, state="FAILURE"),
    Case("chain", send_chain),
    Case("broken_chain", send_broken_chain, state="FAILURE"),
    Case("group", send_group, state="FAILURE"),
    Case("chord", send_chord, joins="chord"),
    Case("chord_of_def", send_chord_of_def, joins="chord_of_def"),
    Case("failing_chord", send_failing_chord, state="FAILURE"),
    Case("nested", send_nested, joins="nested:sum"),
    Case("stamped", send_stamped),
]


@pytest.fixture(scope="module")
def sent(shared_workers: dict[str, Side]) -> dict[str, dict[str, Runs]]:
    """All cases at once on both workers; each test then waits for its own."""
    runs: dict[str, dict[str, Runs]] = {}
    for flavour in ("ours", "threads"):
        runs[flavour] = {
            case.name: case.send(shared_workers[flavour], case.name) or {case.name: case.runs} for case in CASES
        }
    return runs


CASES = [*SINGLES, *CANVAS]


def comparable(report: Report, case: Case) -> dict[str, Any]:
    for name, _, fields in report.events.get(case.joins or "", ()):
        if name == "prerun":
            fields["request"].update(parent_id="any", root_id="any")
    return report.comparable()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_behaves_as_on_a_stock_pool(case: Case, sent: dict[str, dict[str, Runs]], ours: Side, threads: Side) -> None:
    mine, stock = (
        comparable(side.report(sent[flavour][case.name]), case)
        for flavour, side in (("ours", ours), ("threads", threads))
    )
    assert mine["results"] == stock["results"]
    assert mine["states"] == stock["states"]
    assert mine["events"] == stock["events"]
    assert ours.stored(case.name).get("status") == case.state


def test_the_recording_itself_did_not_fail(sent: dict[str, dict[str, Runs]], ours: Side, threads: Side) -> None:
    """A handler that raises would be missing on both sides alike."""
    for side in (ours, threads):
        assert "Signal handler" not in side.log_text()
        assert side.event_names("give_async-none") == [
            *("received", "prerun", "before_start", "on_success", "success", "after_return", "postrun"),
        ]
