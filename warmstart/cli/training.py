"""The commands of training: ``finetune``, ``compare`` and ``init``."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from warmstart.cli.app import app
from warmstart.cli.options import (
    CORES,
    LARGEST,
    EndOfText,
    Json,
    Model,
    NewModel,
    Quiet,
    SkipBad,
    Split,
    Text,
    TextField,
    TextFormat,
    TokensOf,
    VocabSize,
    Workers,
)
from warmstart.cli.output import print_result, print_table, shown
from warmstart.cli.values import check_used, json_object, paths_of, sources_of, whole_numbers
from warmstart.errors import InputError
from warmstart.formats import Reading
from warmstart.progress import Reporter


@app.command()
def finetune(
    model: Model,
    corpus: Text = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN", help="Folder of the run.", show_default="MODEL-finetuned"),
    ] = None,
    valid: Annotated[str | None, typer.Option(metavar="FILE", help="Validation text; required with a CORPUS.")] = None,
    phases: Annotated[
        str,
        typer.Option(
            help="Comma-separated: warm, frozen, thaw, all. Or a schedule as JSON or as a .json file, whose phases "
            "have the fields of warmstart.finetune.Phase."
        ),
    ] = "warm,frozen,thaw",
    rate: Annotated[float, typer.Option(help="Factor of all learning rates.")] = 1.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to train on.", show_default="one pass")] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one step, padding included.")] = 2048,
    validate_every: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens between two validations.", show_default="a twentieth of the run"),
    ] = None,
    valid_tokens: Annotated[int | None, typer.Option(min=1, help="Score about so many.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST, help="Seed of the order of the batches.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 products: faster if the processor has them.")] = False,
    device: Annotated[str, typer.Option(help="PyTorch's name of the device to train on: cpu, cuda, mps.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in RUN, if any.")] = False,
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines.", show_default="RUN/log.jsonl")] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write curves for TensorBoard (extra `tensorboard`).")
    ] = None,
    checkpoints_by_words: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write DIR/chck_1M, chck_2M, ... for transformers after so many words."),
    ] = None,
    tokenizer: TokensOf = None,
    end_of_text: EndOfText = None,
    split_documents: Split = None,
    text_format: TextFormat = None,
    text_field: TextField = "text",
    skip_bad_records: SkipBad = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the network of a model further, in phases, beside its counts if it has any.

    What was counted is left out of the counts document by document, so that the network learns what they do not know.
    The gate trains too, and is fitted to the validation text at the end. A stopped run continues with --resume and ends
    with the same weights.
    """
    from warmstart.documents import default_corpus
    from warmstart.estimators import WarmStartLM
    from warmstart.finetune.job import Job, Plan

    if corpus and not valid:
        raise InputError("expected --valid FILE with a corpus of your own, got none; hold out some of the text")
    given = paths_of([*(corpus or []), *([valid] if valid else [])])
    check_used(given, text_format, tokenizer=tokenizer, end_of_text=end_of_text)
    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    plan = Plan(
        phases, rate, max_tokens, validate_every, valid_tokens, batch_tokens, seed, bf16, device, checkpoints_by_words
    )
    job = Job(WarmStartLM.from_pretrained(model), output or model.with_name(f"{model.name}-finetuned"), plan)
    try:
        with Reporter(quiet) as progress:
            result = job.run(
                sources_of(corpus, tokenizer, end_of_text, text_format) or default_corpus("train"),
                sources_of([valid] if valid else None, tokenizer, end_of_text, text_format) or default_corpus("test"),
                resume=resume,
                log=log,
                tensorboard=tensorboard,
                progress=progress,
                **reading,
            )
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; the checkpoint is in {job.folder}; repeat the command with --resume to continue\n")
        raise
    print_result(result, as_json, quiet)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of `finetune` runs, or their logs.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="PNG", help="Plot of the curves.")] = "compare.png",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare runs with the first one: loss at equal tokens, tokens to equal loss, and where the curves cross."""
    from warmstart.finetune import compare as comparison

    rows = comparison.compare(runs)
    if as_json:
        typer.echo(json.dumps(rows))
    elif not quiet:
        names = [name.replace("_", " ") for name in rows[0]]
        print_table([["never" if value is None else shown(value) for value in row.values()] for row in rows], names)
    comparison.draw(runs, Path(output))


@app.command()
def init(
    output: NewModel,
    corpus: Text = None,
    arch: Annotated[
        str, typer.Option(help="Architecture, by its model_type in transformers: gpt2, llama, qwen3 and most others.")
    ] = "gpt2",
    config: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Fields of the Hugging Face configuration: a JSON object or a file of one."),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="bpe, words or characters to train one on the corpus, or the folder of an existing one.")
    ] = "bpe",
    end_of_text: EndOfText = None,
    vocab_size: VocabSize = 8192,
    heads: Annotated[
        int | None,
        typer.Option(min=0, help="Heads that start at the previous token.", show_default="half of them"),
    ] = None,
    counted: Annotated[
        bool,
        typer.Option(
            "--counted",
            help="Put the counts of the corpus beside the model: n-grams, a cache of the document, and a gate. "
            "warmstart.hub.CountedForCausalLM opens the folder.",
        ),
    ] = False,
    contexts: Annotated[
        str | None,
        typer.Option(
            help="With --counted: ngrams, classes (of tokens), cache (this document so far).",
            show_default="ngrams,cache",
        ),
    ] = None,
    order: Annotated[
        int | None, typer.Option(help="With --counted: length of the longest n-grams.", show_default="5")
    ] = None,
    prune: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="With --counted: as for `fit`.", show_default="none")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST, help="Seed of the weights that stay random.")] = 0,
    split_documents: Split = None,
    text_format: TextFormat = None,
    text_field: TextField = "text",
    skip_bad_records: SkipBad = False,
    workers: Workers = CORES,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a Hugging Face model and tokenizer that start as a bigram model of a corpus (needs the extra `hf`)."""
    from warmstart.adapters.initialise import check_new, initialise, save_folder
    from warmstart.corpus import Corpus
    from warmstart.documents import default_corpus
    from warmstart.tokenizer import KINDS

    check_new(output)
    check_used(paths_of(corpus), text_format, end_of_text=end_of_text)
    recipe = _counted_recipe(counted, contexts, order, prune)
    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    fields = None if config is None else json_object(config)
    sources = sources_of(corpus, tokenizer, end_of_text, text_format) or default_corpus("train")
    began = time.perf_counter()
    with Reporter(quiet) as progress:
        if tokenizer in KINDS:
            options: dict[str, Any] = {"tokenizer": tokenizer, "vocab_size": vocab_size, **reading}
            encoded = Corpus.build(sources, progress=progress, **options)
        else:
            encoded = Corpus.encode(sources, tokenizer, progress=progress, **reading)
        seconds = {"corpus": time.perf_counter() - began}
        settings: dict[str, Any] = {"seed": seed, "heads": heads, "progress": progress}
        solved: dict[str, Any] = {}
        if recipe is None:
            model, hf_tokenizer, report = initialise(encoded, arch, fields, **settings)
            seconds["weights"] = time.perf_counter() - began - seconds["corpus"]
            save_folder(output, model, hf_tokenizer)
        else:
            from warmstart.hub.initialise import initialise_counted

            start = initialise_counted(encoded, arch, fields, recipe, workers=workers, **settings)
            model, report, solved = start.model, start.report, dict(start.solved)
            counting = solved.pop("seconds")
            taken = sum(seconds.values()) + sum(counting.values())
            seconds |= {"weights": time.perf_counter() - began - taken} | counting
            start.save(output)
    size = model.config.get_text_config().vocab_size
    sizes = {"parameters": model.num_parameters(), "vocab_size": size, "tokens": encoded.n_tokens}
    times = {stage: round(value, 3) for stage, value in seconds.items()}
    shown = asdict(report) if as_json else {"notes": list(report.notes)}
    print_result({"model": str(output), **sizes, "seconds": times, **solved, **shown}, as_json, quiet)


def _counted_recipe(counted: bool, contexts: str | None, order: int | None, prune: str | None) -> Any:
    """Return what ``init --counted`` solves; refuse its options without it."""
    given: dict[str, Any] = {
        "contexts": None if contexts is None else tuple(name.strip() for name in contexts.split(",")),
        "order": order,
        "prune": None if prune is None else whole_numbers(prune),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not counted:
        if given:
            raise typer.BadParameter(f"expected --counted with --{', --'.join(given)}, got none")
        return None
    try:
        from warmstart.hub.initialise import counted_recipe
    except ImportError as error:
        raise InputError("expected transformers, found none; pip install 'warmstart[hf]'") from error
    return counted_recipe(**given)
