"""The commands of a model: ``fit``, ``eval``, ``generate``, ``explain`` and ``export``."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from warmstart.cli.app import app
from warmstart.cli.engines import check_engine, fit_on_dask
from warmstart.cli.options import (
    CORES,
    LARGEST,
    Bits,
    BlockSize,
    ContextNames,
    Device,
    EndOfText,
    Engine,
    HiddenBits,
    Json,
    MaxMemory,
    Model,
    NewModel,
    Order,
    Preset,
    Prune,
    Quiet,
    Radius,
    Resume,
    Scheduler,
    SkipBad,
    Smoothing,
    Split,
    Temperature,
    TextField,
    TextFormat,
    TokensOf,
    VocabSize,
    Workers,
)
from warmstart.cli.output import print_result, print_table, shown
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
from warmstart.progress import Reporter

SHOWN_SHARE = 0.01  # of an expert in a probability; smaller ones are left out of tables


@app.command()
def fit(
    output: NewModel,
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CORPUS]...",
            help="Text files, JSON lines, also packed as .gz, .bz2, .xz or .zst; Parquet and Arrow files (extra "
            "`parquet`); folders of .txt, .md, .jsonl, .json, .parquet and .arrow files; or - for standard input. Or "
            "files of tokens, with --tokenizer: .bin of nanoGPT, llm.c or Megatron, .ds of datatrove. Without a "
            "corpus: nine tenths of the documentation that ships with Python.",
        ),
    ] = None,
    preset: Preset = "small",
    bits: Bits = None,
    hidden_bits: HiddenBits = None,
    radius: Radius = None,
    block_size: BlockSize = None,
    contexts: ContextNames = None,
    order: Order = None,
    prune: Prune = None,
    tokenizer: Annotated[
        str, typer.Option(help="bpe, words or characters to train one on the corpus, or the path of a tokenizer.json.")
    ] = "bpe",
    end_of_text: EndOfText = None,
    vocab_size: VocabSize = 8192,
    sample: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Read only this share of the documents, chosen by a hash of their content, so that 0.2 has all "
            "of 0.1. To learn how much is enough, fit several shares with one --tokenizer, and score them with `eval`.",
        ),
    ] = 1.0,
    smoothing: Smoothing = "fit",
    temperature: Temperature = "fit",
    cold: Annotated[bool, typer.Option("--cold", help="Write random weights instead, to compare with.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST, help="Seed of the random weights of --cold.")] = 0,
    split_documents: Split = None,
    text_format: TextFormat = None,
    text_field: TextField = "text",
    skip_bad_records: SkipBad = False,
    max_memory: MaxMemory = None,
    engine: Engine = None,
    scheduler: Scheduler = None,
    resume: Resume = False,
    device: Device = None,
    workers: Workers = CORES,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count a corpus and solve the counts into a language model."""
    from warmstart.corpus import Corpus
    from warmstart.documents import default_corpus
    from warmstart.estimators import WarmStartLM
    from warmstart.folder import check_target

    check_target(output)
    check_used(paths_of(corpus), text_format, end_of_text=end_of_text)
    here = {"--max-memory": max_memory is not None, "--resume": resume, "--device": device is not None}
    if cold and any(here.values()):
        raise typer.BadParameter("expected --max-memory, --resume and --device without --cold, got both")
    check_engine(engine, scheduler, bool(corpus), tokenizer, {"--cold": cold, **here, "--sample": sample != 1.0})
    limit = limit_of(max_memory)
    counting = None if cold or engine else device_of(device, limit)
    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    model = WarmStartLM(
        preset=preset,
        bits=bits,
        hidden_bits=hidden_bits,
        radius=radius,
        block_size=block_size,
        contexts=None if contexts is None else tuple(name.strip() for name in contexts.split(",")),
        order=order,
        prune=None if prune is None else whole_numbers(prune),
        smoothing=number_or_fit(smoothing),
        temperature=number_or_fit(temperature),
        n_jobs=workers,
    )
    sources = sources_of(corpus, tokenizer, end_of_text, text_format) or default_corpus("train")
    if scheduler:
        with Reporter(quiet) as progress:
            report = fit_on_dask(model, sources, scheduler, tokenizer, output, progress, reading)
        print_result({"model": str(output), **report}, as_json, quiet)
        return
    began = time.perf_counter()
    with work_of(output, limit, resume) as work, Reporter(quiet) as progress:
        options: dict[str, Any] = {"tokenizer": tokenizer, "vocab_size": vocab_size, "sample": sample, **reading}
        encoded = Corpus.build(sources, progress=progress, **options)
        corpus_seconds = time.perf_counter() - began
        if cold:
            model.initialise(encoded, seed)
        else:
            budget = budget_of(limit, workers, progress)
            model.fit(encoded, device=counting, budget=budget, work=work, progress=progress)
        model.save_pretrained(output)
    seconds: dict[str, float] = {**model.report_["seconds"], "corpus": round(corpus_seconds, 3)}
    report = {**model.report_, "seconds": seconds, "tokens_per_second": round(encoded.n_tokens / sum(seconds.values()))}
    if limit:
        report["estimated_memory_bytes"] = budget.estimate
    print_result({"model": str(output), **report}, as_json, quiet)


