"""A plan past one machine, on paper: time and memory of each stage, from what `benchmarks.saturation` measured.

| symbol | meaning |
|---|---|
| T | tokens of the text |
| D(T) | different n-grams of 2 tokens and more; of n tokens: ``min(V^n, exp(a) T^b)``, fitted (the law of Heaps) |
| m | CPU seconds to merge, for each n-gram of the sum |
| P | cores: `CORES` a machine |

Every core counts runs of `RUN` tokens, and the runs are merged in a tree. A merge takes one core, so the upper
levels of the tree, which have fewer merges than there are cores, do not get faster with more machines: that is the time
of D(T), D(T/2), D(T/4), ... The solution takes one core of one machine. Moving files is not in the time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from benchmarks import render
from warmstart.levels import MOST
from warmstart.spill import RUN

CORES = 16
MACHINES = (1, 16, 1000)
TOKENS = (1e9, 1e11, 1e13)
FITTED = 800_000  # tokens from which on the growth is fitted
ID_BYTES = 8  # of a token in memory: its id of 2 bytes, mapped, as a document, twice while it is written
STAGES = ("tokenize", "count", "merge", "solve")
TIMES = {"days": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0}
SIZES = {"PB": 1e15, "TB": 1e12, "GB": 1e9, "MB": 1e6}

Row = Mapping[str, Any]


def power_law(tokens: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return a and b of ``values = exp(a) tokens^b`` by least squares of the logarithms.

    Examples
    --------
    >>> a, b = power_law([1.0, 4.0, 16.0], [3.0, 6.0, 12.0])
    >>> round(math.exp(a), 6), round(b, 6)
    (3.0, 0.5)
    """
    return line(np.log(tokens).tolist(), np.log(values).tolist())


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return a and b of ``y = a + b x`` by least squares.

    Examples
    --------
    >>> [round(number, 6) for number in line([1, 2, 3], [5, 7, 9])]
    [3.0, 2.0]
    """
    b, a = np.polyfit(x, y, 1)
    return float(a), float(b)


def scaled(value: float, units: Mapping[str, float]) -> str:
    """Return a quantity with two digits or more, in the largest unit that it fills.

    Examples
    --------
    >>> [scaled(seconds, TIMES) for seconds in (0.024, 90, 3.5e6)], scaled(5.3e13, SIZES)
    (['0.024 s', '1.5 min', '41 days'], '53 TB')
    """
    unit = next((unit for unit, size in units.items() if value >= size), [*units][-1])
    amount = value / units[unit]
    return (
        f"{amount:,.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}" if amount >= 1 else f"{amount:.2g} {unit}"
    )


@dataclass(frozen=True)
class Costs:
    """What was measured: seconds are those of one core.

    Attributes
    ----------
    growth : tuple of (a, b)
        The power law of the n-grams of 2, 3, ... tokens.
    predicted : tuple of float
        Relative error of the law of the other shares for the number of n-grams in all of the text.
    vocab_size : int
    """

    rows: Sequence[Row]
    tokenized: Row
    growth: tuple[tuple[float, float], ...]
    predicted: tuple[float, ...]
    vocab_size: int

    @classmethod
    def of(cls, rows: Sequence[Row], tokenized: Row) -> Self:
        """Return what runs say. With fewer than three of at least `FITTED` tokens, the growth is fitted to all runs."""
        fitted = cls(rows, tokenized, (), (), 0).fitted
        tokens = [row["tokens"] for row in fitted]
        levels = list(zip(*(row["ngrams"][1:] for row in fitted), strict=True))
        growth = tuple(power_law(tokens, level) for level in levels)
        errors = []
        for level in levels:
            a, b = power_law(tokens[:-1], level[:-1]) if len(tokens) > 2 else power_law(tokens, level)
            errors.append(math.exp(a) * tokens[-1] ** b / level[-1] - 1)
        return cls(rows, tokenized, growth, tuple(errors), rows[-1]["ngrams"][0])

    @property
    def last(self) -> Row:
        """The run with all of the text."""
        return self.rows[-1]

    def ngrams(self, tokens: float) -> list[float]:
        """Return the number of different n-grams of 2, 3, ... tokens in a text."""
        laws = enumerate(self.growth, start=2)
        return [min(float(self.vocab_size) ** n, math.exp(a) * tokens**b) for n, (a, b) in laws]

    @property
    def fitted(self) -> Sequence[Row]:
        """Return the runs of at least `FITTED` tokens; all of them if these are fewer than three."""
        long = [row for row in self.rows if row["tokens"] >= FITTED]
        return long if len(long) > 2 else self.rows

    def line(self, stage: str) -> tuple[float, float]:
        """Return fixed seconds and seconds a token of a stage, by least squares."""
        tokens = [row["tokens"] for row in self.fitted]
        return line(tokens, [row["seconds"][stage] for row in self.fitted])

    def merging(self, stage: str = "merge") -> float:
        """Return m: seconds for each n-gram of a sum; of "files": to read both parts and write the sum."""
        return float(self.last["seconds"][stage] / sum(self.last["ngrams"][1:]))

    def memory(self, stage: str, tokens: float) -> float:
        """Return the memory in bytes of a stage on one machine: fixed, for each n-gram, and `ID_BYTES` a token."""
        n_ngrams = [sum(row["ngrams"][1:]) for row in self.fitted]
        peaks = [row["memory"][stage] - row["memory"]["before"] - ID_BYTES * row["tokens"] for row in self.fitted]
        fixed, an_ngram = line(n_ngrams, peaks)
        return fixed + an_ngram * sum(self.ngrams(tokens)) + ID_BYTES * tokens

    def seconds(self, tokens: float, machines: int) -> dict[str, float]:
        """Return the time of every stage."""
        cores = CORES * machines
        leaves = max(1.0, tokens / RUN)
        levels = math.ceil(math.log2(leaves))
        apart = math.ceil(math.log2(machines))  # levels of the tree that merge files of different machines
        merging = 0.0
        for level in range(1, levels + 1):
            merges = leaves / 2**level
            n_ngrams = sum(self.ngrams(min(tokens, RUN * 2.0**level)))
            one = n_ngrams * (self.merging() + (self.merging("files") if level > levels - apart else 0.0))
            merging += max(1.0, merges / cores) * one
        fixed, a_token = self.line("solve")
        return {
            "tokenize": tokens / cores * self.tokenized["seconds"] / self.tokenized["tokens"],
            "count": tokens / cores * self.counting,
            "merge": merging,
            "solve": fixed + a_token * tokens,
        }

    @property
    def counting(self) -> float:
        """Seconds a token to count one run, from the largest text that is no larger."""
        whole = [row for row in self.rows if row["tokens"] <= RUN]
        row = whole[-1] if whole else self.rows[0]
        return float(row["seconds"]["count"] / row["tokens"])

    def limit(self) -> float:
        """Return how many tokens have `MOST` n-grams of one length, the most that a statistic can number."""
        laws = [(a, b) for n, (a, b) in enumerate(self.growth, start=2) if float(self.vocab_size) ** n > MOST]
        return min(((MOST / math.exp(a)) ** (1 / b) for a, b in laws), default=math.inf)

    def stages(self) -> list[dict[str, Any]]:
        """Return tokens a second of one core and bytes a token of every stage, with all of the text."""
        row, tokens = self.last, self.last["tokens"]
        ngrams_bytes = row["statistic_bytes"] / tokens
        found = [("tokenize", self.tokenized["tokens"] / self.tokenized["seconds"], 2.0)]
        found += [("count", tokens / row["seconds"]["count"], ngrams_bytes)]
        found += [("merge", tokens / row["seconds"]["merge"], ngrams_bytes)]
        found += [("write and read statistics", tokens / row["seconds"]["files"], ngrams_bytes)]
        found += [("solve", tokens / row["seconds"]["solve"], row["model_bytes"] / tokens)]
        found += [("load", tokens / row["seconds"]["load"], row["model_bytes"] / tokens)]
        peaks = {"write and read statistics": "files"}
        return [
            {
                "stage": stage,
                "tokens_per_second": speed,
                "bytes_per_token": size,
                "memory_per_token": None
                if stage in ("tokenize", "load")  # not measured, or with the solved model still there
                else (row["memory"][peaks.get(stage, stage)] - row["memory"]["before"]) / tokens,
            }
            for stage, speed, size in found
        ]

    def growth_rows(self) -> list[dict[str, Any]]:
        """Return the fitted growth of the n-grams of every length."""
        each = enumerate(zip(self.growth, self.predicted, strict=True), start=2)
        return [{"n": n, "exponent": b, "measured": self.last["ngrams"][n - 1], "error": e} for n, ((_, b), e) in each]

    def rows_of_plan(self) -> list[dict[str, Any]]:
        """Return time, memory and bottleneck for every size of text and number of machines."""
        out = []
        for tokens in TOKENS:
            for machines in MACHINES:
                seconds = self.seconds(tokens, machines)
                memory = {stage: self.memory(stage, tokens) for stage in ("merge", "solve")}
                out.append(
                    {
                        "tokens": tokens,
                        "machines": machines,
                        "seconds": {stage: seconds[stage] for stage in STAGES},
                        "bytes": memory,
                        "numbered": max(self.ngrams(tokens)) <= MOST,
                        "slowest": max(seconds, key=lambda stage: seconds[stage]),
                    }
                )
        return out

    def section(self) -> str:
        """Return the text of the plan for docs/scale.md."""
        stages = [
            [row["stage"], round(row["tokens_per_second"]), row["bytes_per_token"], row["memory_per_token"]]
            for row in self.stages()
        ]
        growth = [
            [f"{row['n']}", f"{row['exponent']:.3f}", row["measured"], f"{100 * row['error']:+z.1f}"]
            for row in self.growth_rows()
        ]
        plan = [
            [
                f"{row['tokens'] / 1e9:,.0f} G",
                row["machines"],
                *(scaled(row["seconds"][stage], TIMES) for stage in STAGES),
                *(scaled(row["bytes"][stage], SIZES) for stage in ("merge", "solve")),
                "yes" if row["numbered"] else "no",
                row["slowest"],
            ]
            for row in self.rows_of_plan()
        ]
        said: dict[str, str | Callable[[Row], Any]] = {
            "tokens": lambda row: f"{row['tokens']:,}",
            "n-grams": "ngrams",
            "time of the solution": "seconds",
            "its memory": "bytes",
        }
        heads = ["tokens", "machines", *STAGES, "memory of the merge", "of the solution"]
        return f"""## A plan past one machine

