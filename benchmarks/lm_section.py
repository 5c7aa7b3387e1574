"""The section of `python -m benchmarks lm` in docs/benchmarks.md: its tables, pictures and sentences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import counted, leaving_out, lmplz, render
from benchmarks.counted import DEFAULT

Row = dict[str, Any]
SHOWN = {"valid": "validation", "test": "test"}


def fixed(value: float | None, places: int = 2) -> str:
    """Return a number with fixed places: the n-grams agree with KenLM's beyond three digits.

    Examples
    --------
    >>> fixed(114.5545), fixed(None)
    ('114.55', '-')
    """
    return "-" if value is None else f"{value:,.{places}f}"


def excess(row: Row) -> str:
    """Return how far the perplexity on test text is above that of `lmplz`, in percent."""
    return "-" if row["lmplz"] is None else f"{100 * (row['test'] / row['lmplz']['test'] - 1):+.3f}"


def ngrams_table(rows: list[Row]) -> str:
    """Return the table of the n-grams beside `lmplz`."""
    columns: dict[str, str | Callable[[Row], Any]] = {
        "text": "text",
        "order": "order",
        "validation": lambda row: fixed(row["valid"]),
        "test": lambda row: fixed(row["test"]),
        "`lmplz`, test": lambda row: fixed(row["lmplz"] and row["lmplz"]["test"]),
        "difference (%)": excess,
    }
    return render.rows_table(columns, rows)


def experts_table(parts: dict[str, list[Row]]) -> str:
    """Return the table of the mixtures, with a column for every part of every text."""
    names = list(parts)
    rows: list[list[Any]] = [
        [row["experts"] + row["mark"], *(fixed(parts[name][i][part]["perplexity"]) for name in names for part in SHOWN)]
        for i, row in enumerate(parts[names[0]])
    ]
    return render.table(["experts", *(f"{name}, {SHOWN[part]}" for name in names for part in SHOWN)], rows)


def shares_table(parts: dict[str, list[Row]]) -> str:
    """Return what each expert of the whole mixture has alone, and its mean share, on test text."""
    whole = {name: rows[list(counted.ADDED).index(counted.WHOLE)] for name, rows in parts.items()}
    names = next(iter(whole.values()))["test"]["experts"]
    rows = [[expert, *(cell for row in whole.values() for cell in _alone(row["test"], expert))] for expert in names]
    return render.table(["expert", *(head for name in whole for head in (f"{name}: alone", "share"))], rows)


def _alone(scores: Row, expert: str) -> tuple[float | None, str | None]:
    return scores["experts"].get(expert), f"{scores['shares'][expert]:.1%}" if expert in scores["shares"] else None


def presets_table(rows: list[Row]) -> str:
    """Return the ladder of presets."""

    def seconds(*stages: str) -> Callable[[Row], float]:
        return lambda row: sum(float(row["fit"]["seconds"].get(stage, 0.0)) for stage in stages)

    columns: dict[str, str | Callable[[Row], Any]] = {
        "preset": "preset",
        "order": lambda row: len(row["fit"]["ngrams"]),
        "n-grams": lambda row: sum(row["fit"]["ngrams"]),
        "weights": lambda row: row["fit"]["parameters"],
        "MB on disk": lambda row: row["bytes"] / 1e6,
        "perplexity": lambda row: fixed(row["eval"]["perplexity"]),
        "bits a byte": lambda row: row["eval"]["bits_per_byte"],
        "network alone": lambda row: row["eval"]["experts"].get("network"),
        "count (s)": seconds("count"),
        "n-grams and classes (s)": seconds("ngrams", "classes"),
        "network (s)": seconds("attention", "values", "output"),
        "gate (s)": seconds("gate"),
        "fit (s)": fit_seconds,
        "GiB": lambda row: row["fit"]["peak_memory_bytes"] / 2**30,
        "tokens/s scored": lambda row: round(row["eval"]["tokens"] / row["eval"]["seconds"]),
    }
    return render.rows_table(columns, rows)


def fit_seconds(row: Row) -> float:
    """Return the seconds of `fit` after tokenization, for other arms find the tokens in the cache."""
    return sum(float(value) for stage, value in row["fit"]["seconds"].items() if stage != "corpus")


def cost_table(ours: Row) -> str:
    """Return seconds, memory and bytes of the longest n-grams of the first text, beside `lmplz`."""
    rows = [[f"warmstart{ours['mark']}", ours["count"], ours["solve"], ours["count"] + ours["solve"], *_sizes(ours)]]
    if theirs := ours["lmplz"]:
        rows.append([f"`lmplz`{theirs['mark']}", None, None, theirs["seconds"], *_sizes(theirs)])
    return render.table(["program", "count (s)", "solve (s)", "both (s)", "GiB", "MB on disk"], rows)


def _sizes(row: Row) -> tuple[float, float]:
    return row["peak_memory_bytes"] / 2**30, row["bytes"] / 1e6


def leaving_out_table(parts: dict[str, Row]) -> str:
    """Return what a gate saw on its sample, and what it has on new text, by what was left out."""
    rows = [
        [arm, *(fixed(part[arm][on]) for part in parts.values() for on in ("sample", "valid"))]
        for arm in [*leaving_out.ARMS, *leaving_out.HALVES]
    ]
    heads = (f"{name}{part['mark']}, {on}" for name, part in parts.items() for on in ("its sample", "validation"))
    return render.table(["left out of the counts", *heads], rows)


NETWORK_COLUMNS: dict[str, str | Callable[[Row], Any]] = {
    "options of `fit`": lambda row: f"`{row['options']}`",
    "weights": lambda row: row["fit"]["parameters"],
    "perplexity": lambda row: _perplexity(row),
    "fit (s)": fit_seconds,
    "GiB": lambda row: row["fit"]["peak_memory_bytes"] / 2**30,
}


def conclusion(parts: dict[str, Any]) -> str:
    """Return one sentence on the classics: n-grams, beside KenLM, with all experts, beside the bigram."""
    longest = of_classics(parts["ngrams"])[-1]
    experts = {row["experts"]: row["test"]["perplexity"] for row in parts["experts"]["classics"]}
    bigram = parts["presets"][-1]["eval"]["bigram_perplexity"]
    beside = "" if longest["lmplz"] is None else f" (KenLM {longest['lmplz']['test']:.2f})"
    return (
        f"Perplexity of books never seen, without a gradient step: Kneser-Ney of order {longest['order']} "
        f"{longest['test']:.2f}{beside}, with a cache of the document {experts['and the cache']:.1f}, with classes and "
        f"a network too {experts['and the network']:.1f}; a discounted bigram model has {bigram:.0f}."
    )


def of_classics(rows: list[Row]) -> list[Row]:
    """Return the rows of the classics."""
    return [row for row in rows if row["text"] == "classics"]


def pictures(images: Path, parts: dict[str, Any]) -> None:
    """Draw perplexity over the size of the presets, and of the networks over their bits."""
    presets = parts["presets"]
    longest, bigram = of_classics(parts["ngrams"])[-1]["test"], presets[-1]["eval"]["bigram_perplexity"]
    levels = {f"discounted bigram, {bigram:.0f}": bigram, f"Kneser-Ney, {longest:.0f}": longest}
    sizes, scores = ([get(row) for row in presets] for get in (lambda r: r["bytes"] / 1e6, _perplexity))
    lines: dict[str, Any] = {"presets, potato to large": (sizes, scores)}
    lines |= {name: ((sizes[0], sizes[-1]), (level, level)) for name, level in levels.items()}
    marks = {"marker": "o"}
    styles = {"presets, potato to large": marks, "network alone, radius 2": marks}
    render.curves(images / "lm_presets.png", {"test books": lines}, "MB on disk", "perplexity", styles=styles, log="x")
    networks = {row["bits"]: _perplexity(row) for row in parts["networks"]["test"] if row["bits"]}
    lines = {"network alone, radius 2": (list(networks), list(networks.values()))}
    lines |= {name: ((min(networks), max(networks)), (level, level)) for name, level in levels.items()}
    render.curves(images / "lm_bits.png", {"test books": lines}, "bits", "perplexity", styles=styles, log="xy")


def _perplexity(row: Row) -> float:
    """Return the perplexity of a model; that of a network alone is without the share of the unigram model."""
    experts = row["eval"].get("experts", {})
    return float(experts["network"] if list(experts) == ["network", "unigram"] else row["eval"]["perplexity"])


def body(parts: dict[str, Any]) -> str:
    """Return the text of the section."""
    longest, rows, python = of_classics(parts["ngrams"])[-1], parts["rows"], parts["python"]
    scores, networks = parts["presets"][-1]["eval"], parts["networks"]
    potato, text = (
        parts["presets"][0]["fit"],
        {name: render.rows_table(NETWORK_COLUMNS, networks[name]) for name in networks},
    )
    scored_by = ", ".join(sorted({row["lmplz"]["scored_by"] for row in parts["ngrams"] if row["lmplz"]}))
    return f"""{longest["targets"]:,} tokens of classic books are counted (byte-level BPE, {scores_size(parts):,} in the
vocabulary), {scores["tokens"]:,} tokens of other books are the test text. WikiText-2 is cut into its articles, with a
BPE of its own, and also read as its perplexities are published: words, `<unk>` among them, `<eos>` after every line,
each part one document. No gradient step. All numbers are perplexities a token unless the head says otherwise; lower is
better.

