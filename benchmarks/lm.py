"""Language models of counts: n-grams beside KenLM, a cache, classes and a network beside them, presets, cost.

What a user would run is measured through the command line, in a process of its own. The models are compared on
validation text, test text is read at the end. Set the environment variable KENLM to a folder with KenLM's program
`lmplz` to measure it too; without it, kept results are shown.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from benchmarks import counted, leaving_out, lm_section, lmplz, needs, render, texts
from benchmarks.counted import ADDED, CACHED, DEFAULT
from benchmarks.harness import Results, alone
from warmstart.estimators.language_model import PRESETS
from warmstart.progress import Progress
from warmstart.solving import COUNT_CONTEXTS

ORDERS = (2, 3, 4, 5)
LARGE_VOCABULARY = 50_000
PYTHON = "python-docs"  # the text of `warmstart fit` without a corpus
BITS = (128, 256, 512, 1024, 2048, 4096)
RADII = (1, 2, 4, 8)
NETWORKS = (
    "radial,attended", "radial,block", "radial,document", "radial,memory", "radial,block,document",
    "radial,document,memory", "block,document",
)  # fmt: skip
CODE = ("benchmarks.lm", "warmstart.cli", "warmstart.estimators.language_model", "warmstart.corpus")

Row = dict[str, Any]


def networks(quick: bool) -> list[tuple[str, str, str, int | None]]:
    """Return table, options of `fit`, text and the bits for a picture of the models without n-grams."""
    if quick:
        return [("test", "--preset potato --contexts radial", "classics/test.txt", None)]
    wide = ("--bits 4096 --radius 4 --contexts radial", "--contexts radial,memory")
    seen = [*(f"--radius {radius} --contexts radial" for radius in RADII), *(f"--contexts {c}" for c in NETWORKS)]
    arms: list[tuple[str, str, str, int | None]] = [
        *(("test", f"--bits {bits} --contexts radial", "classics/test.txt", bits) for bits in BITS),
        *(("test", options, "classics/test.txt", None) for options in wide),
        *(("valid", options, "classics/valid.txt", None) for options in seen),
        *(("wikitext-2", f"--contexts {c}", "wikitext-2/test.txt", None) for c in ("radial", "radial,memory")),
    ]
    return [(table, f"--preset base {options}", text, bits) for table, options, text, bits in arms]


class Bench:
    """The results of this bench, part by part."""

    def __init__(self, data: Path, results: Results, quick: bool) -> None:
        self.data, self.results, self.quick = data, results, quick
        self.vocabulary = 1024 if quick else 8192
        self.names: Sequence[str] = (texts.TEXTS[0], texts.PUBLISHED) if quick else texts.TEXTS
        self.preset = "potato" if quick else DEFAULT
        self.orders = ORDERS[:1] if quick else ORDERS
        self.order = self.orders[-1]

    @classmethod
    def of(cls, data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> Self:
        """Return the bench with its kept results; each part can be run on its own."""
        results = Results(None if quick else docs / "results" / "lm.jsonl", *CODE, progress=progress)
        return cls(data, results, quick)

    def row(self, key: Row, function: Callable[..., Row], *arguments: Any, **labels: Any) -> Row:
        """Return the result of a function in a process of its own, kept or made; its first argument is the data."""
        return self.results.row(key, partial(alone, function, self.data, *arguments), **labels)

    def about(self, name: str) -> Row:
        """Return the part of a key that says which tokens are read."""
        return {"text": name, "vocabulary": "words" if name == texts.PUBLISHED else self.vocabulary}

    def ngrams(self) -> list[Row]:
        """Measure n-grams of every text and order, and `lmplz` beside them if it is there or was."""
        binaries, rows = needs.kenlm(), []
        for name in self.names:
            for order in self.orders:
                key, arguments = {"order": order, **self.about(name)}, (name, self.vocabulary, order)
                row = self.row({"ngrams": "Kneser-Ney", **key}, counted.kneser_ney, *arguments, text=name, order=order)
                theirs = {"ngrams": "lmplz", **key, "memory": lmplz.MEMORY}
                row["lmplz"] = None
                if binaries or self.results.has(theirs):
                    row["lmplz"] = self.results.row(
                        theirs, partial(alone, lmplz.measure, binaries, self.data, *arguments)
                    )
                rows.append(row)
        return rows

    def experts(self) -> dict[str, list[Row]]:
        """Add the experts one by one, for every text; a network over 33,279 words is left out."""
        added = {CACHED: ADDED[CACHED]} if self.quick else ADDED

        def own(name: str, contexts: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(c for c in contexts if c in COUNT_CONTEXTS) if name == texts.PUBLISHED else contexts

        return {
            name: [
                self.row(
                    {"mixture": self.preset, "contexts": own(name, contexts), **self.about(name)},
                    counted.mixture,
                    name,
                    self.vocabulary,
                    self.preset,
                    own(name, contexts),
                    experts=title,
                )
                for title, contexts in added.items()
            ]
            for name in self.names
        }

    def presets(self) -> list[Row]:
        """Fit and evaluate every preset by the command line."""
        names = [self.preset] if self.quick else PRESETS
        return [self.command(f"--preset {name}", "classics/test.txt", preset=name) for name in names]

    def command(self, options: str, text: str, /, **labels: Any) -> Row:
        """Fit and evaluate a model by the command line."""
        split = texts.SPLITS.get(text.split("/")[0])
        key = {"fit": options, "vocabulary": self.vocabulary, "text": text, "split": split}
        return self.results.row(key, partial(command, self.data, options, self.vocabulary, text), **labels)

    def networks(self) -> dict[str, list[Row]]:
        """Fit and evaluate the models without n-grams."""
        tables: dict[str, list[Row]] = {}
        for table, options, text, bits in networks(self.quick):
            tables.setdefault(table, []).append(self.command(options, text, options=options, bits=bits))
        return tables

    def corpus(self) -> Row:
        """Train a tokenizer and encode a text."""
        name = texts.TEXTS[0]
        return self.row({"corpus": "built", **self.about(name)}, counted.corpus_seconds, name, self.vocabulary)

    def rows(self) -> Row:
        """Measure whole distributions of the next token, with a large vocabulary."""
        words = self.vocabulary if self.quick else LARGE_VOCABULARY
        key = {"rows": counted.ROWS, "order": self.order, "text": texts.TEXTS[0], "vocabulary": words}
        return self.row(key, counted.rows, words, self.order)

    def leaving_out(self) -> dict[str, Row]:
        """Fit the gate on counted text of which more or less is left out."""
        arms = [*leaving_out.ARMS, *leaving_out.HALVES]
        return {
            name: self.row(
                {"leaving out": arms, "order": self.order, **self.about(name)},
                leaving_out.gates,
                name,
                self.vocabulary,
                self.order,
            )
            for name in self.names[: 1 if self.quick else 2]
        }

    def python(self) -> Row | None:
        """Fit the default on Python's documentation; nothing in a quick run."""
        return None if self.quick else self.command(f"--preset {self.preset}", PYTHON)

    def parts(self) -> dict[str, Any]:
        """Return all parts by name."""
        names = ("ngrams", "corpus", "rows", "experts", "leaving_out", "presets", "python", "networks")
        return {name: getattr(self, name)() for name in names}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure every part; ``quick``: the smallest of each."""
    bench = Bench.of(data, docs, quick, progress)
    parts = bench.parts()
    if not quick:
        lm_section.pictures(docs / "images", parts)
        conclusion, body = lm_section.conclusion(parts), lm_section.body(parts)
        render.write(docs, "lm", "Language models of counts", conclusion, body, bench.results)
    return parts


def command(data: Path, options: str, vocabulary: int, text: str) -> Row:
    """Fit and evaluate one model by the command line; raise RuntimeError with its message if it fails."""
    name, _, file = text.partition("/")
    split = ["--split-documents", texts.SPLITS[name]] if file else []
    train, test = ([str(texts.source(data, name, "train"))], [str(data / text)]) if file else ([], [])
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-", ignore_cleanup_errors=True) as folder:
        model = Path(folder, "model")
        size = ["--vocab-size", str(vocabulary)]
        fit = _warmstart("fit", *train, "-o", str(model), *split, *size, *options.split())
        scores = _warmstart("eval", str(model), *test, *split)
        n_bytes = sum(path.stat().st_size for path in model.iterdir())
    return {"fit": {key: value for key, value in fit.items() if key != "model"}, "eval": scores, "bytes": n_bytes}


def _warmstart(*arguments: str) -> Row:
    line = [sys.executable, "-m", "warmstart.cli", *arguments, "--json", "--quiet"]
    result = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if result.returncode:
        raise RuntimeError(f"{' '.join(line)} failed: {result.stderr.strip()}")
    return dict(json.loads(result.stdout))
