"""What every bench shares: kept results, a digest of the code that made them, processes, a search for settings.

A result is one JSON line of ``docs/results/NAME.jsonl`` under its whole configuration, with commit, digest and machine.
Results of older code stay; their rows are marked in the tables. Delete a line to measure it again.
"""

import ast
import datetime
import hashlib
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import threading
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self, TypeVar

from bitcipher.files import replacing
from warmstart.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("benchmarks", "bitcipher", "examples", "warmstart")
NEUTRAL = (
    "benchmarks.harness",
    "benchmarks.render",
    "benchmarks.needs",
    "benchmarks.claims",
    "benchmarks.lm_section",
    "benchmarks.beside_section",
    "benchmarks.lamp_section",
    "benchmarks.saturation_section",
    "benchmarks.plan",
    "benchmarks.throughput_section",
    "warmstart.progress",
)  # cannot change results
OLDER = " †"  # marks a row whose result was made by other code

T = TypeVar("T")


class Results:
    """Results of one bench, each written to disk as soon as it is made.

    Parameters
    ----------
    path : Path or None
        A file of JSON lines, read if it exists; None keeps results in memory only.
    modules : sequence of str
        Modules that make the results, for `code_digest`.
    progress : callable of (stage, done, total), optional
        Told the configuration of every result that is made.
    """

    def __init__(self, path: Path | None, *modules: str, progress: Progress | None = None) -> None:
        self.path, self.code, self.lock, self.progress = path, code_digest(*modules), threading.Lock(), progress
        self.used: list[dict[str, Any]] = []  # the records that this process asked for, in order
        self.records: dict[str, dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path and path.exists() else ""
        self.whole = not text or text.endswith("\n")  # else the file is written anew with the next result
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                record = json.loads(line)
                self.records[_canonical(record["key"])] = {
                    name: record[name] for name in ("key", "result", "commit", "code", "machine", "date")
                }
            except (ValueError, KeyError, TypeError):
                sys.stderr.write(f"{path}, line {number}: expected a result as a JSON object, dropped\n")
                self.whole = False

    def has(self, key: Mapping[str, Any]) -> bool:
        """Return whether a result of this configuration is kept."""
        return _canonical(key) in self.records

    def do(self, key: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        """Return the kept result of a configuration, or make it by ``work()``; a result is what JSON makes of it.

        The key holds everything that decides the result: arm, seed, sizes, rates, precision.
        """
        if not self.has(key):
            if self.progress:
                self.progress(", ".join(f"{name} {value}" for name, value in list(key.items())[:4]), 0, None)
            record = {"key": dict(key), "result": work(), "commit": commit(), "code": self.code}
            record |= {"machine": machine_name(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
            with self.lock:
                self._append(record)
        record = self.records[_canonical(key)]
        if record not in self.used:
            self.used.append(record)
        return record["result"]

    def row(self, key: Mapping[str, Any], work: Callable[[], Any], **labels: Any) -> dict[str, Any]:
        """Return labels, the result of `do`, which is a dict, and its `mark` as one row of a table."""
        return {**labels, **self.do(key, work), "mark": self.mark(key)}

    def mark(self, *keys: Mapping[str, Any]) -> str:
        """Return ` †` if other code than today's made one of these results, else nothing."""
        return OLDER if any(self.records[_canonical(key)]["code"] != self.code for key in keys) else ""

    def stamp(self, command: str) -> str:
        """Return the lines under a section: command, machines, commits, dates, and what ` †` means."""
        machines = dict.fromkeys(record["machine"] for record in self.used)
        commits = dict.fromkeys(record["commit"] for record in self.used)
        dates = sorted({record["date"] for record in self.used})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else "never"
        older = any(record["code"] != self.code for record in self.used)
        note = "\n\n† Made by an earlier state of the code." if older else ""
        return f"`{command}`; {' and '.join(machines)}; commit {', '.join(commits)}; {when}.{note}"

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record) + "\n"
        self.records[_canonical(record["key"])] = json.loads(line)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        appends, self.whole = self.whole, False  # until the line is written
        if appends:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        else:
            with replacing(self.path) as temporary:
                temporary.write_text("".join(json.dumps(each) + "\n" for each in self.records.values()), "utf-8")
        self.whole = True


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


class Workers:
    """Processes that make results, one thread each, as many at a time as there are cores. A context manager.

    Results that are not kept are those of a quick run: they are made in this process, one after the other, since new
    processes would take longer to start than the work does.

    Examples
    --------
    >>> with Workers(Results(None, "benchmarks.harness")) as workers:
    ...     workers.do({"arm": "a"}, max, 2, 3)
    3
    """

    def __init__(self, results: Results, progress: Progress | None = None, processes: int | None = None) -> None:
        self.results, self.progress = results, progress
        self.n = processes or os.cpu_count() or 1

    def __enter__(self) -> Self:
        self.pool: Executor = ThreadPoolExecutor(1)
        if self.results.path is not None:
            self.pool = ProcessPoolExecutor(self.n, get_context("spawn"), initializer=_single_thread)
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def do(self, key: Mapping[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a configuration; if it is not kept, a process makes it by ``function(*arguments)``."""
        result = self.results.do(key, lambda: self.pool.submit(function, *arguments).result())
        if self.progress:
            self.progress(", ".join(str(value) for value in key.values()), 0, None)
        return result

    def together(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Run functions that call `do`, at the same time; return what they return, in order."""
        with ThreadPoolExecutor(max(1, len(jobs))) as threads:
            return list(threads.map(lambda job: job(), jobs))


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function returns in a fresh process, whose peak memory is that of the function.

    Examples
    --------
    >>> alone(max, 2, 3)
    3
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)


def search(
    score: Callable[[dict[str, float]], float], start: Mapping[str, float], trials: int, factor: float = 2.0
) -> tuple[dict[str, float], list[tuple[dict[str, float], float]]]:
    """Choose positive settings by a coordinate search that gives every arm the same number of trials.

    Each setting in turn is divided or multiplied by ``factor`` while the score falls. When no step helps, the factor
    becomes its square root. The search ends after ``trials`` scores, or later, when both neighbours of the best point
    have been tried for every setting: so no chosen value lies at the border of what was tried. A score is a validation
    loss; one that is not finite counts as infinite. The best settings are returned, then all settings with their score.

    Examples
    --------
    >>> best, tried = search(lambda at: (at["rate"] - 3) ** 2, {"rate": 1.0}, trials=6)
    >>> round(best["rate"], 2), len(tried)
    (2.83, 6)
    """
    tried: dict[str, tuple[dict[str, float], float]] = {}

    def at(point: Mapping[str, float]) -> float:
        rounded = {setting: float(f"{value:.4g}") for setting, value in point.items()}
        name = _canonical(rounded)
        if name not in tried:
            value = score(rounded)
            tried[name] = (rounded, value if math.isfinite(value) else math.inf)
        return tried[name][1]

    best, coarse = dict(start), True
    at(best)
    while coarse or len(tried) < trials:
        moved = False
        for setting, step in ((s, f) for s in start for f in (1 / factor, factor)):
            while (coarse or len(tried) < trials) and at(next_ := best | {setting: best[setting] * step}) < at(best):
                best, moved = next_, True
        if not moved:
            coarse, factor = False, math.sqrt(factor)
    return min(tried.values(), key=lambda pair: pair[1])[0], list(tried.values())


@cache
def code_digest(*modules: str) -> str:
    """Return a digest of modules and of all that they import from this project, also inside functions.

    Comments, docstrings and white space do not count.
    """
    pending, sources = list(modules), {}
    while pending:
        name = pending.pop()
        if name not in sources and name not in NEUTRAL:
            path = ROOT.joinpath(*name.split("."))
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            sources[name] = path.read_text(encoding="utf-8")
            pending += _imported(ast.parse(sources[name]))
    code = "\n".join(f"{name} {_essence(sources[name])}" for name in sorted(sources))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def _essence(source: str) -> str:
    """Return source code without docstrings, comments and white space, the same in every version of Python."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            for line in range(node.body[0].lineno - 1, node.body[0].end_lineno or 0):
                lines[line] = ""
    return "".join("".join(lines).split())


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the project's modules that a module imports, and the homes of the names that it takes from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            module = import_module(str(node.module))
            yield module.__name__
            for alias in node.names:
                place = ROOT.joinpath(*str(node.module).split("."), alias.name)
                home = getattr(getattr(module, alias.name, None), "__module__", None)
                if place.is_dir() or place.with_suffix(".py").exists():
                    yield f"{node.module}.{alias.name}"
                elif isinstance(home, str) and home.split(".")[0] in PACKAGES:
                    yield home


@cache
def commit() -> str:
    """Return the short commit of the checkout, with a plus where files differ from it; empty without git."""
    try:
        head, changes = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607 - fixed words
            for command in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", *PACKAGES))
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + "+" * bool(changes)


@cache
def machine_name() -> str:
    """Return processor, number of cores, GPU if there is one, and versions, in words."""
    import torch

    facts = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: *(.*?)\s*$", facts.read_text() if facts.exists() else "", re.M)
    processor = names[0] if names else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, numpy {version('numpy')}, torch {version('torch')}"
    return f"{processor}, {os.cpu_count()} cores{gpu}, {versions}"


def device() -> str:
    """Return where benches train: ``cuda`` if there is a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def precision() -> str:
    """Return the type of matrix products in training: bfloat16 where the machine has instructions for it."""
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def cut(values: Iterable[T], quick: bool, n: int = 1) -> list[T]:
    """Return all values, or the first ``n`` of them in a quick run."""
    return list(values)[: n if quick else None]
