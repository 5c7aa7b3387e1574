"""The command line: ``fit``, ``eval``, ``generate``, ``explain``, ``finetune``, ``compare``, ``init`` and ``export``.

``tokenizer``, ``count``, ``merge`` and ``solve`` are ``fit`` in shards.

Results go to stdout, as a table or as one JSON object (``--json``). Progress and errors go to stderr.
"""

import io
import json
import os
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bitcipher import CapacityError
from warmstart import __version__
from warmstart.errors import InputError
from warmstart.formats import TOKENS, Reading, is_token_file, read_settings
from warmstart.progress import Reporter, peak_memory
from warmstart.records import parse_json

LARGEST = 2**63 - 1  # seed that all generators take

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no table.")]
Split = Annotated[
    str | None,
    typer.Option(
        "--split-documents",
        metavar="REGEX",
        help="Cut text files into documents where REGEX matches. They are always cut at <|endoftext|>.",
    ),
]
TextFormat = Annotated[
    Literal["text", "jsonl"] | None,
    typer.Option(
        "--format",
        help="Read all files as plain text, or as JSON lines, where their names and first bytes do not tell.",
    ),
]
TextField = Annotated[
    str, typer.Option(metavar="NAME", help="Field of a JSON record, or column of a table, that has the text.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad-records", help="Leave out records without text, and count and name them.")
]
TokensOf = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", metavar="FILE", help="For files of tokens: the tokenizer.json that wrote them, or its folder."
    ),
]
EndOfText = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN",
        help="In files of tokens: the text or id of a token that ends documents, besides <|endoftext|>.",
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Number of threads. The result does not depend on it.")]
VocabSize = Annotated[int, typer.Option(min=2, help="Largest vocabulary of a trained tokenizer.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a model that `warmstart fit` wrote.")]
NewModel = Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="Folder to write the model to.")]
Text = Annotated[list[str] | None, typer.Argument(metavar="[CORPUS]...", help="Text to read, as for `fit`.")]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Limit of memory, such as 800M or 4G. It chooses how much is counted at once. An upper bound of what is "
        "needed is shown when the number of tokens is known; what could take more is refused.",
        show_default="none",
    ),
]
CORES = os.cpu_count() or 1

PRESET = "from the preset"
Preset = Annotated[str, typer.Option(help="Size of the model: potato, micro, small, base or large.")]
Bits = Annotated[int | None, typer.Option(help="Network: dimension of the token vectors.", show_default=PRESET)]
HiddenBits = Annotated[int | None, typer.Option(help="Network: width of the value layers.", show_default=PRESET)]
Radius = Annotated[int | None, typer.Option(help="Network: tokens in the radial context.", show_default=PRESET)]
BlockSize = Annotated[int | None, typer.Option(help="Network: tokens in the block context.", show_default=PRESET)]
ContextNames = Annotated[
    str | None,
    typer.Option(
        "--contexts",
        help="What the next token is predicted from. Counts: ngrams, classes (of tokens), cache (this document so "
        "far). Network: radial, attended, block, document, memory.",
        show_default=PRESET,
    ),
]
Order = Annotated[int | None, typer.Option(help="Length of the longest n-grams.", show_default=PRESET)]
Prune = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...",
        help="For n-grams of 1, 2, ... tokens: leave out those that occur at most N times; the last N holds for "
        "all longer ones. 0,0,1 leaves out trigrams and longer ones that occur once. The model is saved without "
        "its counts.",
        show_default=PRESET,
    ),
]
Smoothing = Annotated[str, typer.Option(help='Pseudo-counts added to each feature: a number, or "fit".')]
Temperature = Annotated[str, typer.Option(help='Factor of the weights: "fit", or a number (as published: 1).')]
Statistic = Annotated[Path, typer.Option("--output", "-o", metavar="STATS", help="File to write the counts to.")]
SomeText = Annotated[
    list[str], typer.Argument(metavar="TEXT...", help="Text to read, as for `fit`; - is standard input.")
]

