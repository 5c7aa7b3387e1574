"""What the benches share: how results become JSON lines, a table, a section of docs/benchmarks.md."""

import ast
import datetime
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from warmstart.errors import InputError
from warmstart.files import replacing

ROOT = Path(__file__).resolve().parents[1]


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table: columns of numbers to the right, floats with three decimals, None as a dash.

    Examples
    --------
    >>> print(table(["model", "nats"], [["a", 0.5], ["b", None]]), end="")
    | model | nats |
    |---|---:|
    | a | 0.500 |
    | b | - |
    """
    numeric = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]
    lines = [[_cell(cell) for cell in row] for row in rows]
    body = "".join(f"| {' | '.join(line)} |\n" for line in [list(headers), *lines])
    head, rest = body.split("\n", 1)
    return f"{head}\n|{'|'.join('---:' if n else '---' for n in numeric)}|\n{rest}"


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation of the values of several seeds; of one, the value.

    Examples
    --------
    >>> spread([1.0, 2.0, 3.0]), spread([1.0])
    ('2.000 ± 1.000', '1.000')
    """
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def code_digest(*parts: str) -> str:
    """Return a digest of packages and modules without benches, comments, docstrings: a result stands for its code."""
    paths = [ROOT / part for part in parts]
    files = sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))
    trees = [ast.parse(file.read_bytes()) for file in files if file.parent.name != "bench"]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            del node.body[0]
    return hashlib.sha256("".join(map(ast.dump, trees)).encode()).hexdigest()[:16]


class Book:
    """Results by name, kept on disk after each; those of other code are made again.

    The file has a line for each, a JSON object of ``name``, ``code`` and ``result``; the last line of a name counts.
    Lines are appended. A line that a kill has torn is named on stderr and dropped.

    Parameters
    ----------
    path : Path or None
        The file, read if it is there; None keeps nothing.
    code : str
        What results stand for, such as a `code_digest`.
    """

    def __init__(self, path: Path | None, code: str) -> None:
        self.path, self.code, self.lock = path, code, threading.Lock()
        self.done: dict[str, dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path and path.exists() else ""
        self.whole = not text or text.endswith("\n")  # so that a line can be appended
        for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
            try:
                record = json.loads(line)
                self.done[record["name"]] = {key: record[key] for key in ("name", "code", "result")}
            except (ValueError, KeyError, TypeError):
                sys.stderr.write(f"{path}, line {number}: expected a result as a JSON object, dropped\n")
                self.whole = False

    def has(self, name: str) -> bool:
        """Whether a result of this code is kept."""
        return name in self.done and self.done[name]["code"] == self.code

    def do(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the kept result of ``work()``, or work; a result is what JSON makes of it, kept or new."""
        if not self.has(name):
            result = work()
            with self.lock:
                self._keep({"name": name, "code": self.code, "result": result})
        return self.done[name]["result"]

    def _keep(self, record: dict[str, Any]) -> None:
        line = json.dumps(record) + "\n"
        superseded = record["name"] in self.done
        self.done[record["name"]] = json.loads(line)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if superseded or not self.whole:
            with replacing(self.path) as temporary:
                temporary.write_text("".join(json.dumps(each) + "\n" for each in self.done.values()), encoding="utf-8")
        else:
            self.whole = False
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        self.whole = True


def stamp(command: str) -> str:
    """Return one line that says with what and on what the results were made."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = " with changes" if commit and _git("status", "--porcelain", "warmstart", "bitcipher") else ""
    parts = [
        f"`{command}`",
        f"{_processor()}, {os.cpu_count()} cores",
        f"Python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in ("numpy", "torch")),
        f"commit {commit}{changed}" if commit else "no commit",
        datetime.datetime.now(datetime.UTC).date().isoformat(),
    ]
    return "; ".join(parts) + "."


def _processor() -> str:
    """Name of the CPU, as Linux or else Python knows it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str:
    """Version of a package without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _git(*arguments: str) -> str:
    """Output of git in the project, empty where there is no git or no commit."""
    try:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603, S607 - fixed words
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def write(docs: Path, name: str, body: str) -> None:
    """Write the section of a bench in ``docs/benchmarks.md``, stamped."""
    write_section(docs, name, f"{body.rstrip()}\n\n{stamp(f'python -m benchmarks {name}')}")


def write_section(docs: Path, name: str, body: str) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` in docs/benchmarks.md, or append it.

    Raises
    ------
    InputError
        The section begins and does not end.
    """
    path = docs / "benchmarks.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if found and not ended:
        raise InputError(f"{path}: expected {last} after {first}, found none; add it or take both out")
    if not found:
        before, after = text.rstrip("\n") + "\n\n", "\n"
    with replacing(path) as temporary:
        temporary.write_text(f"{before}{first}\n{body.strip()}\n{last}{after}", encoding="utf-8")
