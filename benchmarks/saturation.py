"""How much text is enough: the error of a solution against the share of the documents that was counted.

The documents of a share are chosen as by ``warmstart fit --sample``, and all shares have the tokenizer of the whole.
The same runs measure what each stage costs, from which `benchmarks.plan` plans for texts that need many machines.
"""

import itertools
import lzma
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import plan, texts
from benchmarks import saturation_section as section
from benchmarks.harness import Results, alone
from warmstart.corpus import Corpus
from warmstart.documents import is_sampled
from warmstart.estimators import WarmStartLM
from warmstart.ngrams import NGramCounts, count_ngrams, joined
from warmstart.progress import Progress, peak_memory, resident_memory

NAME = "classics"
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 1.0)  # less than 1/32 has no book
TOKENIZED = 1 / 8  # share whose tokenization is measured
PRESET = "small"
EVERY = 2  # every other document of the validation text is scored
CODE = ("benchmarks.saturation", "warmstart.estimators.language_model", "warmstart.corpus")


def measure(data: Path, preset: str, vocabulary: int, split: str, share: float) -> dict[str, Any]:
    """Count a share of the documents in two halves, merge and solve them, and score validation text.

    Returns
    -------
    dict
        ``tokens``, ``documents``; ``ngrams`` of every length; CPU ``seconds`` of the stages and ``memory``, the peak in
        bytes after each; ``statistic_bytes`` and ``model_bytes`` on disk; ``nats`` a token of every expert.
    """
    corpus = Corpus.build(texts.source(data, NAME, "train"), vocab_size=vocabulary, split_documents=split)
    documents = [corpus.tokens[a + 1 : b] for a, b in itertools.pairwise(corpus.documents.tolist())]
    chosen = [text for text in documents if is_sampled(text.tobytes(), share)]
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-", ignore_cleanup_errors=True) as work:
        folder = Path(work)
        _compile(preset, folder)
        clock = _Clock()
        model = WarmStartLM(preset, n_jobs=1)
        halves = [clock("count", _count, corpus, chosen[i::2], model) for i in range(2)]
        for i, half in enumerate(halves):
            clock("files", half.save, folder / f"{i}.stats")
        halves = [clock("files", NGramCounts.load, folder / f"{i}.stats") for i in range(2)]
        counts = clock("merge", NGramCounts.__add__, *halves)
        clock("files", counts.save, folder / "all.stats")
        found = {"tokens": counts.n_tokens, "documents": len(chosen), "ngrams": counts.sizes}
        found |= {"statistic_bytes": (folder / "all.stats").stat().st_size}
        del halves
        n_bytes = round(corpus.n_bytes * counts.n_tokens / corpus.n_tokens)
        clock("solve", model.fit_counts, counts, corpus.tokenizer, n_bytes)
        scored = re.split(split, texts.source(data, NAME, "valid").read_text("utf-8"))[::EVERY]
        scores = clock("score", model.evaluate, scored)
        model.save_pretrained(folder / "model")
        found |= {"model_bytes": sum(path.stat().st_size for path in (folder / "model").iterdir())}
        clock("load", WarmStartLM.from_pretrained, folder / "model")
    perplexities = {"mixture": scores["perplexity"], **scores["experts"], "unigram": scores["unigram_perplexity"]}
    perplexities |= {"bigram": scores["bigram_perplexity"]}
    nats = {expert: math.log(perplexity) for expert, perplexity in perplexities.items()}
    return {**found, "scored": scores["tokens"], "seconds": clock.seconds, "memory": clock.memory, "nats": nats}


class _Clock:
    """CPU seconds and peak memory of the stages: other work on the machine does not count."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory = {"before": resident_memory()}

    def __call__(self, stage: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        result = work(*arguments, **options)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - began
        self.memory[stage] = peak_memory()
        return result


def _count(corpus: Corpus, documents: Sequence[Any], model: WarmStartLM) -> NGramCounts:
    order = model._recipe().counted_order
    text = joined(documents, corpus.separator, corpus.vocab_size)
    return count_ngrams(*text, corpus.vocab_size, order, vocabulary=corpus.tokenizer.get_vocab())


def _compile(preset: str, folder: Path) -> None:
    """Compile what is timed, by a run on a short text."""
    text = ["the cat sat on the mat. the dog lay on the rug. " * 40] * 8
    corpus = Corpus.build(text, vocab_size=300, cache_dir=folder / "cache")
    model = WarmStartLM(preset, bits=32)
    counts = _count(corpus, [corpus.tokens[1 : corpus.documents[1]]] * 8, model)
    (counts + counts).save(folder / "short.stats")
    model.fit_counts(counts, corpus.tokenizer, corpus.n_bytes).evaluate(corpus)


def tokenize(data: Path, vocabulary: int, split: str, share: float) -> dict[str, Any]:
    """Return tokens, bytes and CPU seconds of the tokenization of a share of the documents."""
    path = texts.source(data, NAME, "train")
    tokenizer = Corpus.build(path, vocab_size=vocabulary, split_documents=split).tokenizer
    with lzma.open(path, "rt", encoding="utf-8") as file:
        documents = [text for text in re.split(split, file.read()) if is_sampled(text.encode(), share)]
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-", ignore_cleanup_errors=True) as folder:
        Corpus.encode(["compiled"], tokenizer, cache_dir=folder)
        began = time.process_time()
        corpus = Corpus.encode(documents, tokenizer, cache_dir=folder)
        return {"tokens": corpus.n_tokens, "bytes": corpus.n_bytes, "seconds": time.process_time() - began}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Solve every share; ``quick``: two shares of lines of text, a smaller model."""
    results = Results(None if quick else docs / "results" / "saturation.jsonl", *CODE, progress=progress)
    preset, vocabulary = ("micro", 512) if quick else (PRESET, 8192)
    split = "\n" if quick else texts.SPLITS[NAME]
    process = (lambda function, *arguments: function(*arguments)) if quick else alone
    key = {"text": NAME, "vocabulary": vocabulary}
    arguments = data, vocabulary, split, TOKENIZED
    tokenized = results.do({"tokenized": TOKENIZED, **key}, partial(process, tokenize, *arguments))
    rows = [
        results.row(
            {"share": share, "preset": preset, **key}, partial(process, measure, data, preset, vocabulary, split, share)
        )
        for share in reversed(SHARES[-2:] if quick else SHARES)
    ][::-1]
    costs = plan.Costs.of(rows, tokenized)
    planned = {"stages": costs.stages(), "growth": costs.growth_rows(), "plan": costs.rows_of_plan()}
    if not quick:
        section.write(docs, rows, costs, results)
    return {"shares": rows, **planned}
