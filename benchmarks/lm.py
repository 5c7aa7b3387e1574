"""Language model on the classics (10 M words): every preset, bits, radius and set of contexts, beside n-grams.

Every arm is the command line itself in a process of its own, so seconds and peak memory are what a user gets. Radius
and contexts are compared on validation text; test text is read for presets, bits, and the memory context, on WikiText-2
too. Finished arms are kept in ``docs/results/lm.jsonl`` and not run again by the same code.
"""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report
from warmstart import figures
from warmstart.near_shallow import PRESETS
from warmstart.progress import Progress

BITS = (128, 256, 512, 1024, 2048, 4096)
RADII = (1, 2, 4, 8)
CONTEXTS = (
    "radial", "radial,attended", "radial,block", "radial,document", "radial,memory", "radial,block,document",
    "radial,document,memory", "block,document",
)  # fmt: skip
SPLITS = {"classics": r"\n\n", "wikitext-2": r"\n(?= = [^=])"}  # a blank line between books, a heading
READING = ("documents", "tokenizer", "corpus", "counts", "contexts")
SOLVING = ("accumulators", "_kernels", "solution", "attention", "language_model", "estimators/language_model")
CODE = ("bitcipher/codes.py", *(f"warmstart/{name}.py" for name in READING + SOLVING))

Arm = tuple[str, list[str], str]  # table, arguments of fit, text it is scored on


def arms(quick: bool) -> list[Arm]:
    """Return all arms; the first is the default and is the one that tokenises the corpus."""
    test, valid = "classics/test.txt", "classics/valid.txt"
    if quick:
        few = ["--vocab-size", "1024"]
        options = (["--preset", "potato", *few], ["--bits", "128", "--contexts", "radial", *few])
        return [("presets", option, test) for option in options]
    names = ["base", *(name for name in PRESETS if name != "base")]
    presets = [("presets", ["--preset", name], test) for name in names]
    bits = [("bits", ["--bits", str(b), "--contexts", "radial"], test) for b in BITS]
    radii = [("radius", ["--radius", str(r), "--contexts", "radial"], valid) for r in RADII]
    wide = [("bits", ["--bits", "4096", "--radius", "4", "--contexts", "radial"], test)]
    contexts = [("contexts", ["--contexts", names], valid) for names in CONTEXTS]
    memory = [("memory", ["--contexts", c], f"{t}/test.txt") for t in SPLITS for c in ("radial", "radial,memory")]
    return presets + bits + wide + radii + contexts + memory


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run all arms, write the tables and the plot; ``quick``: two small models, nothing is written.

    Raises
    ------
    RuntimeError
        An arm failed; its own message is shown.
    """
    book = report.Book(None if quick else docs / "results" / "lm.jsonl", report.code_digest(*CODE))
    todo = arms(quick)
    rows = []
    for i, (table, options, text) in enumerate(todo):
        name = " ".join([*options, text])
        if progress:
            progress(f"{table}: {name}", i, len(todo))
        found = book.do(name, partial(_arm, data, options, text))
        rows.append({"table": table, "options": " ".join(options), "text": text, **found})
    if not quick:
        _write(rows, docs)
    return {"arms": rows}


def _arm(data: Path, options: list[str], text: str) -> dict[str, Any]:
    """Fit and evaluate one arm by the command line."""
    source = (data / text).parent
    split = ("--split-documents", SPLITS[source.name])
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-") as folder:
        model = str(Path(folder) / "model")
        train = next(source / name for name in ("train.txt.xz", "train.txt") if (source / name).exists())
        fitted = _warmstart("fit", str(train), "-o", model, *split, *options)
        scored = _warmstart("eval", model, str(data / text), *split)
    return {"fit": fitted, "eval": scored}


def _warmstart(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "warmstart.cli", *arguments, "--json", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return dict(json.loads(result.stdout))


def _write(rows: list[dict[str, Any]], docs: Path) -> None:
    """Write the section of docs/benchmarks.md and the plot of perplexity over bits."""
    by_table: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_table.setdefault(row["table"], []).append(row)
    default = by_table["presets"][0]
    headers = ["fit options", "weights", "perplexity", "/ unigram", "/ bigram", "bits a byte", "fit (s)", "peak (GiB)"]
    tables = {name: report.table(headers, [_row(row) for row in part]) for name, part in by_table.items()}
    memory = report.table(["text", *headers], [[row["text"].split("/")[0], *_row(row)] for row in by_table["memory"]])
    scored = default["eval"]
    stages = sorted(default["fit"]["seconds"].items(), key=lambda stage: -stage[1])
    body = f"""## Language model: classics

{default["fit"]["tokens"]:,} training tokens (byte-level BPE, V = {default["fit"]["vocab_size"]:,}),
{scored["tokens"]:,} test tokens. No gradient step. Perplexity on the test books: unigram
{scored["unigram_perplexity"]:.1f}, absolute-discounting bigram {scored["bigram_perplexity"]:.1f}.
The first row trains the tokenizer and encodes the text; the others find it in the cache.
Seconds of the default by stage: {", ".join(f"{name} {seconds:.1f}" for name, seconds in stages)}.

Presets, test books:

{tables["presets"]}
Bits, radial context alone, test books:

{tables["bits"]}
![Perplexity over bits](images/lm_bits.png)

Radius, radial context alone, validation books:

{tables["radius"]}
Contexts, validation books:

{tables["contexts"]}
The memory context, a delta rule without a trained weight, reset at document start; test text:

{memory}"""
    _draw(docs / "images" / "lm_bits.png", by_table["bits"])
    report.write(docs, "lm", body)


def _row(row: dict[str, Any]) -> list[Any]:
    fit, scored = row["fit"], row["eval"]
    perplexity = scored["perplexity"]
    return [
        f"`{row['options']}`",
        fit["parameters"],
        perplexity,
        perplexity / scored["unigram_perplexity"],
        perplexity / scored["bigram_perplexity"],
        scored["bits_per_byte"],
        sum(fit["seconds"].values()),
        fit["peak_memory_bytes"] / 2**30,
    ]


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    figure, axis = figures.figure(1)
    narrow = [row for row in rows if "--radius" not in row["options"]]
    bits = [int(row["options"].split()[1]) for row in narrow]
    axis[0].plot(
        bits, [row["eval"]["perplexity"] for row in narrow], "o-", label="warm start, radius 2, no gradient step"
    )
    for name, style in (("unigram", ":"), ("bigram", "--")):
        level = narrow[0]["eval"][f"{name}_perplexity"]
        axis[0].axhline(level, linestyle=style, color="grey", label=f"{name}, {level:.0f}")
    axis[0].set(xscale="log", yscale="log", xlabel="bits", ylabel="perplexity on the test books")
    axis[0].set_xticks(bits, [str(b) for b in bits])
    axis[0].minorticks_off()
    axis[0].set_yticks([150, 200, 300, 500, 1000], ["150", "200", "300", "500", "1000"])
    axis[0].grid(alpha=0.3)
    axis[0].legend()
    figures.save_figure(figure, path)
