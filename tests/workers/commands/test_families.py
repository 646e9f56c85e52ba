"""The names: what is exported, what the docs list, and what the alert rules ask for are the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import CounterMetricFamily

import workers
from workers.commands.metrics.families import BREAKER, DEAD_LETTER_REASONS, DURATION, LIMITER, QUEUE, UP

ROOT = Path(__file__).parents[3]
METRICS_IN_ORDER: tuple[Any, ...] = (UP, DURATION, *QUEUE, *LIMITER, *BREAKER)
METRICS: dict[str, Any] = {f"promptmill_{metric.name}": metric for metric in METRICS_IN_ORDER}
ADDED_BY_PROMETHEUS = {"job", "instance"}

[GROUP] = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text())["groups"]
RULES: list[dict[str, Any]] = GROUP["rules"]


@pytest.mark.parametrize("name", METRICS)
def test_names_follow_prometheus_s_practices(name: str) -> None:
    metric = METRICS[name]
    assert re.fullmatch(r"promptmill_[a-z]+(_[a-z]+)*", name)
    assert name.endswith("_total") == (metric.kind is CounterMetricFamily)
    assert not re.search(r"_(ms|milliseconds|minutes|hours|percent|count)$", name), "base units, and no type"
    assert metric.text.endswith(".")
    assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)
    assert not set(metric.labels) & set(name.split("_")), "a label's name does not stand in the metric's"


def test_the_docs_list_every_metric() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    assert re.findall(r"^\| `(promptmill_\w+)` \|", page, re.MULTILINE) == list(METRICS)


def test_every_reason_to_bury_a_message_is_shown_from_the_start() -> None:
    [directory] = workers.__path__
    source = "\n".join(path.read_text() for path in Path(directory).rglob("*.py"))
    kinds = re.findall(r'_?(?:condemn|bury)\((?:message|tag|self\.delivery_tag), "(\w+)"', source)
    kinds += re.findall(r'^REJECTED: DeadLetterKind = "(\w+)"', source, re.MULTILINE)
    assert sorted(set(kinds)) == list(DEAD_LETTER_REASONS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
class TestAlertRules:
    def test_has_the_shape_of_one(self, rule: dict[str, Any]) -> None:
        assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert re.fullmatch(r"Promptmill[A-Za-z]+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["expr"].count("(") == rule["expr"].count(")")

    def test_asks_for_what_is_exported(self, rule: dict[str, Any]) -> None:
        named = set(re.findall(r"promptmill_\w+", rule["expr"]))
        assert named
        assert named <= METRICS.keys()

    def test_counters_are_asked_for_their_increase(self, rule: dict[str, Any]) -> None:
        counters = re.findall(r"promptmill_\w+_total", rule["expr"])
        assert counters == re.findall(r"increase\((promptmill_\w+_total)\[\d+m\]\)", rule["expr"])

    def test_knows_the_labels(self, rule: dict[str, Any]) -> None:
        named = re.findall(r"promptmill_\w+", rule["expr"])
        exported = {label for name in named for label in METRICS[name].labels} | ADDED_BY_PROMETHEUS
        lists = re.findall(r"(by|on) \(([\w, ]+)\)", rule["expr"])
        kept = [{label.strip() for label in labels.split(",")} for _, labels in lists]
        assert all(labels <= exported for labels in kept)
        told = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert told <= (set.intersection(exported, *kept))


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names) > 5
