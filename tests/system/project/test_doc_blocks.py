"""Each fenced block of README and docs is run as it would be pasted, or says why not. Promises.md row 19."""

from __future__ import annotations

import asyncio
import json
import re
import textwrap
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from bench.command import ALL as BENCHMARKS
from config.catalog import Catalog, Limits, Timeout, load_catalog
from tasks import Job, PromptQueue
from tasks.testing import InMemoryQueue
from tasks.wire import redis_keys
from tests.project.doc_blocks import PAGES, ROOT, Block, Checkout, blocks_of
from tests.soak.__main__ import SOAKS
from tests.support.listening import listens
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.system.faults.harness import API_KEY, Provider
from workers.commands.metrics.command import DEFAULT_PORT
from workers.commands.run.input.input_file import Line
from workers.commands.run.input.rows import Row, RowReader

PICTURES = {"", "text", "mermaid"}
"""What nobody pastes: pictures, and the output of the block before."""

BLOCKS = {block.name: block for page in PAGES for block in blocks_of(page)}
RUN: set[tuple[str, str]] = set()

QUESTION = [{"role": "user", "content": "How many?"}]


def block(page: str, first_line: str) -> Block:
    """One that the test of this module that names it runs."""
    RUN.add((page, first_line))
    return BLOCKS[page, first_line]


def same_block(page: str, first_line: str, other: Block) -> None:
    """One that says the same as another, which a test runs."""
    assert block(page, first_line).text == other.text


