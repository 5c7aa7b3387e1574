"""How much memory counting and solving take: an upper bound that is known before, held against a limit.

| symbol | meaning |
|---|---|
| n, V, k | tokens of the text, tokens of the vocabulary, length of the longest n-grams |
| N | different n-grams: of every length at most one a token, so at most ``(k - 1) n`` above the single tokens |
| r | targets of a run on the disk: the size that the limit chooses |
| w | numbers of 64 bits for the ``k - 1`` tokens after a place: 1 for ``V < 65536`` and ``k < 6`` |
| s | bytes of a token id: 2, or 4 if ``V > 65536`` |

Every term is the size of arrays that are alive at the same time:

- A level has a token, a count and an offset for each n-gram, ``s + 8`` bytes; while it is written, the counts as bytes.
- What follows each place, while it is sorted: ``8 w + 1`` bytes, and again ``8 w`` for the part that a thread sorts.
- With runs (`warmstart.spill`) only those of one run are in memory: ``n`` is ``r``. To that come the blocks of a merge
  and large counts; of the text the mapped ids and the documents, which are written without a copy.
- Text: the mapped ids, the documents, and their copy while they are written; 256 bytes for each document.
- Kneser-Ney: adjusted count, number of the suffix, probability, mass and offset of each n-gram, at most 34 bytes.
- A class model is counted and solved too; it has at most as many n-grams of each length as there are of tokens.
- The network: sums in float64, scores of the sample as they are kept, tables and weights, twice while they are made.
- Experts are solved one after the other: what is held adds up, and of what is used meanwhile the largest counts.

What the process holds already is measured, and `LIBRARIES` is added for kernels that are loaded or compiled.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from warmstart.classes import ORDER as CLASS_ORDER
from warmstart.contexts import TARGETS_PER_CHUNK
from warmstart.errors import InputError
from warmstart.kneser_ney import TARGETS_PER_BATCH
from warmstart.levels import id_type, key_layout
from warmstart.near_shallow import Config
from warmstart.near_shallow.fit import ATTENTION_TARGETS, SAMPLE
from warmstart.ngrams import NGramCounts
from warmstart.progress import Progress, peak_memory, resident_memory
from warmstart.sample import READ, TARGETS
from warmstart.solution import EXAMPLES_PER_BLOCK, KEPT_BYTES
from warmstart.solving import Recipe
from warmstart.spill import BLOCK, RUN, SpilledCounts, Work

LIBRARIES = 192 << 20
SMALLEST_RUN = 1 << 16
PER_DOCUMENT = 256
KNESER_NEY = 34
MERGING = 64  # bytes for each n-gram of a block that is merged
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Return a number of bytes; K, M, G and T are powers of 1024.

    Raises
    ------
    InputError
        The text is no such size.

    Examples
    --------
    >>> parse_size("4G"), parse_size("1.5 MiB")
    (4294967296, 1572864)
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    size = int(float(found[1]) * 1024 ** UNITS[found[2].upper()]) if found else 0
    if not size:
        raise InputError(f"max_memory: expected a size such as 800M or 4G, got {text!r}")
    return size


def shown_size(size: int) -> str:
    """Return a size as text.

    Examples
    --------
    >>> shown_size(2048 << 20), shown_size(1)
    ('2.0 GiB', '1 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{-(-size >> 20)} MiB"


def counting_bytes(n_tokens: int, n_documents: int, vocab_size: int, order: int, *, run: int | None = None) -> int:
    """Return how much memory `warmstart.ngrams.count_ngrams` takes at most, and `warmstart.shards.Statistic.save`.

    With a number of targets of a ``run``: `warmstart.spill.count_spilled`.

    Examples
    --------
    >>> counting_bytes(1_000_000, 100, 8192, 5) // 2**20
    66
    """
    s = id_type(vocab_size).itemsize
    at_once = n_tokens if run is None else min(n_tokens, run)
    levels = (s + 9) * (order - 1) * at_once
    text = (4 if run is None else 2) * s * n_tokens + PER_DOCUMENT * n_documents
    merges = 0 if run is None else MERGING * (BLOCK + vocab_size) + n_tokens // 4  # 16 bytes for each large count
    return levels + _sorting_bytes(at_once, vocab_size, order) + text + merges + 64 * vocab_size


def _sorting_bytes(n_places: int, vocab_size: int, order: int) -> int:
    """Return how much memory the sorting of what follows each place takes at most."""
    return (16 * key_layout(vocab_size, order)[-1] + 1) * n_places


def spilled_bytes(n_tokens: int, vocab_size: int, order: int) -> int:
    """Return how much of the disk counting with runs takes at most beside the corpus.

    That are two runs and their sum, with a byte for each n-gram while they are merged; large counts; and the documents
    in the file of the result.

    Examples
    --------
    >>> spilled_bytes(1_000_000, 8192, 5) // 2**20
    60
    """
    s = id_type(vocab_size).itemsize
    return (2 * (s + 5) + 1) * (order - 1) * n_tokens + (s + 1) * n_tokens


def solving_bytes(counts: NGramCounts | SpilledCounts, recipe: Recipe, workers: int = 1) -> int:
    """Return how much memory `warmstart.solving.solve` takes at most beside the counts that are in memory."""
    s, n, size = id_type(counts.vocab_size).itemsize, counts.n_tokens, counts.vocab_size
    longest = int(counts.documents.lengths.max(initial=0)) + 1
    sample = min(n, READ * TARGETS + longest)
    held = 4 * s * n + PER_DOCUMENT * int(counts.documents.copies.sum())
    held += (s + 9) * sum(counts.sizes) if isinstance(counts, SpilledCounts) else 0
    at_once, models = [0], 0
    if "ngrams" in recipe.contexts:
        held += KNESER_NEY * sum(counts.sizes)
        models += 1
    if "classes" in recipe.contexts:
        n_ngrams = sum(counts.sizes[:CLASS_ORDER])
        held += len(recipe.classes) * (s + 8 + KNESER_NEY) * n_ngrams
        at_once.append(8 * n + (s + 9) * n_ngrams + _sorting_bytes(n, size, CLASS_ORDER))
        models += len(recipe.classes)
    if recipe.counted:
        held += 256 * min(n, TARGETS)
        parts = 200 * workers * min(n, TARGETS_PER_BATCH + longest) if models else 0
        at_once.append(16 * (models + 4) * sample + parts)
    config = recipe.config(size, counts.separator)
    if config is not None:
        at_once.append(_network_bytes(config, n, workers))
        held += 4 * config.n_parameters
    return held + max(at_once)


def _network_bytes(config: Config, n_tokens: int, workers: int) -> int:
    """Return how much memory a network takes at most while it is solved."""
    width, groups = sum(width for _, width in config.groups), len(config.groups)
    scores = min(KEPT_BYTES, 4 * SAMPLE * config.vocab_size * groups)
    rows = 8 * EXAMPLES_PER_BLOCK * config.vocab_size * (groups + 2) * workers
    hidden = 32 * TARGETS_PER_CHUNK * (config.bits + config.hidden_bits) * len(config.hidden)
    windows = 24 * min(n_tokens, ATTENTION_TARGETS) * max(map(config.attention_size, config.hidden), default=0)
    return 28 * width * config.vocab_size + 16 * config.bits * config.vocab_size + scores + rows + hidden + windows


def _halves(size: int) -> Iterator[int]:
    yield size
    while (size := size // 2) >= SMALLEST_RUN:
        yield size


@dataclass
class Budget:
    """A limit of memory, and what is expected to be needed.

    Parameters
    ----------
    limit : int
        Bytes.
    workers : int
    progress : callable, optional
        Called with each estimate, as a stage.

    Attributes
    ----------
    estimate : int
        Bytes that the process takes at most, as far as it is known; 0 at first.
    """

    limit: int
    workers: int = 1
    progress: Progress | None = None
    estimate: int = 0

    def counting(
        self, n_tokens: int, n_documents: int, vocab_size: int, order: int, work: Work | None = None
    ) -> int | None:
        """Return how many targets a run has, at most; None if nothing spills.

        The largest runs that fit are chosen; they are written only if the text does not fit without, or ``work`` asks
        for them.

        Raises
        ------
        InputError
            The text cannot be counted within the limit.
        """
        runs: list[int | None] = [None] if work is None or not work.always else []
        runs += [] if work is None else _halves(RUN)
        for run in runs:
            need = counting_bytes(n_tokens, n_documents, vocab_size, order, run=run)
            if self._fits(need):
                break
        spilled = 0 if run is None else spilled_bytes(n_tokens, vocab_size, order)
        self._announce(need, "count n-grams", "count less text at once, or choose a lower order", spilled)
        return run

    def solve(self, counts: NGramCounts | SpilledCounts, recipe: Recipe) -> None:
        """Refuse a statistic that cannot be solved within the limit.

        Raises
        ------
        InputError
            See above.
        """
        need = solving_bytes(counts, recipe, self.workers)
        self._announce(need, "solve", "choose a smaller preset, fewer bits or workers, a lower order, or less text")

    def _total(self, need: int) -> int:
        return max(peak_memory(), resident_memory() + LIBRARIES + need)

    def _fits(self, need: int) -> bool:
        return self._total(need) <= self.limit

    def _announce(self, need: int, stage: str, hint: str, spilled: int = 0) -> None:
        total = self._total(need)
        self.estimate = max(self.estimate, total)
        if total > self.limit:
            raise InputError(
                f"expected room for {shown_size(total)} of memory to {stage}, got a limit of {shown_size(self.limit)}; "
                f"{hint}, or raise the limit"
            )
        if self.progress:
            disk = f", and {shown_size(spilled)} on the disk" if spilled else ""
            self.progress(f"at most {shown_size(total)} of {shown_size(self.limit)} memory to {stage}{disk}", 0, None)
