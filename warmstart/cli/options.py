"""Arguments and options that several commands have."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

LARGEST = 2**63 - 1  # seed that all generators take
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
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Device of PyTorch that counts and solves n-grams, such as cuda; or cpu for the compiled loops. The "
        "result does not depend on it.",
        show_default="an NVIDIA GPU if there is one, without --max-memory; else cpu",
    ),
]
VocabSize = Annotated[int, typer.Option(min=2, help="Largest vocabulary of a trained tokenizer.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a model that `warmstart fit` wrote.")]
NewModel = Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="Folder to write the model to.")]
Text = Annotated[list[str] | None, typer.Argument(metavar="[CORPUS]...", help="Text to read, as for `fit`.")]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Limit of memory, such as 800M or 4G. It chooses how much is counted at once; what may not fit is "
        "counted in parts, in files in OUTPUT.parts. An upper bound of what is needed is shown when the number of "
        "tokens is known; what could take more is refused.",
        show_default="none",
    ),
]
Engine = Annotated[
    Literal["dask"] | None,
    typer.Option(
        help="dask: count the files on a cluster, with --scheduler and --tokenizer FILE (extra `distributed`). All "
        "machines see the files and the folder of the model.",
        show_default="this machine",
    ),
]
Scheduler = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="With --engine dask: its scheduler, such as tcp://10.0.0.1:8786.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Write what is counted to OUTPUT.parts, and go on from what a killed run left there, if any. The result "
        "is the same. The folder is deleted at the end.",
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
