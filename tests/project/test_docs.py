"""What README and docs say, holds: links lead somewhere, the files, commands and options that they name exist."""

from __future__ import annotations

import inspect
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from typer.testing import CliRunner

from tasks import PromptQueue
from tasks.errors import ERROR_CODES, failure_class
from workers.cli import app as promptmill

ROOT = Path(__file__).parents[2]
NOTEBOOK = sorted((ROOT / "bench" / "notebook").glob("*.md"))
"""What was written on a day stays as it was written: the files that it names may have moved since."""

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "README.md",
    ROOT / "packaging" / "client" / "README.md",
    *NOTEBOOK,
]
CURRENT = [page for page in PAGES if page not in NOTEBOOK]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
WIDEST = 100


@cache
def anchors(page: Path) -> frozenset[str]:
    """What a link to a heading of the page ends with, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", outside_fences(page), re.MULTILINE)
    shown = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in shown)


def outside_fences(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def files() -> frozenset[str]:
    """Everything that is not ignored, by path."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return frozenset(name for name in listed.stdout.splitlines() if (ROOT / name).exists())


def offending(pages: list[Path], names: Callable[[Path], Iterable[str]]) -> dict[str, list[str]]:
    """By page, what `names` finds wrong with it."""
    found = {str(page.relative_to(ROOT)): list(names(page)) for page in pages}
    return {page: wrong for page, wrong in found.items() if wrong}


def test_links_lead_to_files_and_headings() -> None:
    def broken(page: Path) -> Iterator[str]:
        for link in re.findall(r"\]\(([^)\s]*)\)", outside_fences(page)):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            if "://" not in link and not (target.exists() and (not heading or heading in anchors(target))):
                yield link

    assert offending(PAGES, broken) == {}


def test_files_of_ours_that_are_named_exist() -> None:
    """Also those named by their last part alone (`store.lua`, `test_failover.py`)."""
    known = {path.rpartition("/")[2] for path in files()} | {"first_job.py"}

    def missing(page: Path) -> Iterator[str]:
        text = page.read_text()
        paths = re.findall(
            r"(?<![\w./-])((?:workers|tasks|config|tests|bench|docs|examples|packaging)/[\w./-]*\w\.\w+)", text
        )
        yield from (path for path in paths if path not in files())
        yield from (name for name in re.findall(r"`(\w+\.(?:py|lua))`", text) if name not in known)

    assert offending(CURRENT, missing) == {}


def test_paths_in_docstrings_and_comments_exist() -> None:
    code = [
        name
        for name in files()
        if name.endswith((".py", ".lua")) and name.startswith(("workers/", "tasks/", "config/"))
    ]
    named = {
        (name, path)
        for name in code
        for path in re.findall(
            r"\b(?:tests/)?(?:docs|workers|tasks|config)/[\w./-]+\.(?:md|py|lua)\b", (ROOT / name).read_text()
        )
    }
    assert sorted((name, path) for name, path in named if path not in files()) == []


def test_decision_records_have_the_same_headings() -> None:
    def unlike(record: Path) -> Iterator[str]:
        text = record.read_text()
        if re.findall(r"^## (.+)$", text, re.MULTILINE) != ["Context", "Decision", "Consequences"]:
            yield "its headings"
        if not re.search(r"^Date: \d{4}-\d\d-\d\d\. Status: \w+\.$", text, re.MULTILINE):
            yield "its date and status"

    assert offending(sorted((ROOT / "docs" / "adr").glob("*.md")), unlike) == {}


def test_prose_wraps() -> None:
    def long_lines(page: Path) -> Iterator[str]:
        for line in outside_fences(page).splitlines():
            if not line.startswith("|") and len(line) > WIDEST and " " in line.strip()[:WIDEST]:
                yield line

    assert offending(PAGES, long_lines) == {}


def test_the_client_reference_lists_each_argument_of_submit() -> None:
    section = (ROOT / "docs" / "reference" / "client.md").read_text().split("\n## `submit`\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE)
    parameters = inspect.signature(PromptQueue.submit).parameters.values()
    named = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    expected = {
        name: "required" if default is inspect.Parameter.empty else f"`{default!r}`".replace("'", '"')
        for name, default in named.items()
    }
    assert dict(listed) == expected


def test_the_errors_reference_lists_each_code_with_its_class() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    listed = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| ", page.split("\n## Error codes\n")[1].split("\n## ")[0], re.MULTILINE
    )
    assert listed == [(code, failure_class(code).__name__) for code in ERROR_CODES]


def test_the_run_reference_lists_each_option() -> None:
    page = (ROOT / "docs" / "reference" / "run.md").read_text()
    listed = re.findall(r"(?<!\S)`(--[a-z-]+)`", "\n".join(re.findall(r"^\| (`.+?) \|", page, re.MULTILINE)))
    shown = set(re.findall(r"(?<!\S)--[a-z-]+", help_of("run"))) - {"--help"}
    assert set(listed) == shown


def test_make_targets_exist() -> None:
    def unknown(page: Path) -> set[str]:
        text = page.read_text()
        named = re.findall(r"`make ([a-z-]+)", text) + re.findall(r"^\$ make ([a-z-]+)", text, re.MULTILINE)
        return set(named) - MAKE_TARGETS

    assert offending(PAGES, unknown) == {}


@cache
def help_of(command: str) -> str:
    result = CliRunner().invoke(promptmill, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.output


def test_options_of_promptmill_exist() -> None:
    def unknown(page: Path) -> Iterator[str]:
        for command, rest in re.findall(
            r"promptmill (run|simulate|doctor|limits|metrics|status|cancel|dead)\b([^`\n]*)", page.read_text()
        ):
            for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
                if option not in help_of(command):
                    yield f"promptmill {command} {option}"

    assert offending(PAGES, unknown) == {}
