"""A file whose rows name a route, or an endpoint of their own, through real workers."""

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


PROMPTS = {
    "/v1/responses": {"model": "gpt-4.1", "input": "How many?"},
    "/v1/completions": {"model": "gpt-4o-mini", "prompt": ["How many", "How few"]},
    "/v1/moderations": {"model": "omni-moderation-latest", "input": ["How many?", "How few?"]},
    "/v1/embeddings": {"model": "text-embedding-3-small", "input": "How many?"},
    "/v1/chat/completions": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How many?"}]},
}


def test_one_file_asks_every_endpoint(promptmill_run: RunCommand, tmp_path: Path) -> None:
    rows = [{"custom_id": url, "method": "POST", "url": url, "body": body} for url, body in PROMPTS.items()]
    write_rows(tmp_path / "in.jsonl", rows)
    done = promptmill_run("in.jsonl", "-o", "out.jsonl", "--workers", "1", "--simulate", "--latency-ms", "5", "--json")
    assert done.code == 0, done.stderr
    bodies = {row["custom_id"]: row["response"]["body"] for row in read_rows(tmp_path / "out.jsonl").values()}
    assert bodies["/v1/responses"]["object"] == "response"
    assert len(bodies["/v1/completions"]["choices"]) == len(bodies["/v1/moderations"]["results"]) == 2
    assert bodies["/v1/chat/completions"]["object"] == "chat.completion" and bodies["/v1/embeddings"]["data"]
    assert done.summary["provider_calls"] == len(PROMPTS)
