"""What is wrong with an answer, and with a schema."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from workers.prompt.failure import Failure
from workers.schema.validator import validator_of

SECRET = "the canary answer"


@pytest.mark.parametrize(
    ("schema", "value", "told"),
    [
        ({"properties": {"a": {"type": "number"}}}, {"a": SECRET}, 'properties/a: the value is not of type "number"'),
        ({"required": ["a"]}, {}, 'the answer: "a" is a required property'),
        ({"additionalProperties": False}, {SECRET: 1}, "the answer: fails `additionalProperties`"),
        ({"propertyNames": {"maxLength": 3}}, {SECRET: 1}, "propertyNames"),
        ({"additionalProperties": {"type": "null"}}, {SECRET: 1}, "additionalProperties: the value is not"),
        ({"enum": ["a"]}, SECRET, "the answer: fails `enum`"),
        ({"pattern": "^x"}, SECRET, "the answer: fails `pattern`"),
        ({"items": {"anyOf": [{"type": "null"}, {"type": "number"}]}}, [SECRET], "items: fails `anyOf`"),
        ({"$defs": {"n": {"minimum": 3}}, "items": {"$ref": "#/$defs/n"}}, [1], "less than the minimum of 3"),
        (False, {}, "the answer"),
    ],
)
def test_a_misfit_quotes_the_schema_and_no_answer(schema: Any, value: Any, told: str) -> None:
    misfit = validator_of(schema).misfit(value)
    assert misfit is not None and told in misfit and SECRET not in misfit


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"properties": {"a": {"type": "objekt"}}}, "properties/a/type"),
        ({"properties": {"a": {"pattern": "["}}}, "properties/a/pattern"),
        ({"minimum": "3"}, "minimum"),
        ({"$ref": "#/$defs/missing"}, "nothing is fetched"),
        ({"$schema": "https://example.org/own"}, "nothing is fetched"),
        ({"maximum": 10**30}, "64 bits"),
        (7, "no JSON Schema"),
    ],
)
def test_an_invalid_schema_is_refused_with_its_place(schema: Any, told: str) -> None:
    with pytest.raises(Failure, match="no JSON Schema") as refused:
        validator_of(schema)
    assert refused.value.code == "bad_request" and told in refused.value.message


class Schemas(BaseHTTPRequestHandler):
    """Serves a schema to whoever asks."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_no_reference_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text("{}")
    with HTTPServer(("127.0.0.1", 0), Schemas) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        for place in (f"http://127.0.0.1:{server.server_port}/", (tmp_path / "schema.json").as_uri()):
            with pytest.raises(Failure, match="nothing is fetched"):
                validator_of({"$ref": place})
            with pytest.raises(Failure, match="nothing is fetched"):
                validator_of({"$schema": place})
        server.shutdown()
    assert Schemas.asked == 0


def test_a_schema_is_compiled_once() -> None:
    assert validator_of({"type": "string", "minLength": 3}) is validator_of({"minLength": 3, "type": "string"})


def test_a_worker_without_schemas_does_not_import_the_library() -> None:
    code = "import sys, workers.celery.runtime; sys.exit('jsonschema_rs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