### N-grams

Interpolated modified Kneser-Ney, counted by this package and by KenLM's `lmplz -o N -S {lmplz.MEMORY}` from the same
tokens, one document a line. The scores of `lmplz` are those of its file, read by {scored_by or "nothing yet"}, in
float64 sums.

{ngrams_table(parts["ngrams"])}
### Experts

Experts are added to the mixture one by one, with the sizes of `--preset {DEFAULT}`. The gate is fitted on the counted
text with each document, or piece of a long one, left out of the counts. What to build was chosen on the validation
texts.

{experts_table(parts["experts"])}
Each expert of the whole mixture alone on test text, and its mean share in the probability of the tokens:

{shares_table(parts["experts"])}
On the documentation that ships with Python, `warmstart fit` and `warmstart eval` as they are give
{python["eval"]["perplexity"]:.1f}{python["mark"]}; the discounted bigram model has
{python["eval"]["bigram_perplexity"]:.1f}, the unigram model {python["eval"]["unigram_perplexity"]:.0f}.

### Presets

`warmstart fit --preset ...` on the classics, test books. `potato` keeps n-grams up to order {len(potato["ngrams"])}
that occur more than {potato["prune"][-1]} times, {sum(potato["ngrams"]):,} in all, and is saved without its counts. The
others keep the counts of all n-grams, and the text. "GiB" is the peak memory. To train the tokenizer and encode the
text takes {parts["corpus"]["seconds"]:.0f} s{parts["corpus"]["mark"]} more. The discounted bigram model has
{scores["bigram_perplexity"]:.0f}, the unigram model {scores["unigram_perplexity"]:.0f}.

