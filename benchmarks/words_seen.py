"""Loss and BLiMP over the words that a decoder has seen: long runs of some arms of `benchmarks.transformers_counts`."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import blimp, render
from benchmarks.decoders import Start
from benchmarks.starts import SHAPE
from warmstart.corpus import Corpus

STEPS = 9600  # two epochs of the classics, which are 10 M words
ARMS = ("cold", "warm", "n-grams and cache, warm")
SHOWN = (0, 800, 2400, 4800, 9600)
WORDS = SHAPE["windows"] * SHAPE["context"] * 10_078_097 / 14_179_317 / 1e6  # millions a step: words over tokens
PART = "blimp"
START = "\n"  # what a sentence begins with: the better one of `benchmarks.blimp`


def sentences(data: Path) -> dict[str, list[str]]:
    """Return the sentences of BLiMP as a part of the text: what experts say of them is computed once."""
    return {PART: [START + pair[i] for pair in blimp.read(data) for i in (0, 1)]}


def judge(folder: str, data: Path, start: Start) -> dict[str, float]:
    """Return the shares of pairs that a start gets right, see `benchmarks.blimp.by_field`."""
    corpus = Corpus.open(Path(Path(folder, "train.folder").read_text(encoding="utf-8")))
    return blimp.by_field(blimp.decoder(start, PART), corpus, blimp.read(data), START)


def section(runs: dict[str, dict[str, Any]]) -> str:
    """Return the table of the long runs, nothing without one."""
    if not runs:
        return ""
    rows: list[list[str]] = []
    for name, run in runs.items():
        shares = [judged["all"] for judged in run["judged"]]
        losses, right = (np.interp(SHOWN, run["steps"], values).tolist() for values in (run["nats"], shares))
        label = (f"{name}, {run['share']:g} of the rate" if run["share"] != 1.0 else name) + run["mark"]
        rows.append([label, "nats", *map(render.nats, losses), render.nats(run["test"])])
        rows.append([label, "BLiMP", *(f"{share:.1%}" for share in right), "-"])
    lead = [cold - warm for cold, warm in zip(runs["cold"]["nats"], runs["warm"]["nats"], strict=True)]
    ahead = max(step for step, by in zip(runs["cold"]["steps"], lead, strict=True) if by > 0)
    table = render.table(["arm", "", *(f"{step * WORDS:.1f} M words" for step in SHOWN), "test"], rows)
    tried = "; ".join(
        f"{name} {', '.join(f'{nats:.3f} ({share:g})' for share, nats in run['ends'].items())}"
        for name, run in runs.items()
    )
    end = "ahead" if lead[-1] > 0 else "behind"
    return f"""Loss and BLiMP over words seen: {STEPS:,} steps, 29.5 M tokens, two epochs, one seed. The rate is the
one that a start found for 600 steps, times the best share that was tried. Loss at the end, by share: {tried}. The warm
start alone is ahead of the cold one at {ahead:,} steps for the last time, and {abs(lead[-1]):.3f} nats {end} at the
end.
BLiMP is the share of pairs as in the section "BLiMP: grammatical pairs", scored by the mixture where counts are beside.

{table}
"""
