"""Lines of the input: what they ask for, and how a bad one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.wire.request import new_job
from workers.commands.run.conveyor.submitting import submission
from workers.commands.run.errors import UnusableInput
from workers.commands.run.input.custom_ids import CustomIds, DigestsById
from workers.commands.run.input.input_file import MAX_LINE_BYTES, InputFile, Line
from workers.commands.run.input.rows import PROMPT_NAMES, BadRow, Row, RowReader
from workers.commands.run.input.schema_file import read_schema

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


def read(data: object, **options: object) -> Row | BadRow:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return RowReader(**options).read(Line(7, text))  # type: ignore[arg-type]


def good(data: object, **options: object) -> Row:
    row = read(data, **options)
    assert isinstance(row, Row), row
    return row


def reason(data: object, **options: object) -> str:
    row = read(data, **options)
    assert isinstance(row, BadRow), row
    return row.reason


# -- forms


def test_batch_line_keeps_its_id_and_its_body() -> None:
    body = {"model": "gpt-4o", **CHAT, "metadata": {"theirs": 1}, "temperature": 0.5}
    row = good({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body})
    assert (row.custom_id, row.kind, row.body) == ("a", "chat", body)


def test_batch_line_for_embeddings() -> None:
    row = good({"custom_id": "a", "url": "/v1/embeddings", "body": {"model": "m", "input": "text"}})
    assert row.kind == "embed"


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"method": "GET", "body": CHAT}, "method"),
        ({"url": "/v1/images", "body": CHAT}, "url"),
        ({"url": "/v1/embeddings", "body": CHAT}, "`body` has no `input`"),
        ({"body": {}}, "neither `messages` nor `input`"),
    ],
)
def test_batch_line_that_is_none(data: object, part: str) -> None:
    assert part in reason(data)


def test_request_body_is_taken_as_it_is() -> None:
    row = good({**CHAT, "model": "gpt-4o", "prompt": "not this", "seed": 2**70})
    assert row.body == {**CHAT, "model": "gpt-4o", "prompt": "not this", "seed": 2**70}
    assert row.field is None


def test_request_body_stands_over_the_named_field() -> None:
    assert good({**CHAT, "question": "not this"}, field="question").field is None


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ({"input": ["a", "b"]}, {}),
        ({"input": ["a", "b"], "model": "bge-m3"}, {}),
        ({"input": [[1, 2], [3]]}, {}),
        ({"input": "a", "model": "embedding-v2"}, {}),
        ({"body": {"model": "Qwen3-Embedding", "input": "a"}}, {}),
        ({"input": "a", "instruction": "Represent it.", "model": "my-embedder"}, {}),
        ({"input": "a"}, {"model": "text-embedding-3-small"}),
    ],
)
def test_input_is_an_embedding(data: object, options: dict[str, object]) -> None:
    assert good(data, **options).kind == "embed"


def test_input_alone_is_a_prompt() -> None:
    row = good({"input": "Hello"})
    assert (row.kind, row.field, row.body["messages"]) == ("chat", "input", CHAT["messages"])


@pytest.mark.parametrize("name", PROMPT_NAMES)
def test_usual_names_are_found(name: str) -> None:
    row = good({name: "Hello", "answer": "42"})
    assert (row.field, row.body) == (name, {"model": "gpt-4o-mini", **CHAT})


def test_named_field_is_the_prompt() -> None:
    assert good({"prompt": "no", "q": "Hello"}, field="q").body["messages"] == CHAT["messages"]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Sum up.", "input": "The mill.", "output": ""}, "Sum up.\n\nThe mill."),
        ({"model": "gpt-4.1", "instruction": "Sum up.", "input": "The mill.", "output": ""}, "Sum up.\n\nThe mill."),
        ({"instruction": "Name a river.", "input": "", "output": ""}, "Name a river."),
    ],
)
def test_an_instruction_and_its_input_are_one_prompt(row: dict[str, str], prompt: str) -> None:
    found = good(row)
    assert (found.kind, found.field) == ("chat", "instruction")
    assert found.body["messages"] == [{"role": "user", "content": prompt}]
    assert found.model == row.get("model", "gpt-4o-mini")
    assert good(row, field="instruction").body["messages"][0]["content"] == row["instruction"]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"model": "gpt-4.1", "input": "hush"}, "a prompt of the Responses API"),
        ({"body": {"model": "gpt-4.1", "input": "hush"}}, "a prompt of the Responses API"),
        ({"model": "gpt-4.1", "input": [{"role": "user", "content": "hush"}]}, "holds messages, as in the Responses"),
        ({"body": {"input": [{"role": "user", "content": "hush"}]}}, "holds messages, as in the Responses"),
    ],
)
def test_a_request_of_the_responses_api_is_not_embedded(row: dict[str, object], part: str) -> None:
    assert part in reason(row)
    assert "hush" not in reason(row)


@pytest.mark.parametrize(
    ("url", "body", "kind"),
    [
        ("/v1/responses", {"model": "gpt-4.1", "input": "Hi"}, "respond"),
        ("https://api.openai.com/v1/responses/", {"model": "gpt-4.1", "input": ["Hi"]}, "respond"),
        ("/v1/responses", {"model": "text-embedding-3-small", "input": ["Hi"]}, "respond"),
        ("/v1/completions", {"model": "davinci-002", "prompt": ["a", "b"]}, "complete"),
        ("/v1/moderations", {"model": "omni-moderation-latest", "input": "Hi"}, "moderate"),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}, "chat"),
        ("/v1/embeddings", {"model": "m", "input": "Hi"}, "embed"),
    ],
)
def test_a_batch_line_is_of_its_urls_kind(url: str, body: dict[str, object], kind: str) -> None:
    found = good({"custom_id": "a", "method": "POST", "url": url, "body": body})
    assert (found.kind, found.body) == (kind, body)
    sent = new_job(**submission(found, "job-1"))
    assert (sent.kind, json.loads(sent.body)) == (kind, body)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"url": "/v1/responses", "model": "gpt-4.1", "input": ["hush"]}, "put the request into `body`"),
        ({"url": "/v1/responses", "prompt": "hush"}, "put the request into `body`"),
        ({"url": "/v1/responses", "body": {"input": "hush", "background": True}}, "`background`: the queue is the"),
        ({"url": "/v1/completions", "body": {"messages": ["hush"]}}, "its `body` has no `prompt`"),
        (
            {"url": "/v1/images", "body": {"prompt": "hush"}},
            "is none of /v1/chat/completions, /v1/embeddings, /v1/resp",
        ),
        ({"body": {"prompt": "hush"}}, "another kind of request needs its `url`"),
        (
            {"url": "/v1/completions", "body": {"prompt": "hush"}, "promptmill": {"schema": {"type": "object"}}},
            "a completion",
        ),
    ],
)
def test_a_line_of_another_endpoint_says_what_to_mend(row: dict[str, object], part: str) -> None:
    assert part in reason(row)
    assert "hush" not in reason(row)


def test_a_url_of_the_rows_own_data_is_no_endpoint() -> None:
    assert good({"url": "https://example.org/v1/responses", "prompt": "Hello"}).field == "prompt"


def test_a_text_with_an_embeddings_url_is_embedded_by_any_model() -> None:
    assert good({"url": "/v1/embeddings", "body": {"model": "bge-m3", "input": "text"}}).kind == "embed"


def test_null_is_as_good_as_nothing() -> None:
    assert good({"prompt": "Hello", "model": None}, model="ours").model == "ours"
    assert good({**CHAT, "model": None}).model == "gpt-4o-mini"
    assert good({"prompt": "Hello", "messages": None, "input": None, "promptmill": None}).field == "prompt"
    row = good({"custom_id": None, "method": None, "url": None, "body": {**CHAT, "model": None}})
    assert (row.custom_id, row.kind, row.model) == ("row-7", "chat", "gpt-4o-mini")
    assert good({**CHAT, "promptmill": {"tenant": None}}).options == {"priority": "bulk"}


def test_alpacas_whole_example_is_not_its_prompt() -> None:
    parts = {"instruction": "Sum up.", "input": "The mill.", "output": "A mill."}
    row = good({**parts, "text": "### Instruction:\nSum up.\n\n### Input:\nThe mill.\n\n### Response:\nA mill."})
    assert row.body["messages"] == [{"role": "user", "content": "Sum up.\n\nThe mill."}]


@pytest.mark.parametrize("other", ["prompt", "question", "text"])
def test_an_instruction_with_a_third_text_is_refused(other: str) -> None:
    row = {"instruction": "Sum up.", "input": "hush", other: "unrelated"}
    for found in (reason(row), reason({**row, "model": "gpt-4.1"})):
        assert "`instruction` and `input` belong together" in found
        assert other in found
        assert "hush" not in found


def test_several_possible_prompts_are_refused() -> None:
    assert "--field" in reason({"prompt": "a", "text": "b"})


# -- model, id, options


def test_model_of_the_option_then_the_row_then_the_default() -> None:
    assert good({**CHAT, "model": "theirs"}, model="ours").model == "ours"
    assert good({**CHAT, "model": "theirs"}).model == "theirs"
    assert good(CHAT).model == "gpt-4o-mini"


def test_custom_id_defaults_to_the_line() -> None:
    assert good(CHAT).custom_id == "row-7"
    assert good({**CHAT, "custom_id": 12}).custom_id == "12"


def test_own_options_do_not_meet_the_providers_fields() -> None:
    row = good({**CHAT, "metadata": {"theirs": 1}, "promptmill": {"metadata": {"ours": 1}, "priority": "normal"}})
    job = new_job(**submission(row, "an-id"))
    assert json.loads(job.body)["metadata"] == {"theirs": 1}
    assert '"ours"' in job.options
    assert job.priority == "normal"


def test_a_file_waits_behind_people() -> None:
    assert new_job(**submission(good(CHAT), "an-id")).priority == "bulk"


@pytest.mark.parametrize("key", ["__type__", "__value__"])
def test_keys_that_mean_something_to_kombu_pass_unchanged(key: str) -> None:
    row = good({**CHAT, key: "datetime"})
    assert json.loads(new_job(**submission(row, "an-id")).body)[key] == "datetime"


# -- digest


def test_digest_changes_with_all_that_decides_the_answer() -> None:
    digests = {
        good(CHAT).digest,
        good(CHAT, model="gpt-4o").digest,
        good(CHAT, simulated=True).digest,
        good({**CHAT, "seed": 1}).digest,
        good({"input": ["Hello"]}).digest,
    }
    assert len(digests) == 5


def test_digest_does_not_see_how_a_row_is_written() -> None:
    spaced = json.dumps({"custom_id": "x", **CHAT}, indent=1).replace("\n", " ").encode()
    assert good(spaced).digest == good(CHAT).digest


# -- bad rows


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"hello", "not JSON: Expecting value at column 1"),
        (b'{"prompt": NaN}', "NaN"),
        (b'{"prompt": -Infinity}', "Infinity"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[1]", "it is a list"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"n": ' + b"1" * 5_000 + b"}", "too many digits"),
        (b'{"answer": "x"}', "'answer'"),
        (b'{"prompt": " "}', "is empty"),
        (b'{"prompt": "x", "model": 3}', "`model` holds a number"),
        (b'{"prompt": "x", "custom_id": {}}', "`custom_id` holds an object"),
        (b'{"prompt": "x", "custom_id": "\\ud800"}', "lone surrogate"),
        (
            b'{"prompt": "x", "promptmill": {"prioritty": 1}}',
            "`promptmill.prioritty`: there is no such option; did you",
        ),
        (b'{"prompt": "x", "promptmill": {"id": "a"}}', "`promptmill.id`: there is no such option"),
        (b'{"prompt": "x", "promptmill": {"deadline_s": 0}}', "`promptmill.deadline_s`: must be more than 0 seconds"),
        (b'{"prompt": "x", "promptmill": {"fallbacks": "m"}}', "`promptmill.fallbacks`: must be a list of models'"),
        (b'{"prompt": "x", "promptmill": {"cache_ttl_s": -1}}', "`promptmill.cache_ttl_s`: must be 0 or more seconds"),
    ],
)
def test_bad_rows_say_why(text: bytes, part: str) -> None:
    assert part in reason(text)


def test_a_reason_never_repeats_the_prompt() -> None:
    assert "hush" not in reason(b'{"prompt": "hush", "model": {"hush": "hush"}}')
    assert "hush" not in reason(b'{"prompt": "hush')


@given(st.binary(max_size=200))
def test_any_bytes_are_a_row_or_a_bad_row(text: bytes) -> None:
    assert isinstance(RowReader().read(Line(1, text)), Row | BadRow)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text().filter(lambda name: name not in {"messages", "body"}), json_values, max_size=4))
def test_what_a_request_holds_reaches_the_queue_unchanged(fields: dict[str, object]) -> None:
    row = read({**fields, **CHAT})
    if isinstance(row, BadRow) or fields.get("stream"):
        return
    sent = json.loads(new_job(**submission(row, "an-id")).body)
    expected = {name: value for name, value in fields.items() if name not in {"custom_id", "promptmill"}}
    assert sent == {**CHAT, **expected, "model": row.model}


# -- lines


def lines_of(tmp_path: Path, content: bytes, *, limit: int | None = None) -> list[Line]:
    path = tmp_path / "input.jsonl"
    path.write_bytes(content)
    with InputFile(path, limit=limit) as lines:
        return list(lines)


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    found = lines_of(tmp_path, b"\xef\xbb\xbf{}\n\n  \r\n{}\r\n{}")
    assert [(line.number, line.text) for line in found] == [(1, b"{}"), (4, b"{}"), (5, b"{}")]


def test_limit_counts_rows_and_not_lines(tmp_path: Path) -> None:
    assert [line.number for line in lines_of(tmp_path, b"\n1\n\n2\n3\n", limit=2)] == [2, 4]


def test_a_line_that_is_too_long_is_skipped_and_named(tmp_path: Path) -> None:
    found = lines_of(tmp_path, b"1\n" + b"x" * (MAX_LINE_BYTES + 100_000) + b"\n3\n")
    assert [(line.number, line.text) for line in found] == [(1, b"1"), (2, None), (3, b"3")]
    assert "16 MiB" in str(RowReader().read(found[1]))


def test_take_stops_at_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"aaaa\n" * 10)
    with InputFile(path) as lines:
        assert len(lines.take(max_lines=100, max_bytes=8)) == 2
        assert len(lines.take(max_lines=3, max_bytes=1_000)) == 3


def test_input_that_can_not_be_read_again_is_refused(tmp_path: Path) -> None:
    for path, part in ((tmp_path, "directory"), (Path("/dev/null"), "regular file"), (tmp_path / "no", "No such")):
        with pytest.raises(UnusableInput, match=part):
            InputFile(path)


# -- custom ids


@given(st.lists(st.text(max_size=5)))
def test_custom_ids_are_a_set(texts: list[str]) -> None:
    ids, known = CustomIds(), set()
    for text in texts:
        assert ids.add(text) is (text not in known)
        known.add(text)
    assert len(ids) == len(known)


def test_custom_ids_grow() -> None:
    ids = CustomIds()
    assert all(ids.add(f"row-{number}") for number in range(5_000))
    assert not any(ids.add(f"row-{number}") for number in range(5_000))


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(1, 2**64 - 1))))
def test_digests_by_id_are_a_dict_that_keeps_the_first(pairs: list[tuple[str, int]]) -> None:
    digests = DigestsById()
    known: dict[str, int] = {}
    for text, digest in pairs:
        assert digests.add(text, digest) is (text not in known)
        known.setdefault(text, digest)
    assert {text: digests.get(text) for text in known} == known
    assert (len(digests), digests.get("never added")) == (len(known), 0)


def test_digests_by_id_grow() -> None:
    digests = DigestsById()
    assert all(digests.add(f"row-{number}", number + 1) for number in range(5_000))
    assert [digests.get(f"row-{number}") for number in range(5_000)] == list(range(1, 5_001))


# -- schemas

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
OWN = {"type": "json_schema", "json_schema": {"name": "own", "schema": SCHEMA}}


def test_the_runs_schema_is_for_chats_without_one() -> None:
    plain, with_schema = good({"prompt": "Hello"}), good({"prompt": "Hello"}, schema=SCHEMA, repair=2)
    assert with_schema.body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert with_schema.options["repair"] == 2
    assert with_schema.digest != plain.digest
    own = good({**CHAT, "response_format": OWN}, schema={"type": "array"}, repair=1)
    assert (own.body["response_format"], own.options["repair"]) == (OWN, 1)
    other = good({**CHAT, "response_format": {"type": "json_object"}}, schema=SCHEMA, repair=1)
    assert other.body["response_format"] == {"type": "json_object"} and "repair" not in other.options
    embedding = good({"input": ["text"]}, schema=SCHEMA, repair=1)
    assert "response_format" not in embedding.body and "repair" not in embedding.options


def test_a_rows_schema_is_a_part_of_its_request() -> None:
    first, second = (
        good({**CHAT, "promptmill": {"schema": {"type": kind}, "repair": 0}}) for kind in ("array", "object")
    )
    assert first.digest != second.digest and "schema" not in first.options
    job = new_job(**submission(first, "id"))
    assert '"response_format":{"type":"json_schema"' in job.body
    assert good({**CHAT, "promptmill": {"schema": SCHEMA, "repair": 0}}, repair=3).options["repair"] == 0
    assert "beside `response_format`" in reason({**CHAT, "response_format": OWN, "promptmill": {"schema": SCHEMA}})
    assert "there is no schema" in reason({**CHAT, "promptmill": {"repair": 1}})


def test_a_schema_file_is_checked_first(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    with pytest.raises(UnusableInput, match="Can't read"):
        read_schema(path)
    for text, told in [("{", "is not JSON"), ("[]", "holds no JSON Schema"), ('{"type": "objekt"}', "no JSON Schema")]:
        path.write_text(text)
        with pytest.raises(UnusableInput, match=told):
            read_schema(path)
    path.write_text(json.dumps(SCHEMA))
    assert (read_schema(path), read_schema(None)) == (SCHEMA, None)
