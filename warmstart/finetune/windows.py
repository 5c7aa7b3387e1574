"""Windows of equal length over a corpus that know where they are: a data set for PyTorch loops and for the Trainer.

A window is ``length`` tokens of the text, which holds all documents one after another. The next one begins ``stride``
targets later; by default it begins with the last token of the one before, so that every target is predicted once. The
last window ends with the text. Where windows overlap, a target counts in the first window that has it.

What counts say of a target (see `warmstart.finetune.evidence`) was computed over whole documents. So left-out
probabilities, history across the borders of a window, and the cache of the document are right in every window.
"""

import hashlib
import json
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune.evidence import ExpertTable
from warmstart.layers.near_shallow import IGNORED

if TYPE_CHECKING:
    import datasets

LABELS = ("tokens", "places")


class Windows(Dataset[dict[str, Any]]):
    """The windows of a corpus.

    A window is a dict of

    | name | shape | meaning |
    |---|---|---|
    | ``input_ids`` | (length,) int64 | tokens |
    | ``labels`` | (length,) int64 | at ``t``: ``input_ids[t]``, or its place; -100 for what does not count |
    | ``document`` | int | number of the document that the first token belongs to; a separator begins its document |
    | ``offset`` | int | number of tokens before the first token in its document |
    | ``expert_probs`` | (length, m) float32 | with a table, at ``t``: what the experts say of ``input_ids[t]`` |
    | ``expert_buckets`` | (length,) int64 | with a table: its bucket of the gate |

    The logits at ``t`` predict ``labels[t + 1]``, as models of ``transformers`` take it. ``labels[0]`` is never
    predicted and is -100, so ``labels != -100`` are the targets. The Trainer drops what ``forward`` of a model does not
    take, such as ``document``. In a loop of your own, give the model what it takes.

    Parameters
    ----------
    corpus : Corpus
    length : int
        Tokens of a window, at most those that the model sees.
    table : ExpertTable, optional
        What counts say of the corpus, from `warmstart.finetune.evidence.expert_table`. To train on counted text, make
        it with the counts, so that they are left out.
    labels : {"tokens", "places"}
        "places": labels are places of targets in the corpus, from 0, for a loss with counted targets.
    stride : int, optional
        Targets from one window to the next. The first ``length - 1 - stride`` of a window are history and do not
        count. Default: ``length - 1``.

    Raises
    ------
    InputError
        The corpus is shorter than a window, a number does not fit, or the table is of another corpus.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     corpus = Corpus.build(["b a b", "b"], tokenizer="words", cache_dir=cache)
    ...     windows = Windows(corpus, length=4)
    ...     print(corpus.tokens.tolist(), len(windows))
    ...     for window in windows:
    ...         print({name: value for name, value in window.items()})
    [1, 0, 2, 0, 1, 0, 1] 2
    {'input_ids': tensor([1, 0, 2, 0]), 'labels': tensor([-100,    0,    2,    0]), 'document': 0, 'offset': 0}
    {'input_ids': tensor([0, 1, 0, 1]), 'labels': tensor([-100,    1,    0,    1]), 'document': 0, 'offset': 3}
    """

    def __init__(
        self,
        corpus: Corpus,
        length: int,
        table: ExpertTable | None = None,
        labels: str = "tokens",
        stride: int | None = None,
    ) -> None:
        if not 2 <= length <= corpus.n_tokens + 1:
            raise InputError(
                f"length: expected 2 to {corpus.n_tokens + 1}, the tokens of the corpus, got {length}; give more text "
                "or choose shorter windows"
            )
        stride = length - 1 if stride is None else stride
        if not 1 <= stride < length:
            raise InputError(f"stride: expected 1 to {length - 1}, so that no target is left out, got {stride}")
        if labels not in LABELS:
            raise InputError(f"labels: expected one of {', '.join(LABELS)}, got {labels!r}")
        if table is not None and (len(table.probs) != corpus.n_tokens or table.corpus != corpus.digest):
            raise InputError(
                f"table: expected what the experts say of the {corpus.n_tokens} targets of this corpus, got a table of "
                f"another one, with {len(table.probs)}; see warmstart.finetune.evidence.expert_table"
            )
        self.corpus, self.length, self.table, self.labels, self.stride = corpus, length, table, labels, stride

    def __len__(self) -> int:
        """Return the number of windows."""
        return 1 - (self.length - 1 - self.corpus.n_tokens) // self.stride

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a window."""
        index = range(len(self))[operator.index(index)]  # IndexError ends a loop
        corpus, length = self.corpus, self.length
        start = min(index * self.stride, corpus.n_tokens + 1 - length)
        new = 1 if index == 0 else (index - 1) * self.stride + length - start  # the first token that counts
        ids = torch.from_numpy(corpus.tokens[start : start + length].astype(np.int64))
        labels = ids.clone() if self.labels == "tokens" else torch.arange(start - 1, start + length - 1)
        labels[:new] = IGNORED
        document = int(np.searchsorted(corpus.documents, start, side="right")) - 1
        window = {"input_ids": ids, "labels": labels, "document": document}
        window["offset"] = start - int(corpus.documents[document])
        if self.table is not None:
            places = np.arange(start - 1, start + length - 1).clip(min=0)  # the first token of the text is no target
            window["expert_probs"] = torch.from_numpy(self.table.probs[places])
            window["expert_buckets"] = torch.from_numpy(self.table.buckets[places].astype(np.int64))
        return window

    def to_datasets(self) -> "datasets.Dataset":
        """Return the windows as a data set of ``datasets``, which writes them to its cache once and returns tensors.

        Raises
        ------
        InputError
            ``datasets`` is not installed.
        """
        try:
            from datasets import Dataset as Table
        except ImportError as error:
            raise InputError("expected the package datasets, found none; pip install datasets") from error
        facts = [self.corpus.digest, self.table and self.table.key, self.length, self.stride, self.labels]
        name = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
        rows = ({key: np.asarray(value) for key, value in self[i].items()} for i in range(len(self)))
        return Table.from_generator(lambda: rows, fingerprint=name).with_format("torch")