What one core does, measured with {self.last["tokens"]:,} tokens of the classics ({self.tokenized["tokens"]:,} for
tokenize) beside other work, order {len(self.growth) + 1}, the preset `small`. Bytes a token are what the stage
writes (load: reads), and memory is the peak so far, beyond that before the first stage:

{render.table(["stage", "tokens a second", "bytes a token", "memory (bytes a token)"], stages)}
New n-grams keep coming: their number grows as a power of the tokens. Fitted to the shares of at least {FITTED:,}
tokens; the last column is how far the law of the other shares is off for all of the text, in percent:

{render.table(["n", "exponent", "different n-grams", "error (%)"], growth)}
From these, for machines of {CORES} such cores that share nothing: time of each stage, and memory of the machine
that makes the last merge and of the one that solves. Every core counts runs of {RUN:,} tokens; runs are
merged in a tree, each merge by one core, and sums of different machines are written and read. One core solves, in a
fixed time and a time for each token, by least squares; so is the memory, with a size for each n-gram and {ID_BYTES}
bytes a token. Moving files and training the tokenizer, on a sample, are not in the time. The last but one column
says whether the statistic can number its n-grams: of one length at most {MOST:,}, reached at about {
            self.limit() / 1e9:,.1f} G tokens.

{render.table([*heads, "can be numbered", "slowest"], plan)}
What the plan says for the measured shares, divided by what was measured:

{render.rows_table(said, self.check())}
Everything past these is an extrapolation: where the growth slows (an error above 0), n-grams, merges and memory are
fewer than the table says. What it shows: tokenization and counting are divided by the machines; the
last merges and the solution are not, and are the bottleneck of a cluster, memory first. So for a large text count a
sample (`warmstart fit --sample`): docs/benchmarks.md, "How much text is enough", shows which experts gain from more."""

    def check(self) -> list[dict[str, Any]]:
        """Return what the plan says, divided by what was measured, for the runs of at least `FITTED` tokens."""
        fixed, a_token = self.line("solve")
        return [
            {
                "tokens": row["tokens"],
                "ngrams": sum(self.ngrams(row["tokens"])) / sum(row["ngrams"][1:]),
                "seconds": (fixed + a_token * row["tokens"]) / row["seconds"]["solve"],
                "bytes": self.memory("solve", row["tokens"]) / (row["memory"]["solve"] - row["memory"]["before"]),
            }
            for row in self.rows
            if row["tokens"] >= FITTED
        ]
