"""The benches by name, and what each needs: files of the data sets and packages. What is absent is named at once."""

import json
import lzma
import os
import sys
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import ROOT
from warmstart.errors import InputError


class Needs(NamedTuple):
    """What a bench cannot do without: files of the data folder, packages, and matplotlib unless the run is quick."""

    files: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    plots: bool = True


MNIST = tuple(f"mnist/{s}-{p}-ubyte.gz" for s in ("train", "t10k") for p in ("images-idx3", "labels-idx1"))
EWT = tuple(f"ud-english-ewt/en_ewt-ud-{split}.conllu" for split in ("train", "dev", "test"))
WNUT = tuple(f"wnut17/{split}.conll" for split in ("train", "dev", "test"))
WORDSIM = tuple(f"wordsim/EN-{pairs}.txt" for pairs in ("SIMLEX-999", "WS-353-ALL", "MEN-TR-3k", "RW-STANFORD"))
CLASSICS = ("classics/train.txt.xz", "classics/valid.txt", "classics/test.txt")
WIKITEXT = ("wikitext-2/train.txt", "wikitext-2/valid.txt", "wikitext-2/test.txt")
CLINC, LAMP, BLIMP = "clinc150/data_full.json", "lamp/lamp.tsv", "blimp/blimp_dev15.jsonl"
BENCHES = {
    "classifier": Needs((*MNIST, CLINC, *EWT)),
    "attention": Needs(CLASSICS),
    "throughput": Needs(CLASSICS, ("gensim",), plots=False),
    "lm": Needs((*CLASSICS, *WIKITEXT)),
    "finetune": Needs((*WIKITEXT, *CLASSICS)),
    "near_shallow": Needs(WIKITEXT, plots=False),
    "beside": Needs((*WIKITEXT, *CLASSICS), plots=False),
    "transformers": Needs((BLIMP, *CLASSICS), ("transformers",)),
    "mixers": Needs(WIKITEXT, ("transformers",)),
    "fast_weights": Needs(WIKITEXT, ("transformers",), plots=False),
    "embeddings": Needs((*WIKITEXT, *CLASSICS), ("transformers",), plots=False),
    "vectors": Needs((*CLASSICS, *EWT, *WNUT, *WORDSIM), ("gensim",)),
    "defaults": Needs((CLASSICS[0], WIKITEXT[0], *EWT, *WORDSIM, CLINC, LAMP), ("gensim",), plots=False),
    "memory": Needs(),
    "retrieval": Needs(),
    "blimp": Needs((BLIMP, *CLASSICS), ("transformers",), plots=False),
    "lamp": Needs((LAMP,)),
    "edge": Needs((CLASSICS[0], CLASSICS[2]), plots=False),
    "little_data": Needs(CLASSICS, ("transformers",), plots=False),
    "saturation": Needs(CLASSICS[:2]),
    "mixed": Needs(MNIST, plots=False),
    "lengths": Needs((CLINC,), ("transformers",), plots=False),
    "tickets": Needs(WIKITEXT, ("transformers",), plots=False),
    "orders": Needs((*WIKITEXT, CLINC, *EWT), plots=False),
}
EXTRAS = {"transformers": "hf", "gensim": "bench", "matplotlib": "plot"}


class AbsentError(InputError):
    """A package or a file that a bench needs is absent."""


def data_folder() -> Path:
    """Return where the data sets should be: the environment variable WARMSTART_DATA, else ../shared/data."""
    return Path(os.environ.get("WARMSTART_DATA") or ROOT.parent / "shared" / "data")


def kenlm() -> Path | None:
    """Return the folder of KenLM's programs, from the environment variable KENLM; None if it is not set.

    Raises
    ------
    InputError
        It has no `lmplz`.
    """
    folder = os.environ.get("KENLM")
    if folder and not os.access(Path(folder, "lmplz"), os.X_OK):
        raise InputError(f"KENLM: expected a folder with the program lmplz, got {folder}; build KenLM, or unset KENLM")
    return Path(folder) if folder else None


def check(name: str, quick: bool) -> None:
    """Raise `AbsentError` if a bench lacks a package, the folder of the data sets or a file in it."""
    needs, folder = BENCHES[name], data_folder()
    for package in (*needs.packages, *(("matplotlib",) if needs.plots and not quick else ())):
        if find_spec(package) is None:
            raise AbsentError(f"expected {package}, found none; pip install 'warmstart[{EXTRAS[package]}]'")
    if needs.files and not folder.is_dir():
        raise AbsentError(f"expected a folder of data sets at {folder}, found none; set WARMSTART_DATA to yours")
    for file in needs.files:
        if not (folder / file).is_file():
            raise AbsentError(f"expected {folder / file}, found none; the README lists the data sets")


def cut(name: str, folder: Path) -> Path:
    """Write the beginnings of a bench's files to a folder, for a quick run, and return the folder.

    Texts have 400,000 characters to train on and 60,000 to score, tagged texts 300 sentences. BLiMP has every 10th
    pair, CLINC150 every 20th example. Images and word pairs are links to the whole files.
    """
    for file in BENCHES[name].files:
        source, target = data_folder().resolve() / file, folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.startswith(("classics/", "wikitext-2/")):
            train = "/train" in file
            reader, writer = (lzma.open, lzma.open) if file.endswith(".xz") else (open, open)
            with reader(source, "rt", encoding="utf-8") as text, writer(target, "wt", encoding="utf-8") as short:
                short.write(text.read(400_000 if train else 60_000))
        elif file.endswith((".conllu", ".conll")):
            target.write_text("\n\n".join(source.read_text(encoding="utf-8").split("\n\n")[:300]) + "\n\n", "utf-8")
        elif file.endswith(".json"):
            examples = json.loads(source.read_text(encoding="utf-8"))
            target.write_text(json.dumps({split: rows[::20] for split, rows in examples.items()}), "utf-8")
        elif file.endswith(".jsonl"):
            target.write_text("".join(source.read_text(encoding="utf-8").splitlines(keepends=True)[::10]), "utf-8")
        else:
            target.symlink_to(source)
    return folder


def able(quick: bool) -> list[str]:
    """Return the benches that have what they need; name the others on stderr, one line for each reason."""
    benches: dict[str, list[str]] = {}  # by what they lack
    for name in BENCHES:
        try:
            check(name, quick)
        except AbsentError as error:
            benches.setdefault(str(error), []).append(name)
    for reason, names in benches.items():
        sys.stderr.write(f"left out: {', '.join(names)}: {reason}\n")
    return [name for name in BENCHES if name not in chain(*benches.values())]
