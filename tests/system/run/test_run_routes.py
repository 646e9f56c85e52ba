"""A file whose rows name a route, through real workers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .run_harness import RunCommand, read_rows, write_rows

CATALOG = """
[routes.auto]
rules = [{ when = { tag = "hard" }, model = "gpt-4.1" }]
targets = ["gpt-4o", "gpt-4o-mini"]
choose = "cheapest"
"""


def test_each_row_goes_where_its_route_says(promptmill_run: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "catalog.toml").write_text(CATALOG)
    rows = [
        {"prompt": f"How many? {number}", "promptmill": {"tag": "hard"} if number < 10 else {}} for number in range(40)
    ]
    write_rows(tmp_path / "in.jsonl", rows)
    options = ("--model", "auto", "--workers", "2", "--simulate", "--latency-ms", "5", "--json")
    done = promptmill_run("in.jsonl", "-o", "out.jsonl", *options, PROMPTMILL_CATALOG=str(tmp_path / "catalog.toml"))
    assert done.code == 0, done.stderr
    assert (done.summary["succeeded"], done.summary["provider_calls"]) == (40, 40)
    results = [row["promptmill"] for row in read_rows(tmp_path / "out.jsonl").values()]
    assert Counter((each["model"], each["answered_by"], each["route"]["rule"]) for each in results) == {
        ("auto", "simulator/gpt-4.1", 1): 10,
        ("auto", "simulator/gpt-4o-mini", None): 30,
    }
    assert all(each["cost_usd"] > 0 for each in results)
