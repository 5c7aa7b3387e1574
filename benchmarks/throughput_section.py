"""The section of `benchmarks.throughput` in docs/benchmarks.md."""

from statistics import median
from typing import Any

from benchmarks import bounds, contextual, render, scaling

NGRAMS = {"pairs": 2, "ngrams": 5}  # kernels and their orders
Part = tuple[str, str]  # conclusion and body


def section(output: dict[str, Any], settings: dict[str, int], marks: dict[str, str]) -> Part:
    """Return conclusion and body of the section; ``settings`` are those of the counting."""
    pairs, codes_of = output["counting"], output["cipher"]
    parts = [
        kernels(output["bounds"], settings, marks["bounds"]),
        vectors(output["contextual"], marks["contextual"]),
        growth(output["growing"], output["processes"], marks["processes"]),
    ]
    said = "; ".join(conclusion for conclusion, _ in parts)
    speeds = pairs["million_pairs_per_second"].items()
    rows = [[name + marks["counting"], median(values), min(values), max(values)] for name, values in speeds]
    body = "\n".join(body for _, body in parts)
    body += f"""

**Pairs.** {pairs["pairs"]:,} pairs of a target and a token 1 to {settings["lags"]} before it:
{settings["vocabulary"]:,} tokens in the vocabulary, {settings["bits"]} bits. CPU seconds of one core, in turn, after
both programs gave equal counts. scipy: one-hot targets, transposed, times sparse cipher vectors. The ratio above is
the median over {settings["repetitions"]} repetitions.

{render.table(["program", "million pairs a second (median)", "lowest", "highest"], rows)}
The bit cipher of {codes_of["vocabulary"]:,} tokens and {codes_of["bits"]:,} bits takes {codes_of["seconds"]:.2f} CPU
seconds and adds {codes_of["mib"]:.0f} MiB to the peak memory, the codes included.{marks["cipher"]}"""
    return f"Pairs are counted {pairs['ratio']:.1f} times as fast as by scipy's sparse product; {said}.", body


def shares(rates: dict[str, list[float]], vocab_size: int) -> dict[str, float]:
    """Return the median share of its bound that each kernel reaches, see `bounds.measure`.

    Examples
    --------
    >>> rates = {"copied": [144.0], "random": [4.0, 5.0, 8.0], "radial": [3, 4, 4], "pairs": [1], "ngrams": [0.5]}
    >>> {name: round(share, 2) for name, share in shares(rates, 8192).items()}
    {'radial': 0.75, 'pairs': 0.5, 'ngrams': 0.62}
    """
    moved = {
        name: [rate * bounds.bytes_moved(order, vocab_size) for rate in rates[name]] for name, order in NGRAMS.items()
    }
    pairs = {"radial": zip(rates["radial"], rates["random"], strict=True)}
    pairs |= {name: zip(values, rates["copied"], strict=True) for name, values in moved.items()}
    return {name: median(ours / bound for ours, bound in values) for name, values in pairs.items()}


def kernels(result: dict[str, Any], settings: dict[str, int], mark: str) -> Part:
    """Return conclusion and body of the kernels beside the machine."""
    rates, a_pair = result["rates"], result["updates_a_pair"]
    rate, share = {name: median(values) for name, values in rates.items()}, shares(rates, settings["vocabulary"])
    size = settings["vocabulary"]
    mib = size * settings["bits"] >> 17
    rows = [
        ["copy", f"{rate['copied'] / 1e9:.1f} GB/s", None, None],
        ["random updates", f"{rate['random'] / 1e6:.0f} million/s", None, None],
        ["radial coded counting", f"{rate['radial'] / 1e6:.0f} million updates/s",
         bounds.LAGS * a_pair / rate["radial"] * 1e9, f"{share['radial']:.0%} of random updates"],
        *([f"n-grams of order {order}", f"{rate[name] * bounds.bytes_moved(order, size) / 1e9:.1f} GB/s",
           1e9 / rate[name], f"{share[name]:.0%} of copy"] for name, order in NGRAMS.items()),
    ]  # fmt: skip
    rows = [[f"{name}{mark}", *rest] for name, *rest in rows]
    body = f"""**Kernels beside the machine.** One thread, CPU seconds, {settings["tokens"]:,} tokens of the classics,
medians of {settings["repetitions"]} repetitions in turn. Copy: bytes read and written. Random updates: cells of 64 bits
in {mib} MiB, the size of the sums of a lag, evenly drawn, their places known. Radial coded counting: {bounds.LAGS}
lags, {settings["bits"]} bits, {a_pair:.2f} updates for each pair, checks included; words are not evenly frequent, so
more of its cells are in the cache. The sums are there before, as the table of the random updates is. N-grams:
{bounds.bytes_moved(2, size)} bytes a token of order 2, which pairs are counted by, and {bounds.bytes_moved(5, size)} of
order 5 are read and written beside the n-grams themselves, most of them in buckets that stay in the cache.

{render.table(["kernel", "speed", "ns a token", "share of the bound"], rows)}"""
    return f"radial coded counting reaches {share['radial']:.0%} of the machine's rate of random updates", body


