"""The command line: ``warmstart fit``, ``eval``, ``generate``, ``finetune``, ``init``, ``compare``.

Results go to stdout (a table, or one JSON object with ``--json``), progress and errors to stderr.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bitcipher import CapacityError
from warmstart.errors import InputError
from warmstart.progress import Reporter

app = typer.Typer(
    help="A gradient-free warm start for neural networks: count a corpus once, solve the counts into weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table: results only as files or JSON.")]
Split = Annotated[
    str | None,
    typer.Option("--split-documents", metavar="REGEX", help="Cut texts into documents at matches of this expression."),
]
Workers = Annotated[int, typer.Option(min=1, help="Threads. The result does not depend on them.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A folder written by `warmstart fit`.")]
CORES = os.cpu_count() or 1


def _number_or_fit(value: str) -> float | str:
    if value == "fit":
        return value
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise typer.BadParameter(f'expected a positive number or "fit", got {value!r}')
    return number


@app.command()
def fit(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="Folder to write the model to.")],
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CORPUS]...",
            help="Text files (.txt, .md, .jsonl, each also .gz or .xz), folders, or - for standard input. "
            "Default: nine tenths of the documentation that ships with Python.",
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="Size: potato, micro, small, base or large.")] = "base",
    bits: Annotated[int | None, typer.Option(help="Dimension of the cipher vectors.  [default: the preset's]")] = None,
    radius: Annotated[int | None, typer.Option(help="Tokens in the radial context.  [default: the preset's]")] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens in a block.  [default: the preset's]")] = None,
    contexts: Annotated[
        str, typer.Option(help="Comma-separated: radial, attended, block, document, memory.")
    ] = "radial,block,document",
    tokenizer: Annotated[
        str, typer.Option(help="bpe, words or characters (trained on the corpus), or the path of a tokenizer.json.")
    ] = "bpe",
    vocab_size: Annotated[int, typer.Option(min=2, help="Largest vocabulary of a trained tokenizer.")] = 8192,
    smoothing: Annotated[str, typer.Option(help='Co-occurrences added to each feature, or "fit".')] = "fit",
    temperature: Annotated[str, typer.Option(help='"fit", or a number: 1 is the published formula.')] = "fit",
    cold: Annotated[
        bool, typer.Option("--cold", help="Random weights, PyTorch's defaults, in the same architecture: to compare.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the random weights of --cold; nothing else is random.")] = 0,
    split_documents: Split = None,
    workers: Workers = CORES,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count a corpus and solve the counts into an initialised language model, without a gradient."""
    from warmstart.corpus import Corpus
    from warmstart.documents import default_corpus
    from warmstart.estimators import WarmStartLM
    from warmstart.folder import check_target

    check_target(output)
    model = WarmStartLM(
        preset=preset,
        bits=bits,
        radius=radius,
        block_size=block_size,
        contexts=tuple(name.strip() for name in contexts.split(",")),
        vocab_size=vocab_size,
        smoothing=_number_or_fit(smoothing),
        temperature=_number_or_fit(temperature),
    )
    sources = _paths(corpus) or default_corpus("train")
    began = time.perf_counter()
    with Reporter(quiet) as progress:
        built = Corpus.build(
            sources,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            split_documents=split_documents,
            progress=progress,
        )
        encoded = time.perf_counter() - began
        if cold:
            model.initialise(built, seed)
        else:
            model.fit(built, workers=workers, progress=progress)
        model.save_pretrained(output)
    seconds: dict[str, float] = {**model.report_["seconds"], "corpus": round(encoded, 3)}
    report = {**model.report_, "seconds": seconds, "tokens_per_second": round(built.n_tokens / sum(seconds.values()))}
    _print({"model": str(output), **report}, as_json, quiet)


@app.command("eval")
def evaluate(
    model: Model,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="Files, folders or - for standard input. Default: the tenth of Python's documentation fit left.",
        ),
    ] = None,
    split_documents: Split = None,
    workers: Workers = CORES,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a text: perplexity and bits per byte of the model, of each context, and of unigram and bigram models."""
    from warmstart.documents import default_corpus
    from warmstart.estimators import WarmStartLM

    loaded = WarmStartLM.from_pretrained(model)
    sources = _paths(text) or default_corpus("test")
    with Reporter(quiet) as progress:
        result = loaded.evaluate(sources, split_documents=split_documents, workers=workers, progress=progress)
    _print(result, as_json, quiet)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Text to go on from.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 60,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Sample from the most probable tokens of this total mass.")] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    as_json: Json = False,
) -> None:
    """Let the model go on from a prompt."""
    from warmstart.estimators import WarmStartLM

    loaded = WarmStartLM.from_pretrained(model)
    text = loaded.generate(prompt, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    typer.echo(json.dumps({"prompt": prompt, "text": text}) if as_json else prompt + text)


@app.command()
def finetune(
    model: Model,
    corpus: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CORPUS]...", help="Text to train on, as for `fit`. Default: Python's documentation."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN", help="Folder of the run.  [default: MODEL-finetuned]"),
    ] = None,
    valid: Annotated[
        str | None, typer.Option(metavar="FILE", help="Validation text. Needed with a CORPUS of your own.")
    ] = None,
    phases: Annotated[
        str,
        typer.Option(help="Comma-separated: warm, frozen, thaw, all; or a schedule as JSON, inline or a file."),
    ] = "warm,frozen,thaw",
    rate: Annotated[float, typer.Option(help="Factor of all learning rates.")] = 1.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Length of the run.  [default: one epoch]")] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a step, padding included.")] = 2048,
    validate_every: Annotated[
        int | None, typer.Option(min=1, help="Tokens between validations.  [default: a twentieth of the run]")
    ] = None,
    valid_tokens: Annotated[int | None, typer.Option(min=1, help="Score about so many.  [default: all]")] = None,
    seed: Annotated[int, typer.Option(help="Decides the order of the batches.")] = 0,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Matrix products in bfloat16: faster where the CPU has it.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to train, as PyTorch names it: cpu, cuda, mps.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in RUN, if there is one.")
    ] = False,
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines.  [default: RUN/log.jsonl]")] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Curves for TensorBoard too (extra `tensorboard`).")
    ] = None,
    split_documents: Split = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model further, in phases; a run that was stopped goes on with --resume to the same bits."""
    from warmstart.documents import default_corpus
    from warmstart.estimators import WarmStartLM
    from warmstart.finetune.job import Job, Plan

    if corpus and not valid:
        raise InputError("expected --valid FILE with a corpus of your own, got none; hold out some of the text")
    plan = Plan(phases, rate, max_tokens, validate_every, valid_tokens, batch_tokens, seed, bf16, device)
    job = Job(WarmStartLM.from_pretrained(model), output or model.with_name(f"{model.name}-finetuned"), plan)
    try:
        with Reporter(quiet) as progress:
            result = job.run(
                _paths(corpus) or default_corpus("train"),
                _paths([valid] if valid else None) or default_corpus("test"),
                split_documents=split_documents,
                resume=resume,
                log=log,
                tensorboard=tensorboard,
                progress=progress,
            )
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; what was trained is in {job.folder}, go on with the same command and --resume\n")
        raise
    _print(result, as_json, quiet)