{presets_table(parts["presets"])}
![Perplexity over megabytes](images/lm_presets.png)

### Cost

Order {longest["order"]} of the classics, {sum(longest["ngrams"]):,} n-grams. This package: from tokens on disk to
tables in memory, a thread for each core. `lmplz`, measured right after: from words to its text file. Peak memory is
that of the process. On disk: our counts with the text, and the file of `lmplz`. One core scores
{longest["tokens_per_second"] / 1e6:.1f} M tokens a CPU second.

{cost_table(longest)}
The whole distribution of the next token takes {rows["median"]:.2f} ms (median; 5 % to 95 %: {rows["low"]:.2f} to
{rows["high"]:.2f} ms){rows["mark"]} with {rows["vocab_size"]:,} words in the vocabulary, order {len(rows["ngrams"])},
{counted.ROWS} contexts of test text; its sum is off 1 by {rows["largest_error_of_a_sum"]:.0e} at most.

### What to leave out

A gate that weighs n-grams of order {longest["order"]} and the cache, fitted on counted text. What was left out of the
counts meanwhile decides how new that text looks, and what the mixture has on text that is new. "Its part" is what the
package does: the token's document, or an eighth of it.

{leaving_out_table(parts["leaving_out"])}
### The network without n-grams

The published near-shallow model alone, test books:

{text["test"]}
![Perplexity over bits](images/lm_bits.png)

Radius and contexts, validation books:

{text["valid"]}
The memory context (a delta rule without trained weights, reset at the start of every document) on WikiText-2, articles,
test text:

{text["wikitext-2"]}"""


def scores_size(parts: dict[str, Any]) -> int:
    """Return the size of the vocabulary of the classics."""
    return int(parts["presets"][0]["fit"]["vocab_size"])
