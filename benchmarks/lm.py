"""Near-shallow language models of the classics: presets, bits, radius and contexts beside n-grams.

Every arm is the command line itself in a process of its own, so seconds and peak memory are what a user gets. Radius
and contexts are compared on validation text. Presets, bits and the memory context are measured on test text, the memory
context on WikiText-2 too.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import render
from benchmarks.harness import Results
from warmstart.near_shallow import PRESETS
from warmstart.progress import Progress

BITS = (128, 256, 512, 1024, 2048, 4096)
RADII = (1, 2, 4, 8)
CONTEXTS = (
    "radial", "radial,attended", "radial,block", "radial,document", "radial,memory", "radial,block,document",
    "radial,document,memory", "block,document",
)  # fmt: skip
SPLITS = {"classics": r"\n\n", "wikitext-2": r"\n(?= = [^=])"}  # a blank line between books, a heading
CODE = ("benchmarks.lm", "warmstart.estimators.language_model", "warmstart.corpus")


def arms(quick: bool) -> list[tuple[str, str, str]]:
    """Return table, options of `fit` and text of all arms; the first is the default and tokenises the corpus."""
    test, valid = "classics/test.txt", "classics/valid.txt"
    if quick:
        return [("presets", "--preset potato", test)]
    return [
        ("presets", "--preset base --contexts radial,document", test),
        *(("presets", f"--preset {name} --contexts radial,block,document", test) for name in PRESETS),
        *(("bits", f"--bits {bits} --contexts radial", test) for bits in BITS),
        ("bits", "--bits 4096 --radius 4 --contexts radial", test),
        *(("radius", f"--radius {radius} --contexts radial", valid) for radius in RADII),
        *(("contexts", f"--contexts {contexts}", valid) for contexts in CONTEXTS),
        *(("memory", f"--contexts {c}", f"{text}/test.txt") for text in SPLITS for c in ("radial", "radial,memory")),
    ]


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Fit and evaluate every arm."""
    results = Results(None if quick else docs / "results" / "lm.jsonl", *CODE, progress=progress)
    vocabulary = 1024 if quick else 8192
    tables: dict[str, list[dict[str, Any]]] = {}
    for table, options, text in arms(quick):
        key = {"fit": options, "vocabulary": vocabulary, "text": text, "split": SPLITS[text.split("/")[0]]}
        row = results.row(key, partial(_arm, data, options, vocabulary, text), options=options, text=text)
        row["perplexity"] = row["eval"]["perplexity"]
        tables.setdefault(table, []).append(row)
    if not quick:
        rows = tables["bits"][: len(BITS)]
        lines: dict[str, Any] = {"warm start, radius 2": (BITS, [row["perplexity"] for row in rows])}
        for name in ("unigram", "bigram"):
            level = rows[0]["eval"][f"{name}_perplexity"]
            lines[f"{name}, {level:.0f}"] = (BITS[0], BITS[-1]), (level, level)
        panels, styles = {"test books, no gradient step": lines}, {"warm start, radius 2": {"marker": "o"}}
        render.curves(docs / "images" / "lm_bits.png", panels, "bits", "perplexity", styles=styles, log="xy")
        render.write(docs, "lm", "Language models of the classics", *_section(tables), results)
    return {"arms": tables}


def _arm(data: Path, options: str, vocabulary: int, text: str) -> dict[str, Any]:
    """Fit and evaluate one arm by the command line; raise RuntimeError with its message if it fails."""
    source = (data / text).parent
    split = ("--split-documents", SPLITS[source.name])
    train = next(source / name for name in ("train.txt.xz", "train.txt") if (source / name).exists())
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-") as folder:
        model = str(Path(folder) / "model")
        fit = _warmstart("fit", str(train), "-o", model, *split, "--vocab-size", str(vocabulary), *options.split())
        scores = _warmstart("eval", model, str(data / text), *split)
    return {"fit": {name: value for name, value in fit.items() if name != "model"}, "eval": scores}


def _warmstart(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "warmstart.cli", *arguments, "--json", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return dict(json.loads(result.stdout))


COLUMNS: dict[str, str | Callable[[dict[str, Any]], Any]] = {
    "options of `fit`": lambda row: f"`{row['options']}`",
    "weights": lambda row: row["fit"]["parameters"],
    "perplexity": "perplexity",
    "/ unigram": lambda row: row["eval"]["perplexity"] / row["eval"]["unigram_perplexity"],
    "/ bigram": lambda row: row["eval"]["perplexity"] / row["eval"]["bigram_perplexity"],
    "bits a byte": lambda row: row["eval"]["bits_per_byte"],
    "fit (s)": lambda row: sum(row["fit"]["seconds"].values()),
    "GiB": lambda row: row["fit"]["peak_memory_bytes"] / 2**30,
}


def _section(tables: dict[str, list[dict[str, Any]]]) -> tuple[str, str]:
    text = {name: render.rows_table(COLUMNS, rows) for name, rows in tables.items()}
    text["memory"] = render.rows_table({"text": lambda row: row["text"].split("/")[0], **COLUMNS}, tables["memory"])
    fit, scores = tables["presets"][0]["fit"], tables["presets"][0]["eval"]
    base, large, widest = (tables[t][i]["perplexity"] for t, i in (("presets", 0), ("presets", -1), ("bits", -1)))
    radial, memory = (row["perplexity"] for row in tables["memory"][:2])
    conclusion = (
        f"Without a gradient step, perplexity on the test books is {base:.0f} by default and {large:.0f} for `large`; "
        f"a unigram model has {scores['unigram_perplexity']:.0f}; a discounted bigram model "
        f"({scores['bigram_perplexity']:.0f}) is better than all of them but the widest ({widest:.0f}); only the "
        f"context `memory` improves on `radial` by more than 1%, by {1 - memory / radial:.0%}."
    )
    body = f"""{fit["tokens"]:,} training tokens (byte-level BPE, {fit["vocab_size"]:,} in the vocabulary),
{scores["tokens"]:,} test tokens. No gradient step. "/ unigram" and "/ bigram" divide the perplexity by that of the
n-gram model on the same text; the bigram has absolute discounting. "GiB" is the peak memory. The first row trains the
tokenizer and encodes the text, the other rows find it in the cache.

Presets, test books:

{text["presets"]}
Bits, radial context alone, test books:

{text["bits"]}
![Perplexity over bits](images/lm_bits.png)

Radius, radial context alone, validation books:

{text["radius"]}
Contexts, validation books:

{text["contexts"]}
The memory context (a delta rule without trained weights, reset at the start of every document), test text:

{text["memory"]}"""
    return conclusion, body