@app.command()
def init(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="New folder to write the model to.")],
    corpus: Annotated[
        list[str] | None, typer.Argument(metavar="[CORPUS]...", help="As for `warmstart fit`.", show_default=False)
    ] = None,
    arch: Annotated[str, typer.Option(help="gpt2 or llama.")] = "gpt2",
    config: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Fields of the architecture by its own names: an object or a file of one."),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="bpe, words or characters (trained on the corpus), or the folder of an existing one.")
    ] = "bpe",
    vocab_size: Annotated[int, typer.Option(min=2, help="Largest vocabulary of a trained tokenizer.")] = 8192,
    heads: Annotated[
        int | None, typer.Option(min=0, help="Heads that start at the token before.  [default: half of them]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights that stay random.")] = 0,
    split_documents: Split = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a Hugging Face model folder, tokenizer included, that starts as a bigram model of a corpus (extra hf)."""
    from dataclasses import asdict

    from warmstart.adapters.initialise import check_new, initialise, save_folder
    from warmstart.corpus import Corpus
    from warmstart.documents import default_corpus
    from warmstart.tokenizer import KINDS

    check_new(output)
    fields = None if config is None else _json_object(config)
    sources = _paths(corpus) or default_corpus("train")
    began = time.perf_counter()
    with Reporter(quiet) as progress:
        if tokenizer in KINDS:
            options: dict[str, Any] = {"tokenizer": tokenizer, "vocab_size": vocab_size}
            built = Corpus.build(sources, split_documents=split_documents, progress=progress, **options)
        else:
            built = Corpus.encode(sources, tokenizer, split_documents=split_documents, progress=progress)
        encoded = time.perf_counter() - began
        model, own, report = initialise(built, arch, fields, seed=seed, heads=heads, progress=progress)
        solved = time.perf_counter() - began - encoded
        save_folder(output, model, own)
    sizes = {"parameters": model.num_parameters(), "vocab_size": model.config.vocab_size, "tokens": built.n_tokens}
    seconds = {"corpus": round(encoded, 3), "weights": round(solved, 3)}
    shown = asdict(report) if as_json else {"notes": list(report.notes)}
    _print({"model": str(output), **sizes, "seconds": seconds, **shown}, as_json, quiet)


def _json_object(text: str) -> dict[str, Any]:
    """Read a JSON object, inline or from a file."""
    try:
        content = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"config: expected a JSON object or a file of one, got: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"config: expected a JSON object, got {type(content).__name__}")
    return content


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of `finetune`, or their logs.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="Where to draw the curves.")] = Path(
        "compare.png"
    ),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Set runs beside the first: nats at equal tokens, tokens to its final nats, where the curves cross."""
    from warmstart.finetune import compare as comparison

    rows = comparison.compare(runs)
    if as_json:
        typer.echo(json.dumps(rows))
    elif not quiet:
        table = Table(*(name.replace("_", " ") for name in rows[0]))
        for row in rows:
            table.add_row(*("never" if value is None else _shown(value) for value in row.values()))
        Console().print(table)
    comparison.draw(runs, output)


def _paths(names: list[str] | None) -> list[Path]:
    return [Path(name) for name in names or []]  # Path("-") is standard input


def _print(result: dict[str, Any], as_json: bool, quiet: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
    elif not quiet:
        table = Table(show_header=False, box=None)
        for name, value in result.items():
            for key, item in value.items() if isinstance(value, dict) else [("", value)]:
                table.add_row(f"{name.replace('_', ' ')} {key}".strip(), _shown(item))
        Console().print(table)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> None:
    """Run the command line; an error a person can mend is one line and exit code 1, Ctrl-C is 130."""
    try:
        app()
    except (InputError, CapacityError) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    except MemoryError:
        message = "out of memory; choose a smaller preset, fewer bits or a smaller radius"
    sys.stderr.write(f"error: {message}\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
