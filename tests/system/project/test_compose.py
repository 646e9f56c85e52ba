"""docker-compose.yml and Dockerfile: valid, and what they start, started by hand as a stranger finds it."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import redis

from config.catalog import load_catalog
from tasks import JobFailed, PromptQueue
from tasks.wire import redis_keys
from tests.support.waiting import wait_until

from .compose_by_hand import ROOT, Deployment, services

MESSAGES = [{"role": "user", "content": "How many?"}]
AS_IT_IS = ROOT / ".env.example"


def fetched(url: str, *, login: str = "") -> str:
    authorization = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=authorization), timeout=20) as reply:
        text: str = reply.read().decode()
    return text


def answers(url: str, *, login: str = "") -> str:
    """What is there, or nothing yet."""
    try:
        return fetched(url, login=login)
    except OSError:
        return ""


def offers(deployment: Deployment) -> bool:
    """Whether a worker has said what it can call."""
    with redis.Redis.from_url(deployment.url("redis", "redis")) as client:
        return bool(client.exists(redis_keys.MODELS))


@pytest.mark.parametrize(
    ("schema", "file"),
    [("vendor.compose-spec", "docker-compose.yml"), ("vendor.github-workflows", ".github/workflows/ci.yml")],
)
def test_the_file_is_valid(schema: str, file: str) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(ROOT / file)]
    ran = subprocess.run(check, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_image_is_built_of_what_is_in_its_context(tmp_path: Path) -> None:
    """Its second `pip install`, with the same options; the first is the Makefile's, which CI runs."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    wanted = {source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]}
    ignored, *kept, _ = (ROOT / ".dockerignore").read_text().split()
    assert ignored == "*" and {line.removeprefix("!") for line in kept} == wanted
    (from_lock,) = re.findall(r"^RUN pip install --no-cache-dir (.*run\.lock)$", "\n".join(lines), re.M)
    assert f"$(PIP) install {from_lock}" in (ROOT / "Makefile").read_text()
    (options,) = re.findall(r"^RUN pip install (--no-cache-dir --no-deps .*) \. ", "\n".join(lines), re.M)
    image, installed = Deployment(tmp_path, env_file=AS_IT_IS).image, tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options.split(), "--target", str(installed), "."]
    ran = subprocess.run(command, cwd=image, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stderr
    missing = [
        str(file.relative_to(image))
        for package in ("config", "tasks", "workers")
        for file in (image / package).rglob("*.*")
        if not (installed / file.relative_to(image)).exists()
    ]
    assert missing == []


def test_env_example_starts_all_and_a_job_says_what_is_missing(tmp_path: Path) -> None:
    with Deployment(tmp_path, env_file=AS_IT_IS) as deployment:
        deployment.start("redis")
        wait_until(lambda: deployment.is_healthy("redis"), "Redis is healthy")
        worker, flower = deployment.start("worker"), deployment.start("flower")
        deployment.start("metrics")
        wait_until(lambda: "promptmill_up 1" in answers(deployment.url("metrics") + "/metrics"), "metrics are served")
        password = wait_until(lambda: re.search(r"user flower, password (\S+)", flower()), "Flower says its password")
        login = f"flower:{password[1]}"
        wait_until(
            lambda: "celery@" in answers(deployment.url("flower") + "/workers", login=login), "Flower has a worker"
        )
        with PromptQueue(deployment.url("redis", "redis") + "/0").sync as queue:
            job = queue.submit(model="gpt-4o-mini", messages=MESSAGES)
            with pytest.raises(JobFailed, match=r"auth: .*OPENAI_API_KEY"):
                job.result(timeout_s=20)
        wait_until(lambda: "OPENAI_API_KEY" in worker(), "the worker's log says what is missing", timeout_s=10)


def test_without_a_key_the_profile_try_answers_a_run(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    with Deployment(
        tmp_path / "up", env_file=AS_IT_IS, environ={"PROMPTMILL_CATALOG": "config/simulated.toml"}
    ) as try_it:
        try_it.start("redis")
        wait_until(lambda: try_it.is_healthy("redis"), "Redis is healthy")
        try_it.start("simulator")
        worker = try_it.start("worker")
        wait_until(lambda: answers(try_it.url("simulator") + "/__stats") and offers(try_it), "both are ready")
        redis_url = try_it.url("redis", "redis") + "/0"
        ran = subprocess.run(
            [
                *(
                    str(Path(sys.executable).with_name("promptmill")),
                    "run",
                    str(ROOT / "examples" / "gsm8k.jsonl"),
                    "--limit",
                    "20",
                ),
                *("--redis", redis_url, "--workers", "0", "-o", str(output), "--json"),
            ],
            cwd=tmp_path,
            env=try_it.environ("redis"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr + worker()
    assert json.loads(ran.stdout)["succeeded"] == 20
    assert len(output.read_text().splitlines()) == 20


def test_a_wrong_key_is_seen_within_ten_s_in_log_and_metrics(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    key = "sk-wrong-canary-0c7d41e9"
    env_file.write_text(AS_IT_IS.read_text().replace("OPENAI_API_KEY=", f"OPENAI_API_KEY={key}"))
    with Deployment(tmp_path / "up", env_file=env_file, environ={"PROMPTMILL_CATALOG": "own.toml"}) as deployment:
        own = '[providers.openai]\nbase_url = "{}/v1"\napi_keys = ["OPENAI_API_KEY"]\n'
        (deployment.image / "own.toml").write_text(own.format(deployment.url("simulator")))
        deployment.start("redis")
        wait_until(lambda: deployment.is_healthy("redis"), "Redis is healthy")
        deployment.start("simulator", "--fault", "401=1")
        worker = deployment.start("worker")
        deployment.start("metrics")
        wait_until(lambda: answers(deployment.url("simulator") + "/__stats") and offers(deployment), "all are ready")
        wait_until(lambda: answers(deployment.url("metrics") + "/metrics"), "metrics are served")
        with PromptQueue(deployment.url("redis", "redis") + "/0").sync as queue:
            queue.submit(model="gpt-4o-mini", messages=MESSAGES)

            def seen() -> bool:
                counted = 'promptmill_jobs_failed_total{code="auth"} 1.0' in fetched(
                    deployment.url("metrics") + "/metrics"
                )
                return counted and "failed: auth" in worker()

            wait_until(seen, "log and metrics tell of it", timeout_s=10)
        assert "OPENAI_API_KEY" in worker() and key not in worker()


def test_the_simulated_catalogue_sends_presets_to_the_simulator() -> None:
    catalog = load_catalog(ROOT / "config" / "simulated.toml")
    assert {provider.base_url for provider in catalog.providers.values()} == {"http://simulator:8000/v1"}
    assert all(not provider.api_keys for provider in catalog.providers.values())
    assert catalog.models.keys() == load_catalog().models.keys()
    assert catalog.provider(catalog.model("whatever")).any_model


@pytest.mark.parametrize("password", ["", "canary-4be1"])
def test_compose_s_flower_always_has_a_password(tmp_path: Path, password: str) -> None:
    """Its command, run by hand with a `celery` that shows what it is given."""
    shell, option, script = services({})["flower"]["command"]
    celery = tmp_path / "celery"
    celery.write_text('#!/bin/sh\necho "auth=$FLOWER_BASIC_AUTH left=$FLOWER_PASSWORD args=$*"\n')
    celery.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FLOWER_PASSWORD": password}
    ran = subprocess.run([shell, option, script], env=environ, capture_output=True, text=True, check=True)
    shown = r"^auth=flower:(\S+) left= args=-A workers flower --address=0.0.0.0 --port=5555$"
    found = re.search(shown, ran.stdout, re.MULTILINE)
    assert found is not None, ran.stdout
    assert len(found[1]) >= 8
    assert found[1] == (password or found[1])
    assert ("password " in ran.stdout) == (not password), "one that was chosen is not shown"


def test_nothing_is_open_to_the_network_and_the_queue_is_kept() -> None:
    found = services({})
    assert set(found) == {"redis", "worker", "flower", "metrics", "simulator"}
    redis = found["redis"]["command"]
    assert redis[redis.index("--maxmemory-policy") + 1] == "noeviction"
    assert redis[redis.index("--appendonly") + 1] == "yes"
    published = [port for service in found.values() for port in service.get("ports", [])]
    assert len(published) == 4 and all(port.startswith("127.0.0.1:") for port in published)
    assert all(service.get("depends_on") is not None for name, service in found.items() if name != "redis")
