"""What ``python -m benchmarks saturation`` writes: a section, its picture, and the plan in docs/scale.md."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import claims, render
from benchmarks.harness import Results
from benchmarks.plan import Costs

NEAR = 0.02  # nats
EXPERTS = {  # by name in the tables
    "mixture": "mixture", "n-grams": "ngrams", "classes": "classes", "cache": "cache", "network": "network",
    "unigram": "unigram",
}  # fmt: skip

Rows = Sequence[Mapping[str, Any]]


def write(docs: Path, rows: Rows, costs: Costs, results: Results) -> None:
    """Write the section, the picture and the plan."""
    curves = {
        expert: ([row["tokens"] / 1e6 for row in rows], [nats(row, expert) for row in rows]) for expert in EXPERTS
    }
    above = {expert: (x, [value - y[-1] for value in y]) for expert, (x, y) in curves.items()}
    panels = {"validation": curves, "above the loss with all of the text": above}
    render.curves(docs / "images" / "saturation.png", panels, "million tokens counted", "nats a token", log="x")
    render.write(docs, "saturation", "How much text is enough", *section(rows), results)
    render.insert(docs / "scale.md", "plan", f"{costs.section()}\n\n{results.stamp('python -m benchmarks saturation')}")


def nats(row: Mapping[str, Any], expert: str) -> float:
    """Return the loss of an expert."""
    return float(row["nats"][EXPERTS[expert]])


def enough(rows: Rows, expert: str) -> int | None:
    """Return the fewest tokens from which on an expert is within `NEAR` of all of the text; None for all of it only."""
    last = nats(rows[-1], expert)
    near = list(itertools.takewhile(lambda row: abs(nats(row, expert) - last) <= NEAR, reversed(rows)))
    return int(near[-1]["tokens"]) if len(near) > 1 else None


def section(rows: Rows) -> tuple[str, str]:
    """Return the conclusion and the body of the section."""
    reached = {expert: enough(rows, expert) for expert in EXPERTS}
    done = [f"{expert} from {tokens / 1e6:.1f} M tokens on" for expert, tokens in reached.items() if tokens]
    going = [
        f"{expert} {nats(rows[-2], expert) - nats(rows[-1], expert):.3f}"
        for expert, tokens in reached.items()
        if not tokens
    ]
    conclusion = (
        f"Within {NEAR} nats of what {rows[-1]['tokens'] / 1e6:.1f} M tokens give: {', '.join(done) or 'nothing'}; the "
        f"last doubling of the text still gives, in nats: {', '.join(going) or 'nothing'}."
    )
    table = [
        [f"{row['tokens']:,}{row['mark']}", row["documents"]] + [render.nats(nats(row, expert)) for expert in EXPERTS]
        for row in rows
    ]
    tenth = min(rows, key=lambda row: abs(row["tokens"] / rows[-1]["tokens"] - 0.1))
    gains = ", ".join(f"{expert} {nats(tenth, expert) - nats(rows[-1], expert):.3f}" for expert in EXPERTS)
    body = f"""{claims.claimed("saturation")}

The preset `small`, counted and solved from a share of the documents of the classics, as `warmstart fit
--sample SHARE --tokenizer TOKENIZER/` chooses them: whole books, by a hash, so that a share has all books of a smaller
one, and its tokens are only about the share. The tokenizer is that of the whole text. Loss in nats a token of every
expert alone, and of the mixture, whose weights are fitted on each share, on every other validation book
({rows[-1]["scored"]:,} tokens):

{render.table(["tokens", "books", *EXPERTS], table)}
![Loss of every expert against the tokens counted](images/saturation.png)

The cache knows nothing but the document. A share with more books has more kinds of books too, which is part of the
gain. The papers say that their warm start, which is the network, saturates at 10 M of 100 M tokens; this text ends at
14 M, so what 100 M would give is not seen. From {tenth["tokens"] / 1e6:.1f} M tokens to all
{rows[-1]["tokens"] / 1e6:.1f} M the gain in nats is: {gains}."""
    return conclusion, body