UsageError = typer.BadParameter.__mro__[1]  # typer does not export it in all versions
MEND = "mend its name or permissions, free space on the disk, or choose another place"
SHOWN_SHARE = 0.01  # of an expert in a probability; smaller ones are left out of tables


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"warmstart {__version__}")
        raise typer.Exit


@app.callback()
def warmstart(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", hidden=True, help="Show the traceback of an error.")] = False,
) -> None:
    """Language models without a gradient: count a corpus once, solve the counts, and train a network beside them."""


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
    smoothing: Smoothing = "fit",
    temperature: Temperature = "fit",
    cold: Annotated[bool, typer.Option("--cold", help="Write random weights instead, to compare with.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST, help="Seed of the random weights of --cold.")] = 0,
    split_documents: Split = None,
    text_format: TextFormat = None,
    text_field: TextField = "text",
    skip_bad_records: SkipBad = False,
    max_memory: MaxMemory = None,
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
    _check_used(_paths(corpus), text_format, end_of_text=end_of_text)
    if cold and max_memory is not None:
        raise typer.BadParameter("expected --max-memory without --cold, got both")
    limit = _limit(max_memory)
    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    model = WarmStartLM(
        preset=preset,
        bits=bits,
        hidden_bits=hidden_bits,
        radius=radius,
        block_size=block_size,
        contexts=None if contexts is None else tuple(name.strip() for name in contexts.split(",")),
        order=order,
        prune=None if prune is None else _whole_numbers(prune),
        smoothing=_number_or_fit(smoothing),
        temperature=_number_or_fit(temperature),
        n_jobs=workers,
    )
    sources = _sources(corpus, tokenizer, end_of_text, text_format) or default_corpus("train")
    began = time.perf_counter()
    with Reporter(quiet) as progress:
        options: dict[str, Any] = {"tokenizer": tokenizer, "vocab_size": vocab_size, **reading}
        encoded = Corpus.build(sources, progress=progress, **options)
        corpus_seconds = time.perf_counter() - began
        if cold:
            model.initialise(encoded, seed)
        else:
            budget = _budget(limit, workers, progress)
            model.fit(encoded, budget=budget, progress=progress)
        model.save_pretrained(output)
    seconds: dict[str, float] = {**model.report_["seconds"], "corpus": round(corpus_seconds, 3)}
    report = {**model.report_, "seconds": seconds, "tokens_per_second": round(encoded.n_tokens / sum(seconds.values()))}
    if limit:
        report["estimated_memory_bytes"] = budget.estimate
    _print({"model": str(output), **report}, as_json, quiet)


def _limit(size: str | None) -> int:
    """Return a limit in bytes, 0 without one."""
    from warmstart.budget import parse_size

    return 0 if size is None else parse_size(size)


def _budget(limit: int, workers: int, progress: Reporter) -> Any:
    from warmstart.budget import Budget

    return Budget(limit, workers, progress) if limit else None


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
        paths = _paths(sample)
        trained = shards.train(paths, output, kind=kind, vocab_size=vocab_size, progress=progress, **reading)
    size, seconds = trained.get_vocab_size(), round(time.perf_counter() - began, 3)
    _print({"tokenizer": str(output), "vocab_size": size, "seconds": seconds}, as_json, quiet)


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
    split_documents: Split = None,
    text_format: TextFormat = None,
    text_field: TextField = "text",
    skip_bad_records: SkipBad = False,
    max_memory: MaxMemory = None,
    workers: Workers = CORES,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Shards, step 2: count one shard, which is whole documents; many at the same time, on any machines.

    The file has all n-grams and the documents as token ids, so that nothing else of the text is needed afterwards.
    """
    from warmstart import shards

    shards.check_output(output)
    limit = _limit(max_memory)
    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    began = time.perf_counter()
    with Reporter(quiet) as progress:
        budget = _budget(limit, workers, progress)
        options: dict[str, Any] = {"order": order, "workers": workers, "progress": progress, **reading}
        statistic = shards.count(_paths(shard), tokenizer, budget=budget, **options)
        statistic.save(output)
    estimate = {"estimated_memory_bytes": budget.estimate} if budget else {}
    _print({**_described(statistic, output, began), **estimate}, as_json, quiet)


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
    _print({"files": len(statistics), **_described(statistic, output, began)}, as_json, quiet)


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
    model = WarmStartLM(
        preset=preset,
        bits=bits,
        hidden_bits=hidden_bits,
        radius=radius,
        contexts=None if contexts is None else tuple(name.strip() for name in contexts.split(",")),
        order=order,
        prune=None if prune is None else _whole_numbers(prune),
        smoothing=_number_or_fit(smoothing),
        temperature=_number_or_fit(temperature),
        n_jobs=workers,
    )
    with Reporter(quiet) as progress:
        shards.solve(shards.Statistic.load(statistic), model, progress=progress)
        model.save_pretrained(output)
    _print({"model": str(output), **model.report_}, as_json, quiet)


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

    _check_used(_paths(text), text_format, tokenizer=tokenizer, end_of_text=end_of_text)
    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    loaded = WarmStartLM.from_pretrained(model, n_jobs=workers)
    sources = _sources(text, tokenizer, end_of_text, text_format) or default_corpus("test")
    with Reporter(quiet) as progress:
        result = loaded.evaluate(sources, progress=progress, **reading)
    experts = {} if as_json else result.pop("experts", {})
    shares = {} if as_json else result.pop("shares", {})
    _print(result, as_json, quiet)
    if experts and not quiet:
        rows = [[name, _shown(experts[name]), f"{shares[name]:.1%}"] for name in experts]
        _print_table(rows, ["expert", "perplexity alone", "share in the mixture"])


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
        _print_table(rows, ["next token", "probability", "experts", "n-grams of the text", "earlier in this document"])
    if picture is not None:
        write_picture(picture, loaded.mixture_, ids, tokenizer)


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
    given = _paths([*(corpus or []), *([valid] if valid else [])])
    _check_used(given, text_format, tokenizer=tokenizer, end_of_text=end_of_text)
    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    plan = Plan(
        phases, rate, max_tokens, validate_every, valid_tokens, batch_tokens, seed, bf16, device, checkpoints_by_words
    )
    job = Job(WarmStartLM.from_pretrained(model), output or model.with_name(f"{model.name}-finetuned"), plan)
    try:
        with Reporter(quiet) as progress:
            result = job.run(
                _sources(corpus, tokenizer, end_of_text, text_format) or default_corpus("train"),
                _sources([valid] if valid else None, tokenizer, end_of_text, text_format) or default_corpus("test"),
                resume=resume,
                log=log,
                tensorboard=tensorboard,
                progress=progress,
                **reading,
            )
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; the checkpoint is in {job.folder}; repeat the command with --resume to continue\n")
        raise
    _print(result, as_json, quiet)


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
        _print_table([["never" if value is None else _shown(value) for value in row.values()] for row in rows], names)
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
    _check_used(_paths(corpus), text_format, end_of_text=end_of_text)
    recipe = _counted_recipe(counted, contexts, order, prune)
    reading = asdict(Reading(split_documents, text_format, text_field, skip_bad_records))
    fields = None if config is None else _json_object(config)
    sources = _sources(corpus, tokenizer, end_of_text, text_format) or default_corpus("train")
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
    _print({"model": str(output), **sizes, "seconds": times, **solved, **shown}, as_json, quiet)


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

    _print({"written": str(output), **write(WarmStartLM.from_pretrained(model), output, form)}, as_json, quiet)


def _counted_recipe(counted: bool, contexts: str | None, order: int | None, prune: str | None) -> Any:
    """Return what ``init --counted`` solves; refuse its options without it."""
    given: dict[str, Any] = {
        "contexts": None if contexts is None else tuple(name.strip() for name in contexts.split(",")),
        "order": order,
        "prune": None if prune is None else _whole_numbers(prune),
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


def _json_object(text: str) -> dict[str, Any]:
    """Read a JSON object, inline or from a file."""
    try:
        content = parse_json(text if text.lstrip().startswith("{") else read_settings(Path(text)))
    except (OSError, ValueError) as error:
        raise InputError(f"config: expected a JSON object or a file of one, got: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"config: expected a JSON object, got {type(content).__name__}")
    return content


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected whole numbers with commas between, such as 0,0,1, got {text!r}") from error


def _paths(names: list[str] | None) -> list[Path]:
    """Return paths; that of ``-`` is standard input, that of ``./-`` a file."""
    if "" in (names or []):  # the path of an empty name would be the working folder
        raise typer.BadParameter("expected names of files or folders, got an empty one")
    return [Path(name) if name == "-" or Path(name) != Path("-") else Path(name).absolute() for name in names or []]


def _has_tokens(paths: list[Path], text_format: str | None) -> bool:
    return text_format is None and any(map(is_token_file, paths))


def _check_used(paths: list[Path], text_format: str | None, **options: str | None) -> None:
    """Refuse options for files of tokens where there are none."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given and not _has_tokens(paths, text_format):
        raise typer.BadParameter(f"expected files of tokens ({', '.join(TOKENS)}) with {', '.join(given)}, got none")


def _sources(names: list[str] | None, tokenizer: str | None, end_of_text: str | None, text_format: str | None) -> Any:
    """Return paths, or files of tokens with their tokenizer."""
    paths = _paths(names)
    if not _has_tokens(paths, text_format):
        return paths
    from warmstart.token_files import TokenFiles
    from warmstart.tokenizer import KINDS

    if tokenizer is None or tokenizer in KINDS:
        raise InputError(
            f"expected --tokenizer FILE with files of tokens, got {tokenizer or 'none'}; give the tokenizer that wrote "
            "them, or --format text if they are text"
        )
    end = int(end_of_text) if end_of_text and end_of_text.isdecimal() else end_of_text
    return TokenFiles(paths, tokenizer, end)


def _print(result: dict[str, Any], as_json: bool, quiet: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
    elif not quiet:
        rows = []
        for name, value in result.items():
            for key, item in value.items() if isinstance(value, dict) else [("", value)]:
                rows.append([f"{name} {key}".strip().replace("_", " "), _shown(item)])
        _print_table(rows)


def _print_table(rows: list[list[str]], header: list[str] | None = None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*(header or []), show_header=header is not None, box=None)
    for row in rows:
        table.add_row(*map(Text, row))  # in plain strings brackets are markup
    Console().print(table)


def _shown(value: Any) -> str:
    """Return a value as text for a table: fractions with three significant digits, whole numbers with all."""
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, float):
        rounded = float(f"{value:.3g}")
        return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:#.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> None:
    """Run the command line and exit with 0, with 1 after an error, 2 after wrong usage, 130 after Ctrl-C.

    An error is one line on stderr, which says what was expected, what came and what to do.
    ``warmstart --debug COMMAND`` shows its traceback too.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {_line(message)}\n"
    for stream in (sys.stdout, sys.stderr):  # names of files and generated text may not be in its encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = app(arguments, prog_name="warmstart", standalone_mode=False)
    except Exception as error:
        if "--debug" in arguments[:1]:
            traceback.print_exc()
        sys.stderr.write(f"error: {_line(_sentence(error))}\n")
        code = 2 if isinstance(error, UsageError) else 1
    sys.exit(code)


def _sentence(error: Exception) -> str:
    """Return what was expected, what came, and what to do."""
    if isinstance(error, UsageError):
        usage: Any = error
        name = "warmstart" if usage.ctx is None else usage.ctx.command_path
        return f"{usage.format_message().rstrip('.')}; see {name} --help"
    if isinstance(error, InputError | CapacityError):
        return str(error)
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}expected files that can be read and written, got: {error.strerror or error}; {MEND}"
    if isinstance(error, OverflowError):
        return f"expected numbers that can be computed with, got a larger one: {error}; give smaller ones"
    if isinstance(error, MemoryError):
        return "expected more memory, got no more; choose a smaller preset, fewer bits or a smaller radius"
    return (
        f"expected no {type(error).__name__}, got a fault of warmstart itself: {error}; please report what "
        "warmstart --debug COMMAND shows"
    )


def _line(message: object) -> str:
    """Return a message without line breaks and other control characters, which names of files can have."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(message))


if __name__ == "__main__":
    main()