def vectors(result: dict[str, Any], mark: str) -> Part:
    """Return conclusion and body of the contextual vectors."""
    cpu = result["cpu_seconds"]
    times = {name: median(a / b for a, b in zip(cpu[name], cpu["bitcipher"], strict=True)) for name in cpu}
    rows = [
        [f"{name}{mark}", median(values), median(values) / result["tokens"] * 1e9, times[name]]
        for name, values in cpu.items()
    ]
    body = f"""**Contextual vectors.** Window {contextual.WINDOW}, d = {contextual.SIZE}, words that occur
{contextual.MIN_COUNT} times or more, {result["tokens"]:,} tokens of the classics as lists of strings. CPU seconds to
vectors, one thread, in turn, medians of {len(cpu["bitcipher"])}. gensim: one epoch. scipy: the sparse matrix of pairs
times the codes, after its sums were equal to ours.

{render.table(["program", "CPU seconds", "ns a token", "times ours"], rows)}"""
    conclusion = (
        f"contextual vectors are made {times['gensim CBOW']:.1f} times as fast as by gensim's CBOW and "
        f"{times['scipy']:.1f} times as fast as by scipy"
    )
    return conclusion, body


def growth(rows: list[dict[str, Any]], two: dict[str, Any], mark: str) -> Part:
    """Return conclusion and body of growing texts; rows are results of `scaling.grow` with ``kind`` and ``n``."""
    columns: dict[str, Any] = {
        "text": "kind",
        "tokens": "n",
        "n-grams": "ngrams",
        "ns a token": lambda row: row["cpu_seconds"] / row["n"] * 1e9,
        "peak memory (MiB)": lambda row: row["peak_bytes"] / 2**20,
        "expected at most (MiB)": lambda row: row["estimate_bytes"] / 2**20,
    }
    grown = {}
    for kind in scaling.KINDS:
        texts = sorted((row["n"], row["cpu_seconds"] / row["n"]) for row in rows if row["kind"] == kind)
        grown[kind] = max(seconds for _, seconds in texts) / texts[0][1]
    sizes = [row["n"] for row in rows]
    wall, cpu = two["wall_seconds"], two["cpu_seconds"]
    busy = ", so other programs used the cores too and the ratio says little" if two["load"] > two["cores"] else ""
    body = f"""**More and more text.** N-grams of order {scaling.ORDER}, one thread, CPU time, medians of
{scaling.TIMES} in a fresh process each, a limit of {rows[0]["limit_bytes"] / 2**30:.0f} GiB. Peak memory includes
libraries and text. Shuffled books: the classics again and again, in a new order. Fresh text: drawn from a model of
order 3 of them, so that new n-grams keep coming.
Longest time a token over that of the shortest text: {", ".join(f"{k} {value:.2f}" for k, value in grown.items())}.

{render.rows_table(columns, rows)}
**Two processes.** Two halves of {two["tokens"]:,} tokens: {wall["1"]:.1f} s in one process, {wall["2"]:.1f} s in two at
the same time, {wall["1"] / wall["2"]:.2f} times as fast; {cpu["1"]:.1f} and {cpu["2"]:.1f} CPU seconds, medians of
{scaling.TIMES}. The load of the
machine with {two["cores"]} cores was {two["load"]:.1f}{busy}.{mark} KenLM's `lmplz` is measured by `python -m
benchmarks lm` where the program is given, not here."""
    least, most = min(sizes), max(sizes)
    return f"from {least:,} to {most:,} tokens the time a token grows {max(grown.values()):.2f} times", body