README_APP = block("README.md", "from fastapi import FastAPI")
README_RUN = block("README.md", "$ make run")
README_OUTPUT = BLOCKS["README.md", "Installing into .venv ..."]
README_KEY = block("README.md", "$ export OPENAI_API_KEY=sk-...")
README_CELERY = block("README.md", 'messages = [{"role": "user", "content": "What is a queue?"}]')
README_GROUP = block(
    "README.md",
    'group = await queue.submit_many({"model": "gpt-4o-mini", "messages": row["messages"]} for row in rows)',
)
README_WORKER = block(
    "README.md",
    "$ OPENAI_API_KEY=sk-... PROMPTMILL_REDIS_URL=redis://localhost:6379/0 celery -A workers worker --concurrency 200",
)
README_TASK = block("README.md", "# summaries.py")
CATALOGS = block("docs/reference/configuration.md", "[providers.openai]")
REDIS_SETTINGS = block("docs/guides/failover.md", "min-replicas-to-write 1")
EXAMPLE_RUN = block("examples/README.md", "$ promptmill run examples/gsm8k.jsonl --simulate -o out/gsm8k.jsonl")
EXAMPLE_FAULTS = block(
    "examples/README.md", "$ promptmill run examples/gsm8k.jsonl --simulate --fault 400=0.1 -o out/faults.jsonl"
)
EXAMPLE_KEY = block(
    "examples/README.md",
    "$ OPENAI_API_KEY=sk-... promptmill run examples/gsm8k.jsonl --limit 10 --model gpt-4o-mini -o out/real.jsonl",
)
EXAMPLE_APPS = block("examples/README.md", "$ redis-server &")
CLIENT = "packaging/client/README.md"
CLIENT_ASK = block(CLIENT, "from promptmill_client import PromptQueue")
CLIENT_MANY = block(
    CLIENT, 'group = await queue.submit_many({"model": "gpt-4o-mini", "messages": m} for m in conversations)'
)
CLIENT_SYNC = block(CLIENT, 'answer = queue.sync.submit(model="gpt-4o-mini", messages=messages).result(timeout_s=30)')
CLIENT_TESTING = block(CLIENT, "from promptmill_client.testing import InMemoryQueue")
START = "docs/start/ten-minutes.md"
START_INSTALL = block(START, "$ make install")
START_JOB = block(START, "import asyncio")
START_PARTS = block(START, "$ redis-server &")
WEB_APP_ASK = block(
    "docs/guides/web-app.md",
    "from promptmill_client import JobExpired, JobFailed, PromptQueue, QueueUnavailable, ResultTimeout",
)
WEB_APP_TEST = block("docs/guides/web-app.md", "from promptmill_client.testing import InMemoryQueue")
CELERY_PRODUCER = block("docs/guides/celery-producers.md", "from celery import Celery")
FILES_GUIDE = "docs/guides/file-of-prompts.md"
[ROWS] = [found for (page, _), found in BLOCKS.items() if page == FILES_GUIDE and found.language == "json"]
RUN.add(ROWS.name)
JOBS_PYTHON = block("docs/reference/jobs.md", "job = await queue.submit(")
JOBS_CELERY = block("docs/reference/jobs.md", "celery_app.send_task(")
JOBS_ROW = block(
    "docs/reference/jobs.md",
    '{"custom_id": "q-17", "question": "How many?", "promptmill": {"tenant": "acme", "deadline_s": 3600}}',
)
LOCAL_SERVER = block("docs/guides/providers.md", "[providers.local]")
AZURE = block("docs/guides/providers.md", "[providers.azure-eu]")
ROUTES = block("docs/guides/routes-and-fallbacks.md", '[models."gpt-4o-mini"]')
README_MORE = block("README.md", "job = await queue.submit(")
SCHEMA_GUIDE = "docs/guides/structured-answers.md"
SCHEMA_JOB = block(SCHEMA_GUIDE, "schema = {")
COUNTED_MODEL = block("docs/guides/embeddings.md", '[models."bge-small"]')
SCHEMA_MODEL = block(SCHEMA_GUIDE, '[models."gpt-oss"]')
ENDPOINTS_JOB = block(
    "docs/guides/endpoints.md",
    'job = await queue.respond(model="gpt-4.1", input="How many clips?", store=False)',
)
STREAM_GUIDE = "docs/guides/streaming.md"
STREAM_JOB = block(STREAM_GUIDE, 'job = await queue.submit(model="gpt-4o-mini", messages=messages, stream=True)')
STREAM_AGAIN = block(STREAM_GUIDE, "async for piece in job.stream(after=1200):")
STREAM_SSE = block(STREAM_GUIDE, "async def sse(job: Job, after: int) -> AsyncIterator[str]:")
CACHE_GUIDE = "docs/guides/cache.md"
CACHED_JOB = block(CACHE_GUIDE, 'job = await queue.submit(model="gpt-4o-mini", messages=messages, cache_ttl_s=86_400)')
CACHE_COMMANDS = block(CACHE_GUIDE, "$ promptmill cache stats")
EMBEDDINGS_GROUP = block(
    "docs/guides/embeddings.md", 'group = await queue.embed_many(texts, model="text-embedding-3-small")'
)
FLEX_GUIDE = "docs/guides/flex.md"
FLEX_MODEL = block(FLEX_GUIDE, '[models."gpt-5-mini"]')
FLEX_JOBS = block(FLEX_GUIDE, 'await queue.submit(model="gpt-5-mini", messages=messages, priority="bulk")')
FLEX_SIMULATOR = block(FLEX_GUIDE, "$ promptmill simulate --fault flex-full=0.3 --flex-latency-ms 90000")
CONTRIBUTING_SETUP = block("CONTRIBUTING.md", "$ make install")
same_block(START, EXAMPLE_RUN.name[1], EXAMPLE_RUN)
same_block("docs/guides/file-of-prompts.md", EXAMPLE_RUN.name[1], EXAMPLE_RUN)
same_block("docs/guides/web-app.md", README_GROUP.name[1], README_GROUP)
same_block("docs/guides/own-tasks.md", README_TASK.name[1], README_TASK)
PLANNED_FAILOVER = BLOCKS["docs/guides/failover.md", "$ redis-cli -h MASTER CLIENT PAUSE 30000 WRITE"]
PROMETHEUS = BLOCKS["docs/guides/monitoring.md", "# prometheus.yml"]
MEASURING = next(found for found in BLOCKS.values() if found.text.startswith("make bench"))


