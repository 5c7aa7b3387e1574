"""The section of `python -m benchmarks beside` in docs/benchmarks.md: its tables and sentences."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import render
from benchmarks.harness import Results
from warmstart.finetune.phases import GATE_RATE

Row = dict[str, Any]
Column = Callable[[Row], float]
TITLES = {"ngrams": "n-grams", "ngrams,classes,cache": "n-grams, classes, cache"}


def trained_alone(row: Row, part: str) -> float:
    """Return the loss of the network that was trained without counts: same start, rates and seed."""
    run = row["alone"][0]
    return float(run["nats"][-1] if part == "valid" else run["test_nats"])


def refitted(row: Row) -> float:
    """Return the validation loss with the gate refitted on the other half of the text."""
    return float(row["result"]["gate"]["nats_refitted_on_the_other_half"])


VALID: dict[str, Column] = {
    "counts": lambda row: row["result"]["counts_nats"],
    "network without counts": lambda row: trained_alone(row, "valid"),
    "network beside counts": lambda row: row["result"]["network_nats"][-1],
    "mixture, start": lambda row: row["result"]["nats"][0],
    "mixture, trained": lambda row: row["result"]["nats"][-1],
    "mixture, refitted": refitted,
}
TEST: dict[str, Column] = {
    "counts": lambda row: row["result"]["test_nats"]["counts"],
    "network without counts": lambda row: trained_alone(row, "test"),
    "network beside counts": lambda row: row["result"]["test_nats"]["network"],
    "mixture": lambda row: row["result"]["test_nats"]["mixture"],
    "below counts": lambda row: below_counts(row),
    "below network": lambda row: below_network(row),
}


def below_counts(row: Row) -> float:
    """Return how far the finished mixture is below the counts alone on test text, in nats."""
    losses = row["result"]["test_nats"]
    return float(losses["counts"] - losses["mixture"])


def below_network(row: Row) -> float:
    """Return how far the finished mixture is below the network that was trained without counts on test text."""
    return trained_alone(row, "test") - float(row["result"]["test_nats"]["mixture"])


def made(rows: Sequence[Row], **labels: str) -> list[Row]:
    """Return the rows with a result and these labels."""
    return [row for row in rows if row["result"] and all(row[name] == label for name, label in labels.items())]


def table(rows: Sequence[Row], columns: dict[str, Column]) -> str:
    """Return a table with a line for every run; one that has not been made says so."""
    lines = []
    for row in rows:
        cells = [render.nats(column(row)) for column in columns.values()] if row["result"] else []
        rest = [None] * (len(columns) - 1) if row["result"] is None else []
        name = f"{row['text']} {row['preset']}, {row['arm']}{row['mark']}"
        lines.append([name, TITLES[row["counts"]], *(cells or ["not run"]), *rest])
    return render.table(["text, preset, start", "beside", *columns], lines)


def span(values: Sequence[float]) -> str:
    """Return the least and the largest value.

    Examples
    --------
    >>> span([0.2, 0.1004]), span([0.1])
    ('0.100 to 0.200', '0.100')
    """
    return " to ".join(dict.fromkeys(render.nats(value) for value in (min(values), max(values))))


def leads(rows: Sequence[Row]) -> list[float]:
    """Return how far the warm mixture ends below the cold one on test text, for every pair of runs."""
    names = ("text", "preset", "counts")
    pairs = [
        (warm, cold)
        for warm in made(rows, arm="warm")
        for cold in made(rows, arm="cold", **{name: warm[name] for name in names})
    ]
    return [
        float(cold["result"]["test_nats"]["mixture"] - warm["result"]["test_nats"]["mixture"]) for warm, cold in pairs
    ]


def deviation(rows: Sequence[Row]) -> float:
    """Return the largest standard deviation over the seeds of networks that were trained without counts, test text."""
    return max(statistics.stdev(float(run["test_nats"]) for run in row["alone"]) for row in rows)


def conclusion(rows: Sequence[Row]) -> str:
    """Return the sentence that says what the tables show; differences are negative where the mixture is above."""
    parts = []
    for counts, title in TITLES.items():
        if some := made(rows, counts=counts):
            above, network = (span([column(row) for row in some]) for column in (below_counts, below_network))
            ends = f"is {above} nats below the counts and {network} nats below the network alone"
            parts.append(f"the mixture of the network and {title} {ends}")
    if not parts:
        return "None of the runs has been made."
    text = f"After training, on test text, {'; '.join(parts)}"
    if pairs := leads(rows):
        text += (
            f"; from the warm start mixtures end {span(pairs)} nats below the cold one (negative: above), and seeds of "
        )
        text += f"the network alone deviate by up to {render.nats(deviation(rows))}"
    missing = len(rows) - len(made(rows))
    return text + (f"; {missing} of {len(rows)} runs have not been made." if missing else ".")


def body(rows: Sequence[Row]) -> str:
    """Return the text between conclusion and stamp."""
    return f"""What `warmstart finetune` does with a mixture: network and gate train for {rows[0]["tokens"]:,} tokens on
the loss of the mixture plus that of the network, and the counts leave out each document that is trained on. Texts,
vocabulary, contexts of the network, steps and precision are those of `python -m benchmarks finetune`, and so are the
rates: the best of the same start without counts; the gate has {GATE_RATE:g}. One seed.

Nats a token. *Counts*: the mixture of the experts but the network. *Network without counts*: the kept run of
`python -m benchmarks finetune` with the same rates, start and seed. *Network beside counts*: the network alone after
training in the mixture. *Refitted*: the weight of the network is fitted to one half of the validation text and judged
on the other. Validation, the same tokens as there:

{table(rows, VALID)}
The whole test text, read once by finished mixtures. *Below* is the loss of the counts, and of the network without
counts, less that of the mixture:

{table(rows, TEST)}"""


def write(rows: Sequence[Row], docs: Path, results: Results) -> None:
    """Write the section of docs/benchmarks.md."""
    render.write(docs, "beside", "Fine-tuning beside the counts", conclusion(rows), body(rows), results)
