"""docker-compose.yml without docker: each service's command as a process, with the files and variables it would have.

What is not the same: the image's Python and Redis are this machine's, and a service's name and port are a free port on
the loopback interface.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

from tests.support.ports import free_port
from workers.commands.run.processes.redis_server import redis_binary

__all__ = ["ROOT", "Deployment", "services"]

ROOT = Path(__file__).parents[3]
VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::-([^}]*))?\})")


def services(environ: Mapping[str, str]) -> dict[str, Any]:
    """The file's services, with the variables filled in as compose does."""

    def value_of(found: re.Match[str]) -> str:
        dollar, name, default = found.groups()
        return dollar or environ.get(name) or default or ""

    def filled(node: Any) -> Any:
        match node:
            case str():
                return VARIABLE.sub(value_of, node)
            case dict():
                return {key: filled(value) for key, value in node.items()}
            case list():
                return [filled(value) for value in node]
        return node

    found: dict[str, Any] = filled(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))["services"]
    return found


class Deployment:
    """A checkout with an `.env`, and the shell in which `docker compose up` is typed. Use it with `with`."""

    def __init__(self, directory: Path, *, env_file: Path, environ: Mapping[str, str] | None = None) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self._variables = {name: value or "" for name, value in dotenv_values(env_file).items()}
        self._services = services({**self._variables, **(environ or {})})
        self._ports = {name: free_port() for name in self._services}
        self._closing = contextlib.ExitStack()
        self._image_variables: dict[str, str] = {}
        self.image = directory / "app"
        self.image.mkdir()
        for line in (ROOT / "Dockerfile").read_text().splitlines():
            match line.split():
                case ["COPY", *sources, target]:
                    self._copy(sources, target)
                case ["ENV", *pairs]:
                    self._image_variables |= dict(pair.split("=", 1) for pair in pairs)

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _copy(self, sources: list[str], target: str) -> None:
        into = self.image / target
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                into.mkdir(exist_ok=True)
                shutil.copy(ROOT / source, into)
        for file in into.rglob("*.toml"):
            file.write_text(self._here(file.read_text()))

    def _here(self, text: str) -> str:
        """Services by the addresses that they have here."""
        names = "|".join(self._services)
        return re.sub(rf"\b({names}):\d+", lambda found: f"127.0.0.1:{self._ports[found[1]]}", text)

    def url(self, service: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self._ports[service]}"

    def environ(self, service: str) -> dict[str, str]:
        """What the service's process finds in its environment."""
        own = self._services[service].get("environment", {})
        from_file = self._variables if "env_file" in self._services[service] else {}
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        here = {name: self._here(value) for name, value in own.items()}
        return {"PATH": path, "HOME": str(self.directory), **self._image_variables, **from_file, **here}

    def command(self, service: str) -> list[str]:
        entry = self._services[service]
        if service == "redis":
            program, *options = entry["command"]
            assert program == "redis-server"
            place = ["--port", str(self._ports["redis"]), "--bind", "127.0.0.1", "--dir", str(self.directory)]
            return [str(redis_binary()), *options, *place]
        command = [word.replace("0.0.0.0", "127.0.0.1") for word in entry["command"]]
        for published in entry.get("ports", []):
            port = published.rpartition(":")[2]
            command = [re.sub(rf"\b{port}\b", str(self._ports[service]), word) for word in command]
        return command

    def start(self, service: str, *options: str) -> Callable[[], str]:
        """Start it; returns what reads its log. It is killed at the end."""
        log = self.directory / f"{service}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self.command(service), *options],
                cwd=self.image,
                env=self.environ(service),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._closing.callback(process.wait)
        self._closing.callback(process.kill)

        def text() -> str:
            written = log.read_text(errors="replace")
            assert process.poll() is None, f"{service} has ended:\n{written}"
            return written

        return text

    def is_healthy(self, service: str) -> bool:
        """What its health check says."""
        kind, program, *arguments = self._services[service]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "redis-cli")
        client = redis_binary().with_name(program)
        command = [str(client), "-p", str(self._ports[service]), *arguments]
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0