@pytest.mark.parametrize(
    ("table", "name", "url"),
    [
        (LOCAL_SERVER, "qwen3", "http://127.0.0.1:8000/v1"),
        (AZURE, "gpt-4.1-eu", "https://my-resource.openai.azure.com/openai/v1"),
    ],
)
def test_the_guides_tables_of_providers_load(table: Block, name: str, url: str, tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(table.text)
    catalog = load_catalog(path)
    assert catalog.provider(catalog.model(name)).base_url == url


def test_the_guides_model_with_schemas_loads(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(SCHEMA_MODEL.text)
    model = load_catalog(path).model("gpt-oss")
    assert (model.structured_outputs, model.max_output_tokens) == ("json_schema", 65_536)


def test_the_guides_model_with_a_tokenizer_loads(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(COUNTED_MODEL.text)
    assert load_catalog(path).model("bge-small").tokenizer == str(tmp_path / "bge-small/tokenizer.json")


def test_the_guides_flex_model_loads(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(FLEX_MODEL.text)
    model = load_catalog(path).model("gpt-5-mini")
    assert model.flex and model.price is not None and model.price.flex == Decimal("0.5")


def test_the_guides_provider_with_a_flex_tier_starts(place: Place) -> None:
    port = free_port()
    with place.checkout.running(f"{FLEX_SIMULATOR.commands.strip()} --port {port}"):
        wait_until(lambda: listens(port), "it listens")


def test_the_guides_routes_load(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(ROUTES.text)
    catalog = load_catalog(path)
    assert [model.name for model in catalog.models_of("auto")] == ["gpt-4.1", "gpt-4o-mini", "deepseek-v3.2"]
    assert catalog.model("gpt-4.1").fallbacks == ("gpt-4o-mini",)


def test_no_block_is_unaccounted_for() -> None:
    every = [found for page in PAGES for found in blocks_of(page)]
    for_pasting = [found.name for found in every if found.language not in PICTURES and found.reason is None]
    assert set(for_pasting) == RUN
    assert len(for_pasting) == len(RUN) + 1, "the two catalogues begin alike"
    assert {found.name for found in every if found.reason} == {PROMETHEUS.name, MEASURING.name, PLANNED_FAILOVER.name}
    assert not [found for found in every if found.language in PICTURES and re.search(r"^\$ ", found.text, re.M)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_is_hidden_in_an_indented_block(page: Path) -> None:
    outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    assert re.findall(r"\n\n {4,}\S.*", outside) == []


# -- where they run ----------------------------------------------------------------------------------------------------


class Place:
    """A checkout beside a Redis, a provider and a worker: what the docs' addresses and keys mean here."""

    def __init__(self, checkout: Checkout, redis: RedisServer, provider: Provider) -> None:
        self.checkout = checkout
        self.redis = redis
        self.catalog = checkout.directory / "catalog.toml"
        self.catalog.write_text(
            f'[providers.openai]\nbase_url = "{provider.base_url}"\napi_keys = ["OPENAI_API_KEY"]\nkey_prefix = "sk-"\n'
            'apis = ["chat", "embeddings", "responses"]\n'
        )

    def here(self, text: str) -> str:
        return text.replace("localhost:6379", f"127.0.0.1:{self.redis.port}").replace("sk-...", API_KEY)

    def run(self, commands: str, **options: Any) -> str:
        return self.checkout.run(self.here(commands), PROMPTMILL_CATALOG=str(self.catalog), **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("place")
    redis, provider = RedisServer(directory), Provider("--latency-ms", "20")
    yield Place(Checkout(tmp_path_factory.mktemp("checkout")), redis, provider)
    redis.close()
    provider.close()


@pytest.fixture(scope="module")
def worker(place: Place) -> Iterator[None]:
    """The README's, which serves its other blocks too."""
    worker, _ = place.here(README_WORKER.commands).splitlines()
    with place.checkout.running(worker, PROMPTMILL_CATALOG=str(place.catalog)), place.redis.client() as client:
        wait_until(lambda: client.exists(redis_keys.MODELS), "the README's worker offers its models")
        yield


def python(place: Place, source: str) -> str:
    """Run it as a program of a project that has the client's package."""
    client = place.checkout.directory / "packaging" / "client"
    program = place.checkout.directory / "program.py"
    program.write_text(place.here(source))
    return place.checkout.run(f"python -W error {program}", PYTHONPATH=str(client))


# -- README ------------------------------------------------------------------------------------------------------------


def masked(output: str) -> list[str]:
    """Its lines with all numbers made equal, without the progress of a slow machine."""
    lines = [line.rstrip() for line in output.splitlines() if " rows · " not in line]
    return [re.sub(r"\d[\d,.]*", "N", line) for line in lines]


def test_make_run_prints_what_the_readme_shows(place: Place) -> None:
    installing, *shown = masked(README_OUTPUT.text)
    assert 'echo "Installing into $(VENV) ..."' in (ROOT / "Makefile").read_text() and ".venv" in installing
    assert f"$(BIN)/{EXAMPLE_RUN.commands}" in (ROOT / "Makefile").read_text(), "this runs the example's command"
    assert masked(place.run(README_RUN.commands)) == shown
    answers = (place.checkout.directory / "out" / "gsm8k.jsonl").read_text().splitlines()
    assert f"{len(answers):,} real questions" in (ROOT / "README.md").read_text()


@pytest.mark.usefixtures("worker")
def test_the_first_screens_app_answers(place: Place) -> None:
    assert len(README_APP.text.strip().splitlines()) <= 12
    (place.checkout.directory / "app.py").write_text(place.here(README_APP.text))
    port = free_port()
    command = f"PYTHONPATH=packaging/client uvicorn app:app --port {port}"
    with place.checkout.running(command):
        wait_until(lambda: listens(port), "the app runs")
        ask = urllib.request.Request(f"http://127.0.0.1:{port}/ask?question=How+many", method="POST")
        with urllib.request.urlopen(ask, timeout=30) as reply:
            assert json.load(reply)["answer"]


@pytest.mark.usefixtures("worker")
def test_any_celery_producer_works(place: Place) -> None:
    celery_app = "from celery import Celery\ncelery_app = Celery(broker={0!r}, backend={0!r})\n".format(
        "redis://localhost:6379/0"
    )
    printed = python(place, celery_app + README_CELERY.text + "print(result.get(timeout=30)['status'])")
    assert printed == "succeeded\n"


@pytest.mark.usefixtures("worker")
def test_a_job_with_options_from_celery_and_from_python(place: Place) -> None:
    celery_app = "from celery import Celery\ncelery_app = Celery(broker={0!r}, backend={0!r})\n".format(
        "redis://localhost:6379/0"
    )
    assert python(place, f"{celery_app}print({JOBS_CELERY.text.strip()}.get(timeout=30)['status'])") == "succeeded\n"

    async def answered() -> str:
        async with PromptQueue(place.redis.url) as queue:
            names = {"queue": queue}
            source = f"async def program():\n{textwrap.indent(JOBS_PYTHON.text, '    ')}\n    return job"
            exec(compile(source, "jobs.md", "exec"), names)
            job = await names["program"]()  # type: ignore[operator]
            return str((await job.result(timeout_s=30)).status)

    assert asyncio.run(answered()) == "succeeded"


class Person(BaseModel):
    name: str
    age: int


@pytest.mark.usefixtures("worker")
def test_a_job_that_asks_for_more(place: Place) -> None:
    async def program(found: Block, result: str) -> Any:
        async with PromptQueue(place.redis.url) as queue:
            names: dict[str, Any] = {"queue": queue, "messages": QUESTION, "Person": Person}
            source = f"async def program():\n{textwrap.indent(found.text, '    ')}\n    return {result}"
            exec(compile(source, found.page, "exec"), names)
            return await names["program"]()

    assert isinstance(asyncio.run(program(README_MORE, "person")), Person)
    assert asyncio.run(program(SCHEMA_JOB, "answer.json()")).keys() == {"name", "age"}
    assert [asyncio.run(program(CACHED_JOB, "answer.cached")) for _ in range(2)] == [False, True]
    printed = place.run(CACHE_COMMANDS.commands, PROMPTMILL_REDIS_URL=place.redis.url)
    assert re.search(r"^hit rate +", printed, re.M) and "\nDeleted 0 answers." in printed


@pytest.mark.usefixtures("worker")
def test_texts_are_embedded_as_the_guide_says(place: Place) -> None:
    async def vectors() -> dict[int, list[float]]:
        async with PromptQueue(place.redis.url) as queue:
            names: dict[str, Any] = {"queue": queue, "texts": ["a", "b", "c"], "vectors": {}}
            source = f"async def program():\n{textwrap.indent(EMBEDDINGS_GROUP.text, '    ')}\n    return vectors"
            exec(compile(source, EMBEDDINGS_GROUP.page, "exec"), names)
            found: dict[int, list[float]] = await names["program"]()
            return found

    found = asyncio.run(vectors())
    assert sorted(found) == [0, 1, 2] and len({len(vector) for vector in found.values()}) == 1


async def test_jobs_that_can_wait_are_submitted_as_the_guide_says() -> None:
    queue = InMemoryQueue()
    names: dict[str, Any] = {"queue": queue, "messages": QUESTION}
    exec(compile(f"async def program():\n{textwrap.indent(FLEX_JOBS.text, '    ')}", FLEX_GUIDE, "exec"), names)
    await names["program"]()
    assert len(queue.submitted) == 2


@pytest.mark.usefixtures("worker")
def test_an_answer_is_read_as_the_guide_says(place: Place) -> None:
    async def program(found: Block, **names: Any) -> Any:
        source = f"async def program():\n{textwrap.indent(found.text, '    ')}\n    return locals()"
        exec(compile(source, found.page, "exec"), names)
        return await names["program"]()

    async def read() -> None:
        told: list[str] = []
        async with PromptQueue(place.redis.url) as queue:
            names = {"queue": queue, "messages": QUESTION, "print": lambda text, **_: told.append(text)}
            job = (await program(STREAM_JOB, **names))["job"]
            assert "".join(told) == (await job.result()).text
            await program(STREAM_AGAIN, job=job)
            told.clear()
            response = (await program(ENDPOINTS_JOB, **names))["job"]
            assert told == [(await response.result()).text]
            sse = (await program(STREAM_SSE, Job=Job, AsyncIterator=AsyncIterator, json=json))["sse"]
            events = [event async for event in sse(job, 0)]
            assert events[-1].endswith('data: {"kind": "end", "text": ""}\n\n')

    asyncio.run(read())


def test_a_row_with_options_is_read_as_the_reference_says() -> None:
    row = RowReader(field="question").read(Line(1, JOBS_ROW.text.strip().encode()))
    assert isinstance(row, Row) and row.custom_id == "q-17"


@pytest.mark.usefixtures("worker")
def test_many_prompts_are_a_group(place: Place) -> None:
    async def answered() -> list[str]:
        found: list[str] = []
        async with PromptQueue(place.redis.url) as queue:
            rows = [{"messages": QUESTION}] * 3
            names = {"queue": queue, "rows": rows, "print": lambda id_, text: found.append(text)}
            source = "async def program():\n" + textwrap.indent(README_GROUP.text, "    ")
            exec(compile(source, "README.md", "exec"), names)
            await names["program"]()  # type: ignore[operator]
        return found

    assert all(asyncio.run(answered()))


def test_your_own_tasks_run_in_the_same_workers(place: Place, own_redis: RedisServer) -> None:
    (place.checkout.directory / "summaries.py").write_text(README_TASK.text)
    readme = (ROOT / "README.md").read_text()
    enqueue = 'summarise.delay("https://example.org")'
    assert enqueue in readme and "`celery -A summaries worker`" in readme
    ours: dict[str, Any] = {
        "PROMPTMILL_CATALOG": str(place.catalog),
        "OPENAI_API_KEY": API_KEY,
        "PROMPTMILL_REDIS_URL": own_redis.url,
    }
    with place.checkout.running("celery -A summaries worker", **ours):
        program = f"from summaries import summarise; print({enqueue}.get(timeout=30))"
        printed = place.checkout.run(f"python -c '{program}'", **ours)
    assert printed == "A summary of https://example.org\n"


def test_readmes_flower_starts(place: Place) -> None:
    _, flower = place.here(README_WORKER.commands).splitlines()
    port = free_port()
    with place.checkout.running(f"{flower} --port={port}"):
        wait_until(lambda: listens(port), "Flower runs")


# -- the other pages ---------------------------------------------------------------------------------------------------


def test_the_other_runs_go_through(place: Place) -> None:
    """Three shells side by side: most of a run of few rows is the start of its processes."""
    breaking, again = EXAMPLE_FAULTS.commands.replace("--simulate", "--simulate --limit 60").splitlines()

    def broken_and_mended() -> str:
        place.run(breaking, exit_code=1)
        return place.run(again)

    with ThreadPoolExecutor(3) as shells:
        mended = shells.submit(broken_and_mended)
        for printed in shells.map(place.run, (README_KEY.commands, EXAMPLE_KEY.commands)):
            assert re.search(r"^succeeded +10 ", printed, re.M)
        assert re.search(r"^kept +\d+ from an earlier run", mended.result(), re.M)


def test_the_first_ten_minutes(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    redis_port, provider_port = free_port(), str(free_port())
    checkout.redis(redis_port)
    catalog = tmp_path / "config" / "simulated.toml"
    catalog.write_text(catalog.read_text().replace("8000", provider_port))
    (tmp_path / "out").mkdir()
    (tmp_path / "first_job.py").write_text(START_JOB.text)
    checkout.run(START_INSTALL.commands)
    commands = START_PARTS.commands.replace("8000", provider_port)
    printed = checkout.run(commands, PROMPTMILL_REDIS_URL=f"redis://127.0.0.1:{redis_port}/0")
    assert re.search(r"^accepted \S+\nsucceeded \w", printed, re.M), printed


@pytest.mark.usefixtures("worker")
def test_the_web_apps_guide(place: Place) -> None:
    asked = python(place, "import asyncio\n" + WEB_APP_ASK.text + "print(asyncio.run(ask('How many?'))[0])\n")
    assert asked == "200\n"
    python(place, WEB_APP_TEST.text)


@pytest.mark.usefixtures("worker")
def test_the_celery_producers_guide(place: Place) -> None:
    assert python(place, CELERY_PRODUCER.text).strip()


def test_each_row_of_the_files_guide_can_be_sent() -> None:
    lines = enumerate(ROWS.text.encode().splitlines(), start=1)
    rows = [RowReader().read(Line(number, text)) for number, text in lines]
    assert [row.kind for row in rows if isinstance(row, Row)] == ["chat", "chat", "chat", "embed"]


def test_contributing_says_how_to_set_up(tmp_path: Path) -> None:
    install, *checks = CONTRIBUTING_SETUP.commands.splitlines()
    Checkout(tmp_path).run(install)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert checks and all(check.split()[1] in targets for check in checks)


def test_the_example_apps_answer(place: Place, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    redis_port, provider_port, fastapi_port, django_port = (str(free_port()) for _ in range(4))
    checkout.redis(int(redis_port))
    checkout.tool("curl", "/usr/bin/curl --silent --show-error --fail --retry 40 --retry-connrefused --retry-delay 1")
    ports = {"8000": provider_port, "8001": fastapi_port, "8002": django_port}
    catalog = tmp_path / "config" / "simulated.toml"
    catalog.write_text(catalog.read_text().replace("8000", provider_port))
    (tmp_path / "out").mkdir()
    commands = re.sub(r"\b800\d\b", lambda found: ports[found[0]], EXAMPLE_APPS.commands)
    url = f"redis://127.0.0.1:{redis_port}/0"
    printed = checkout.run(commands, PROMPTMILL_REDIS_URL=url)
    assert len(re.findall(r'"answer": ?"\w', printed)) == 2, printed


def test_the_catalogues_load(tmp_path: Path) -> None:
    def loaded(example: Block) -> Catalog:
        file = tmp_path / "catalog.toml"
        file.write_text(example.text)
        return load_catalog(file)

    page = blocks_of(ROOT / "docs" / "reference" / "configuration.md")
    catalog, with_organisation = (loaded(example) for example in page if example.name == CATALOGS.name)
    assert with_organisation.providers["openai"].organisation_limits == Limits(rpm=1000, tpm=200000)
    assert catalog.model("gpt-4o-mini").timeout == Timeout(total_s=60, read_s=30)
    assert catalog.provider(catalog.model("whatever")).name == "local"


def test_redis_takes_the_settings(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        for line in REDIS_SETTINGS.text.splitlines():
            name, value = line.split()
            client.config_set(name, value)
            assert client.config_get(name) == {name: value}


def test_prometheus_is_led_to_our_exporter_and_rules() -> None:
    configuration = yaml.safe_load(PROMETHEUS.text)
    assert configuration["scrape_configs"][0]["static_configs"] == [{"targets": [f"127.0.0.1:{DEFAULT_PORT}"]}]
    assert [(ROOT / "docs" / file).exists() for file in configuration["rule_files"]] == [True]


def test_what_is_measured_exists() -> None:
    measured: dict[str, Mapping[str, object]] = {"bench": BENCHMARKS, "soak": SOAKS}
    for line in MEASURING.text.splitlines():
        target, arguments = re.match(r'make (\w+)(?: +ARGS="?([^"#]*))?', line).groups()  # type: ignore[union-attr]
        names = re.sub(r"--\S+( [\d.]\S*)?", "", arguments or "").split()
        assert set(names) <= measured[target].keys(), line


@pytest.mark.usefixtures("worker")
def test_the_clients_readme(place: Place) -> None:
    queue = "import asyncio\nfrom promptmill_client import PromptQueue\n"
    ask = CLIENT_ASK.text + "print(bool(asyncio.run(ask('How many?'))))\n"
    many = (
        f"async def many():\n    conversations = [{QUESTION}] * 3\n"
        "    async with PromptQueue('redis://localhost:6379/0') as queue:\n"
        f"{textwrap.indent(CLIENT_MANY.text, ' ' * 8)}asyncio.run(many())\n"
    )
    in_a_script = (
        f"queue, messages = PromptQueue('redis://localhost:6379/0'), {QUESTION}\n{CLIENT_SYNC.text}print(answer.ok)\n"
    )
    in_a_test = CLIENT_TESTING.text + f"print(queue.sync.submit(model='m', messages={QUESTION}).result().text)\n"
    assert python(place, queue + ask) == "True\n"
    assert len(python(place, queue + many).splitlines()) == 3
    assert python(place, queue + in_a_script + "queue.sync.close()\n") == "True\n"
    assert python(place, in_a_test) == "Hello!\n"
