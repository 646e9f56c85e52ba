"""The wheel `promptmill-client`, and what its import drags in."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import tasks

ROOT = Path(tasks.__file__).parent.parent

BLOCKED = ("aiohttp", "pydantic", "pydantic_settings", "celery", "kombu", "orjson", "workers", "config", "tasks")

BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed alone."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = str(ROOT / "packaging" / "client")
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(wheels), source], check=True)
    [wheel] = wheels.glob("promptmill_client-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"promptmill_client/store/lua/submit.lua", "promptmill_client/py.typed"} <= names
    assert all(name.startswith(("promptmill_client/", "promptmill_client-")) for name in names)
    return target


def run(code: str, target: Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", BLOCK + code],
        env={"PYTHONPATH": str(target), "PATH": os.environ["PATH"]},
        cwd=target,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_the_wheel_works_alone(installed: Path) -> None:
    code = """
import promptmill_client
from promptmill_client.testing import InMemoryQueue

queue = InMemoryQueue(answer=lambda body: "hello")
print(queue.sync.submit(model="m", messages=[{"role": "user", "content": "x"}]).result(timeout_s=10).text)
queue.sync.close()
"""
    assert run(code, installed) == "hello"


def test_the_wheel_carries_its_scripts(installed: Path) -> None:
    code = """
import asyncio
from promptmill_client import PromptQueue

async def main():
    async with PromptQueue("redis://localhost:1/0", timeout_s=0.01) as queue:
        await queue._store()

asyncio.run(main())
print("loaded")
"""
    assert run(code, installed) == "loaded"


def test_both_names_offer_the_same(installed: Path) -> None:
    names = run("import promptmill_client; print(*promptmill_client.__all__)", installed).split()
    assert names == tasks.__all__
    assert all(hasattr(tasks, name) for name in names)
    assert len(set(names)) == len(names)


def test_the_engine_has_the_same_version_and_python() -> None:
    engine, client = (
        tomllib.loads((ROOT / path).read_text())["project"]
        for path in ("pyproject.toml", "packaging/client/pyproject.toml")
    )
    assert [client[name] for name in ("version", "requires-python")] == [
        engine[name] for name in ("version", "requires-python")
    ]
