"""``fit`` in shards: ``tokenizer``, ``count``, ``merge`` and ``solve``."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from warmstart.cli.app import app
from warmstart.cli.options import (
    CORES,
    Bits,
    ContextNames,
    Device,
    EndOfText,
    HiddenBits,
    Json,
    MaxMemory,
    NewModel,
    Order,
    Preset,
    Prune,
    Quiet,
    Radius,
    Resume,
    SkipBad,
    Smoothing,
    SomeText,
    Split,
    Statistic,
    Temperature,
    TextField,
    TextFormat,
    VocabSize,
    Workers,
)
from warmstart.cli.output import print_result
from warmstart.cli.values import (
    budget_of,
    check_used,
    device_of,
    limit_of,
    number_or_fit,
    paths_of,
    sources_of,
    whole_numbers,
    work_of,
)
from warmstart.formats import Reading
from warmstart.progress import Reporter, peak_memory


@app.command()
def tokenizer(
    sample: SomeText,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="TOKENIZER", help="Folder of its tokenizer.json.")],
    kind: Annotated[Literal["bpe", "words", "characters"], typer.Option(help="Kind of tokenizer.")] = "bpe",
    vocab_size: VocabSize = 8192,
    split_documents: Split = None,
    text_format: TextFormat = None,
    text_field: TextField = "text",
    skip_bad_records: SkipBad = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Shards, step 1: train a tokenizer on a sample of the text, for `count`."""
    from warmstart import shards

    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    began = time.perf_counter()
    with Reporter(quiet) as progress:
        paths = paths_of(sample)
        trained = shards.train(paths, output, kind=kind, vocab_size=vocab_size, progress=progress, **reading)
    size, seconds = trained.get_vocab_size(), round(time.perf_counter() - began, 3)
    print_result({"tokenizer": str(output), "vocab_size": size, "seconds": seconds}, as_json, quiet)


@app.command()
def count(
    shard: SomeText,
    tokenizer: Annotated[
        Path, typer.Option(metavar="TOKENIZER", help="Folder or tokenizer.json; the same one for all shards.")
    ],
    output: Statistic,
    order: Annotated[
        int, typer.Option(min=1, help="Length of the longest n-grams, the same for all shards. Presets need up to 6.")
    ] = 5,
    end_of_text: EndOfText = None,
    split_documents: Split = None,
    text_format: TextFormat = None,
    text_field: TextField = "text",
    skip_bad_records: SkipBad = False,
    max_memory: MaxMemory = None,
    resume: Resume = False,
    device: Device = None,
    workers: Workers = CORES,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Shards, step 2: count one shard, which is whole documents; many at the same time, on any machines.

    The file has all n-grams and the documents as token ids, so that nothing else of the text is needed afterwards.
    """
    from warmstart import shards

    shards.check_output(output)
    check_used(paths_of(shard), text_format, end_of_text=end_of_text)
    sources = sources_of(shard, str(tokenizer), end_of_text, text_format)
    limit = limit_of(max_memory)
    counting = device_of(device, limit)
    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    began = time.perf_counter()
    with work_of(output, limit, resume) as work, Reporter(quiet) as progress:
        budget = budget_of(limit, workers, progress)
        options: dict[str, Any] = {"order": order, "workers": workers, "progress": progress, **reading}
        statistic = shards.count(sources, tokenizer, device=counting, budget=budget, work=work, **options)
        if work is None:
            statistic.save(output)
        else:  # a killed run leaves nothing beside the folder
            statistic.save(work.folder / "whole")
            (work.folder / "whole").replace(output)
    estimate = {"estimated_memory_bytes": budget.estimate} if budget else {}
    print_result({**_described(statistic, output, began), **estimate}, as_json, quiet)


@app.command()
def merge(
    statistics: Annotated[
        list[Path], typer.Argument(metavar="STATS...", help="Files that `count` or `merge` wrote, in any order.")
    ],
    output: Statistic,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Shards, step 3: add counts. Sums can be merged again.

    A document that is in several files is counted as often, as `fit` would. The same file named twice is refused; a
    file whose documents are all in others is counted, and a warning names it.
    """
    from warmstart import shards

    shards.check_output(output, statistics)
    began = time.perf_counter()
    with Reporter(quiet) as progress:
        statistic = shards.merge(statistics, progress=progress)
        statistic.save(output)
    print_result({"files": len(statistics), **_described(statistic, output, began)}, as_json, quiet)


def _described(statistic: Any, path: Path, began: float) -> dict[str, Any]:
    counts = statistic.counts
    return {
        "statistic": str(path),
        "tokens": counts.n_tokens,
        "documents": int(counts.documents.copies.sum()),
        "different_documents": counts.documents.copies.size,
        "bytes": statistic.n_bytes,
        "unknown_tokens": statistic.n_unknown,
        "ngrams": counts.sizes,
        "seconds": round(time.perf_counter() - began, 3),
        "peak_memory_bytes": peak_memory(),
    }


@app.command()
def solve(
    statistic: Annotated[Path, typer.Argument(metavar="STATS", help="File that `count` or `merge` wrote.")],
    output: NewModel,
    preset: Preset = "small",
    bits: Bits = None,
    hidden_bits: HiddenBits = None,
    radius: Radius = None,
    contexts: ContextNames = None,
    order: Order = None,
    prune: Prune = None,
    smoothing: Smoothing = "fit",
    temperature: Temperature = "fit",
    device: Device = None,
    workers: Workers = CORES,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Shards, step 4: solve counts into a language model, with the same bytes as `fit --tokenizer` on all the text.

    The contexts attended, block and document are refused: each of their layers needs a pass over the whole text.
    """
    from warmstart import shards
    from warmstart.estimators import WarmStartLM
    from warmstart.folder import check_target

    check_target(output)
    counting = device_of(device)
    model = WarmStartLM(
        preset=preset,
        bits=bits,
        hidden_bits=hidden_bits,
        radius=radius,
        contexts=None if contexts is None else tuple(name.strip() for name in contexts.split(",")),
        order=order,
        prune=None if prune is None else whole_numbers(prune),
        smoothing=number_or_fit(smoothing),
        temperature=number_or_fit(temperature),
        n_jobs=workers,
    )
    with Reporter(quiet) as progress:
        shards.solve(shards.Statistic.load(statistic), model, device=counting, progress=progress)
        model.save_pretrained(output)
    print_result({"model": str(output), **model.report_}, as_json, quiet)