@app.command("eval")
def evaluate(
    model: Model,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...", help="Text as for `fit`. Without it: the other tenth of the documentation."
        ),
    ] = None,
    tokenizer: TokensOf = None,
    end_of_text: EndOfText = None,
    split_documents: Split = None,
    text_format: TextFormat = None,
    text_field: TextField = "text",
    skip_bad_records: SkipBad = False,
    workers: Workers = CORES,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a text: perplexity and bits per byte, each expert alone, its share, and n-gram models to compare with."""
    from warmstart.documents import default_corpus
    from warmstart.estimators import WarmStartLM

    check_used(paths_of(text), text_format, tokenizer=tokenizer, end_of_text=end_of_text)
    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    loaded = WarmStartLM.from_pretrained(model, n_jobs=workers)
    sources = sources_of(text, tokenizer, end_of_text, text_format) or default_corpus("test")
    with Reporter(quiet) as progress:
        result = loaded.evaluate(sources, progress=progress, **reading)
    experts = {} if as_json else result.pop("experts", {})
    shares = {} if as_json else result.pop("shares", {})
    print_result(result, as_json, quiet)
    if experts and not quiet:
        rows = [[name, shown(experts[name]), f"{shares[name]:.1%}"] for name in experts]
        print_table(rows, ["expert", "perplexity alone", "share in the mixture"])


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Beginning of the text.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Largest number of tokens to write.")] = 60,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Below 1 favours probable tokens; 0 always takes the most probable one.")
    ] = 0.8,
    top_p: Annotated[
        float, typer.Option(help="Sample from the most probable tokens that together have this probability.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST, help="The same seed gives the same text.")] = 0,
    as_json: Json = False,
) -> None:
    """Continue a prompt with text from the model."""
    from warmstart.estimators import WarmStartLM

    loaded = WarmStartLM.from_pretrained(model)
    text = loaded.generate(prompt, max_tokens, temperature, top_p, seed)
    typer.echo(json.dumps({"prompt": prompt, "text": text}) if as_json else prompt + text)


@app.command()
def explain(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Text of the document so far.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Number of next tokens to explain.")] = 5,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="HTML", help="Also write the prompt with each token coloured by what predicted it."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what speaks for the next token: which n-grams of the counted text, and which places of the document."""
    from warmstart.estimators import WarmStartLM
    from warmstart.explanation import described, write_picture
    from warmstart.tokenizer import encoded

    loaded = WarmStartLM.from_pretrained(model)
    tokenizer = loaded.tokenizer_
    ids = encoded(tokenizer, prompt, "prompt")
    result = described(loaded.explain(ids, top), ids, tokenizer)
    if as_json:
        typer.echo(json.dumps(result))
    elif not quiet:
        rows = [
            [
                repr(reason["token"]),
                f"{reason['probability']:.1%}",
                ", ".join(f"{name} {share:.0%}" for name, share in reason["experts"].items() if share >= SHOWN_SHARE),
                ", ".join(f"{ngram['text']!r} {ngram['share']:.0%}" for ngram in reason["ngrams"][:2]),
                ", ".join(f"{place['text']!r} {place['share']:.0%}" for place in reason["places"][:2]),
            ]
            for reason in result["tokens"]
        ]
        print_table(rows, ["next token", "probability", "experts", "n-grams of the text", "earlier in this document"])
    if picture is not None:
        write_picture(picture, loaded.mixture_, ids, tokenizer)


@app.command()
def export(
    model: Model,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="Folder to write (numpy, torch), or file (c, onnx)."),
    ],
    form: Annotated[
        Literal["numpy", "c", "torch", "onnx"],
        typer.Option(
            "--format",
            help="numpy: for warmstart.edge, which needs numpy alone. c: a table for a board, read by "
            "examples/edge/warmstart.c. torch, onnx (extra `onnx`): the network.",
        ),
    ] = "numpy",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model for places where warmstart is not. What a format cannot hold is named under `left out`."""
    from warmstart.estimators import WarmStartLM
    from warmstart.export import export as write

    print_result({"written": str(output), **write(WarmStartLM.from_pretrained(model), output, form)}, as_json, quiet)
