"""The presets on small machines: exported for numpy alone and as a table in C; their size, memory and speed.

Every model is read by a fresh process that may load numpy only. Its memory and the time of the import are those beyond
numpy's. Tokens are read one by one, with the whole row of the next token before each.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import render, texts
from benchmarks.counted import CORES
from benchmarks.harness import ROOT, Results, alone
from warmstart.corpus import Corpus
from warmstart.estimators.language_model import PRESETS, WarmStartLM
from warmstart.export import FLASH, export
from warmstart.progress import Progress

NAME = "classics"
TOKENS = 2000  # that are read
ADDED = 1000  # that are counted further
MIB = 2**20
CODE = ("benchmarks.edge", "warmstart.export", "warmstart.edge.model", "warmstart.edge.counting")
SOURCES = ROOT / "examples" / "edge"
PROBE = """
import json, resource, sys, time
import numpy
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
memory, began = resident(), time.perf_counter()
from warmstart.edge import EdgeLM
imported = time.perf_counter()
model = EdgeLM.open(sys.argv[1])
opened = time.perf_counter()
text = open(sys.argv[2], encoding="utf-8").read(12 * int(sys.argv[3]))  # characters, enough for so many tokens
ids = model.tokenizer.encode(text)[: int(sys.argv[3])]
encoded = time.perf_counter()
for token in ids:
    model.row()
    model.advance([token])
read = time.perf_counter()
result = {"import_seconds": imported - began, "open_seconds": opened - imported, "tokens": len(ids)}
result |= {"ms_a_token": 1000 * (read - encoded) / len(ids), "memory_bytes": resident() - memory}
model.generate(" ", 1)
result |= {"sampling_memory_bytes": resident() - memory, "ids": ids, "separator": model.separator}
began = time.perf_counter()
model.count([ids[: int(sys.argv[4])]])
result |= {"count_seconds": time.perf_counter() - began}
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
result |= {"count_memory_bytes": 1024 * int(peak.split()[1])}
print(json.dumps(result))
"""


def measure(data: Path, preset: str, vocabulary: int, tokens: int) -> dict[str, Any]:
    """Fit a preset and measure it.

    Returns
    -------
    dict
        ``experts``; ``bytes`` of the model for numpy, ``counts_bytes`` of what it counts further with,
        ``table_bytes`` of the table in C; ``left_out`` of the table; what the probe measures;
        ``c_ms_a_token``: None without gcc.
    """
    corpus = Corpus.build(texts.source(data, NAME, "train"), vocab_size=vocabulary, split_documents=texts.SPLITS[NAME])
    model = WarmStartLM(preset, n_jobs=CORES).fit(corpus)
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-") as work:
        folder, table = Path(work, "edge"), Path(work, "table.bin")
        report, in_c = export(model, folder, "numpy"), export(model, table, "c")
        result = {
            "experts": report["experts"],
            "bytes": report["bytes"]["model.bin"],
            "counts_bytes": report["bytes"]["counts.bin"],
            "table_bytes": in_c["bytes"],
            "left_out": in_c["left_out"],
        }
        result |= probe(folder, texts.source(data, NAME, "test"), tokens)
        ids = result.pop("ids")
        return result | {"c_ms_a_token": c_speed(table, [*ids, result.pop("separator")], Path(work))}


def probe(folder: Path, text: Path, tokens: int) -> dict[str, Any]:
    """Return what a fresh process measures."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROBE, str(folder), str(text), str(tokens), str(ADDED)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - our own
    return dict(json.loads(done.stdout))


def c_speed(table: Path, ids: list[int], folder: Path) -> float | None:
    """Return the milliseconds a token of examples/edge/predict.c; None without gcc."""
    gcc, program = shutil.which("gcc"), folder / "predict"
    if gcc is None:
        return None
    sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
    subprocess.run([gcc, "-std=c99", "-O2", "-o", str(program), *sources], check=True)  # noqa: S603 - our own files
    command, words = [str(program), str(table)], " ".join(map(str, ids))
    done = subprocess.run(command, input=words, text=True, capture_output=True, check=True)  # noqa: S603 - our own
    return float(done.stderr.split()[0])


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure every preset."""
    results = Results(None if quick else docs / "results" / "edge.jsonl", *CODE, progress=progress)
    vocabulary, tokens = (512, 100) if quick else (8192, TOKENS)
    rows = []
    for preset in ["potato"] if quick else PRESETS:
        key = {"preset": preset, "text": NAME, "vocabulary": vocabulary, "tokens": tokens, "added": ADDED}
        arguments = data, preset, vocabulary, tokens
        rows.append(
            results.row(key, lambda a=arguments: measure(*a) if quick else alone(measure, *a), preset=preset)  # type: ignore[misc]
        )
    if not quick:
        render.write(docs, "edge", "Small machines", *section(rows), results)
    return {"presets": rows}


def section(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the conclusion and the body of the section."""
    potato = rows[0]
    conclusion = (
        f"With numpy alone `{potato['preset']}` takes {potato['memory_bytes'] / MIB:.1f} MiB of memory beyond numpy's, "
        f"{potato['ms_a_token']:.2f} ms a token and {potato['import_seconds']:.3f} s to import; its table for a board "
        f"has {potato['table_bytes'] / 1e6:.1f} MB."
    )
    numpy: dict[str, str | Callable[[Any], Any]] = {
        "preset": "preset",
        "file (MB)": lambda row: row["bytes"] / 1e6,
        "memory (MiB)": lambda row: row["memory_bytes"] / MIB,
        "import (s)": "import_seconds",
        "open (s)": "open_seconds",
        "ms a token": "ms_a_token",
        "counts (MB)": lambda row: row["counts_bytes"] / 1e6,
        f"count {ADDED:,} tokens more (s)": "count_seconds",
        "peak memory of it (MiB)": lambda row: row["count_memory_bytes"] / MIB,
    }
    table: dict[str, str | Callable[[Any], Any]] = {
        "preset": "preset",
        "table (MB)": lambda row: row["table_bytes"] / 1e6,
        f"fits {FLASH / 1e6:.0f} MB": lambda row: "yes" if row["table_bytes"] <= FLASH else "no",
        "ms a token": "c_ms_a_token",
        "left out": lambda row: ", ".join(row["left_out"]) or "nothing",
    }
    sampling = (potato["sampling_memory_bytes"] - potato["memory_bytes"]) / MIB
    body = f"""`warmstart export --format numpy` of the presets, fitted on the classics, read by `warmstart.edge` in a
fresh process, one thread: the first {potato["tokens"]:,} tokens of the test books as one document, token by token.
Memory is what is resident beyond numpy's, pages of the mapped file included, which the system may drop when it needs
them; import is the time beyond numpy's.
Sampling loads numpy's own random numbers, {sampling:.1f} MiB more. To count further, all n-grams are loaded, the new
ones merged, and the whole solved again; the gate, classes and the network stay.

{render.rows_table(numpy, rows)}
`warmstart export --format c`, read by `examples/edge/warmstart.c`, gcc -O2 on the same machine, the same tokens. A
board needs 8 bytes of memory for each token of the vocabulary beside the document:

{render.rows_table(table, rows)}"""
    return conclusion, body
