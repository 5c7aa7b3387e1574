"""Vectors of tokens from the company they keep: cipher vectors summed around every token.

============ ================== ==========================================================================
code         symbol             meaning
============ ================== ==========================================================================
V, bits      V, b               tokens, bits of a code; rows are frequency ranks, 0 the most frequent
sums_        (V, R, sides, b)   ``S[t] = sum E[neighbour]`` for R rings of distance: beyond the radius
                                before, up to this one; int64, in units of ``1 / unit`` co-occurrences
blocks       (V, R, sides, b)   the running sums of the rings over R: one block for every radius and side
shares                          blocks divided by their L1 norm, before the transform
vectors_     (V, blocks b)      transformed shares of all blocks, the whole row of unit L1 norm
============ ================== ==========================================================================

Cipher vectors are fractions ``1 / |u|`` and distance weights fractions ``1 / distance``: in units of one over their
least common multiples, every sum is an integer. So any order of the sentences, any number of threads and any merge of
parts give the same bytes. Source: Williams and Zhao 2023, arXiv 2311.11012, section 3.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from bitcipher import codes
from bitcipher._stream import Stream
from bitcipher._vectors import ROWS, compress, in_chunks, transformed, unit
from bitcipher.files import replacing

TRANSFORMS = (None, "sqrt", "log_ratio")
_PARAMETERS = ("bits", "radii", "sides", "distance_weights")  # those that decide the sums


class CooccurrenceEmbedding(BaseEstimator):  # type: ignore[misc]
    """Vectors of tokens: the cipher vectors of their neighbours, summed, exact and without a gradient step.

    The input is read once: token ids go to a temporary file of 4 bytes a token, because codes depend on the final
    counts. Memory is ``8 * V * bits`` bytes a block while counting, besides the vocabulary. Time is
    O(tokens * widest radius * mean code weight).

    Parameters
    ----------
    bits : int, default=100
        Dimension of the cipher vectors, at least 1 and at most V.
    radii : tuple of int, default=(1, 5)
        Neighbours up to these distances, within the sentence; ascending, each at least 1.
    mode : {"concat", "sum"}, default="concat"
        One block for each radius and side, or the sum of the radii. In the sum a near neighbour counts once for every
        radius that reaches it.
    sides : {"both", "separate"}, default="both"
        Whether the neighbours before and after a token share a block or have their own: left, then right.
        "separate" needs ``mode="concat"``.
    transform : {None, "sqrt", "log_ratio"}, default=None
        What becomes of the shares p (each block of unit L1 norm) before the whole row is brought to unit L1 norm.
        "sqrt": the root of p (Hellinger). "log_ratio": ``max(0, log(p' / q))`` with q the shares of the block over all
        tokens and p' the token's own, smoothed by one co-occurrence distributed as q; a row without one positive
        ratio is zero.
    distance_weights : {None, "harmonic"}, default=None
        "harmonic": a neighbour at distance d counts ``1 / d``.
    min_count : int, default=1
        Rarer tokens have no row. They keep their place: windows do not close over them.
    components : int, optional
        Dimension to which the transformed blocks are compressed, at most bits x blocks: the directions that keep most
        of the 10,000 most frequent tokens, weighted by ``count ** 0.25``. Rows are then dense, signed, of any norm.

    Attributes
    ----------
    vocabulary_ : dict of str to int
        Token to row, in the order of rows: by falling count, equal counts by token (code points). So rows depend on
        the counts alone and not on the order of the text.
    counts_ : ndarray of shape (V,), int64
        The counts that fixed rows and codes.
    sums_ : ndarray of shape (V, radii, sides, bits), int64
        Sums by rings of distance, in units of ``1 / unit_`` co-occurrences.
    unit_ : int

    Notes
    -----
    Codes follow the ranks, so they have to be fixed before the first sum. `fit` and the first `partial_fit` take them
    from their sentences, or from ``counts`` where given. Later calls of `partial_fit`, and `merge`, keep them: tokens
    that were not in the counts are unknown from then on. To count parts on many machines, count tokens first
    (a ``collections.Counter`` can be added), then give all parts the same ``counts``: what is merged has the bytes of
    one long `fit`.

    What to choose, from ``python -m benchmarks vectors``: for parts of speech, entities and the like ``bits=256,
    sides="separate", transform="log_ratio", components=200``; for the similarity of words ``bits=2048, radii=(5,),
    transform="log_ratio", components=200``; without a compression ``radii=(1,), sides="separate", transform="sqrt"``.

    References
    ----------
    Williams and Zhao 2023, arXiv 2311.11012. Lebret and Collobert 2014, arXiv 1312.5542 (Hellinger). Levy and Goldberg
    2014, Neural word embedding as implicit matrix factorization (positive log ratios).

    Examples
    --------
    >>> model = CooccurrenceEmbedding(bits=2, radii=(1,)).fit([["b", "a", "b"], ["c"]])
    >>> model.vocabulary_
    {'b': 0, 'a': 1, 'c': 2}
    >>> model.vectors_
    array([[0., 1.],
           [1., 0.],
           [0., 0.]], dtype=float32)
    """

    sums_: NDArray[np.int64]
    _n_tokens: int
    _vectors: tuple[tuple[Any, ...], NDArray[np.float32]] | None

    def __init__(
        self,
        bits: int = 100,
        radii: Sequence[int] = (1, 5),
        mode: str = "concat",
        sides: str = "both",
        transform: str | None = None,
        distance_weights: str | None = None,
        min_count: int = 1,
        components: int | None = None,
    ) -> None:
        self.bits = bits
        self.radii = radii
        self.mode = mode
        self.sides = sides
        self.transform = transform
        self.distance_weights = distance_weights
        self.min_count = min_count
        self.components = components

    def fit(self, sentences: Any, y: None = None, *, counts: Mapping[str, int] | None = None, workers: int = 1) -> Self:
        """Forget what was counted, fix vocabulary and codes, count.

        Parameters
        ----------
        sentences : iterable of lists of str, or corpus
            Read once. A corpus has ``tokens``, ``documents``, ``counts``, ``separator`` and a ``tokenizer``, as
            ``warmstart.Corpus`` has them; its documents are the sentences.
        y : None
            Ignored.
        counts : mapping of str to int, optional
            Counts that fix vocabulary and codes instead of those of the sentences.
        workers : int, default=1
            Threads; the result does not depend on them.

        Returns
        -------
        CooccurrenceEmbedding
            The estimator itself.

        Raises
        ------
        ValueError
            A parameter is out of its range, a sentence is no list of strings, no token reaches ``min_count``, or there
            are fewer tokens than ``bits``. The estimator stays as it was.
        CapacityError
            There are more tokens than codes of so many bits.
        """
        self._check()
        with tempfile.TemporaryFile() as spool:
            stream = Stream.of(sentences, spool)
            self._start(stream.counts() if counts is None else counts, stream.n_tokens)
            return self._add(stream, workers)

    def partial_fit(
        self, sentences: Any, y: None = None, *, counts: Mapping[str, int] | None = None, workers: int = 1
    ) -> Self:
        """Count more sentences with the vocabulary and the codes of the first call.

        Parameters
        ----------
        sentences, y, workers
            As for `fit`.
        counts : mapping of str to int, optional
            On the first call as for `fit`; not afterwards.

        Returns
        -------
        CooccurrenceEmbedding
            The estimator itself.

        Raises
        ------
        ValueError
            As for `fit`; or counts come when vocabulary and codes are fixed. Nothing is counted then.
        """
        if not hasattr(self, "vocabulary_"):
            return self.fit(sentences, counts=counts, workers=workers)
        if counts is not None:
            raise ValueError("expected counts on the first call only, where they fix the codes; leave them out or fit")
        self._check_unchanged()
        with tempfile.TemporaryFile() as spool:
            stream = Stream.of(sentences, spool)
            _check_size(self._n_tokens + stream.n_tokens, max(self.radii), self.unit_)
            return self._add(stream, workers)

    def merge(self, other: CooccurrenceEmbedding) -> Self:
        """Add what another embedding has counted with the same vocabulary and codes.

        Parameters
        ----------
        other : CooccurrenceEmbedding
            It is not changed.

        Returns
        -------
        CooccurrenceEmbedding
            The estimator itself.

        Raises
        ------
        ValueError
            Vocabulary or a parameter that decides the sums differs; give both parts the same ``counts``.
        """
        check_is_fitted(self)
        check_is_fitted(other)
        self._check_unchanged()
        if self.vocabulary_ != other.vocabulary_ or self._fixed != other._fixed:
            raise ValueError(
                f"expected embeddings of one vocabulary and the same {', '.join(_PARAMETERS)}, got "
                f"{len(self.vocabulary_)} tokens with {self._fixed} and {len(other.vocabulary_)} with {other._fixed}; "
                "fit both with the same counts"
            )
        _check_size(self._n_tokens + other._n_tokens, max(self.radii), self.unit_)
        self.sums_ = self.sums_ + other.sums_
        self._n_tokens += other._n_tokens
        self._vectors = None
        return self

    @property
    def vectors_(self) -> NDArray[np.float32]:
        """Vectors, (V, bits x blocks) float32, non-negative, rows of unit L1 norm; zero for a token without neighbours.

        With ``components``, (V, components), signed, of any norm; in as many threads as were last asked for.

        Blocks are in the order of ``radii``, in each the left side before the right one. Made from ``sums_`` when they
        are asked for; ``mode``, ``transform`` and ``components`` may be changed without counting again.
        """
        check_is_fitted(self)
        self._check()
        key = (self.mode, self.transform, self.components)
        if self._vectors is None or self._vectors[0] != key:
            self._vectors = (key, self._made())
        return self._vectors[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write sums, vocabulary and parameters to a safetensors file, whole or not at all; needs safetensors.

        The same counts and parameters give the same bytes.
        """
        from safetensors.numpy import save_file

        check_is_fitted(self)
        tokens = np.frombuffer(json.dumps(list(self.vocabulary_)).encode(), np.uint8)
        facts = {"parameters": self.get_params() | self._deciding(), "n_tokens": self._n_tokens}
        arrays: dict[str, NDArray[Any]] = {"counts": self.counts_, "sums": self.sums_, "tokens": tokens}
        with replacing(path) as temporary:
            save_file(arrays | {"vectors": self.vectors_}, temporary, {"bitcipher": json.dumps(facts, sort_keys=True)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; needs safetensors.

        Raises
        ------
        ValueError
            The file is missing, truncated or of another kind.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["bitcipher"])
                arrays = {name: file.get_tensor(name) for name in ("counts", "sums", "tokens")}
            model = cls(**facts["parameters"] | {"radii": tuple(facts["parameters"]["radii"])})
            tokens = json.loads(arrays["tokens"].tobytes())
            model._start(dict(zip(tokens, arrays["counts"].tolist(), strict=True)), facts["n_tokens"])
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path}: expected a file that CooccurrenceEmbedding.save wrote, got: {error!r}"
            ) from error
        model.sums_, model._n_tokens = arrays["sums"], facts["n_tokens"]
        return model

    def save_word2vec(self, path: str | os.PathLike[str], binary: bool = False) -> None:
        """Write the vectors in the format of word2vec, text or binary, whole or not at all.

        gensim (``KeyedVectors.load_word2vec_format``), spaCy (``init vectors``, text) and others read it.

        Raises
        ------
        ValueError
            A token is empty or has white space in it, which the format cannot hold.
        """
        vectors = self.vectors_
        for token in self.vocabulary_:
            if not token or any(character.isspace() for character in token):
                raise ValueError(f"expected tokens without white space, as the word2vec format needs, got {token!r}")
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(f"{vectors.shape[0]} {vectors.shape[1]}\n".encode())
            for token, vector in zip(self.vocabulary_, vectors, strict=True):
                values = vector.astype("<f4").tobytes() if binary else " ".join(map(str, vector.tolist())).encode()
                file.write(token.encode() + b" " + values + b"\n")

    def _check(self) -> None:
        """Raise ValueError for a parameter out of its range."""
        radii = list(self.radii) if isinstance(self.radii, Iterable) else []
        if not radii or not all(_is_count(r) for r in radii) or sorted(set(radii)) != radii:
            raise ValueError(f"expected radii to be integers >= 1 in ascending order, got {self.radii!r}")
        if self.components is not None and not _is_count(self.components):
            raise ValueError(f"expected components to be None or an integer >= 1, got {self.components!r}")
        if not _is_count(self.min_count):
            raise ValueError(f"expected min_count to be an integer >= 1, got {self.min_count!r}")
        choices = {
            "mode": ("concat", "sum"),
            "sides": ("both", "separate"),
            "transform": TRANSFORMS,
            "distance_weights": (None, "harmonic"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} to be one of {known}, got {getattr(self, name)!r}")
        if self.mode == "sum" and self.sides == "separate":
            raise ValueError('expected sides="both" with mode="sum", got "separate"; a sum of blocks has no sides')

    def _deciding(self) -> dict[str, Any]:
        """Return the parameters that decide the sums."""
        values = {name: getattr(self, name) for name in _PARAMETERS}
        return values | {"bits": int(self.bits), "radii": [int(radius) for radius in self.radii]}

    def _check_unchanged(self) -> None:
        """Raise ValueError if a parameter that decides the sums was changed after counting began."""
        self._check()
        if self._deciding() != self._fixed:
            raise ValueError(
                f"expected the parameters of the first call, {self._fixed}, got {self._deciding()}; fit anew"
            )

    def _start(self, counts: Mapping[str, int], n_tokens: int) -> None:
        """Fix vocabulary and codes, with sums of zero, for a text of ``n_tokens``; or change nothing."""
        kept = _ranked(counts, self.min_count)
        assigned = codes.assign_codes(len(kept), self.bits)
        if self.bits > len(kept):
            raise ValueError(f"expected bits <= {len(kept)}, the number of tokens, got {self.bits}; use fewer bits")
        weights, distances = codes.code_weights(assigned), range(1, max(self.radii) + 1)
        code_unit = math.lcm(*np.unique(weights).tolist())
        distance_unit = math.lcm(*distances) if self.distance_weights else 1
        _check_size(n_tokens, distances[-1], code_unit * distance_unit)
        shape = (len(kept), len(self.radii), 2 if self.sides == "separate" else 1, self.bits)
        self.vocabulary_ = {token: row for row, (token, _) in enumerate(kept)}
        self.counts_ = np.array([count for _, count in kept], np.int64)
        self.unit_ = code_unit * distance_unit
        self.sums_ = np.zeros(shape, np.int64)
        self._code = (*codes.code_indices(assigned), code_unit // weights)
        nearness = [distance_unit // d if self.distance_weights else 1 for d in distances]
        rings = np.searchsorted(np.array(self.radii), np.arange(distances.stop))
        self._place = (np.array([0, *nearness], np.int64), rings)
        self._n_tokens = 0
        self._workers = 1
        self._fixed = self._deciding()
        self._vectors = None

    def _add(self, stream: Stream, workers: int) -> Self:
        """Count a stream, each worker the rows that are its own."""
        from bitcipher._kernels import add_neighbours  # numba is loaded when there is something to compile

        rows = stream.rows(self.vocabulary_)
        self._vectors = None
        self._n_tokens += stream.n_tokens
        self._workers = workers
        with ThreadPoolExecutor(workers) as pool:
            for block in stream.blocks(rows, max(self.radii)):
                work = partial(add_neighbours, *block, *self._code, *self._place, self.sums_)
                for done in [pool.submit(work, part, workers) for part in range(workers)]:
                    done.result()
        return self

    def _made(self) -> NDArray[np.float32]:
        """Vectors from the sums, some rows at a time."""
        n_tokens, n_radii, n_sides, bits = self.sums_.shape
        n_blocks = 1 if self.mode == "sum" else n_radii * n_sides
        if self.components is not None and self.components > n_blocks * bits:
            raise ValueError(f"expected components <= {n_blocks * bits}, bits x blocks, got {self.components}")
        totals = self.sums_.sum(axis=0, keepdims=True)  # integers: exact
        expected = unit(self._blocks(totals))[0]
        vectors = np.empty((n_tokens, n_blocks * bits), np.float32)

        def make(rows: slice) -> None:
            shares = transformed(self._blocks(self.sums_[rows]), self.transform, expected)
            joined = shares.reshape(len(shares), -1)
            vectors[rows] = unit(joined) if self.components is None else joined

        list(in_chunks(make, n_tokens, ROWS, self._workers))
        return vectors if self.components is None else compress(vectors, self.counts_, self.components, self._workers)

    def _blocks(self, sums: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return blocks (rows, blocks, bits) in co-occurrences from sums by rings."""
        blocks: NDArray[np.float64] = np.cumsum(sums, axis=1) / self.unit_
        if self.mode == "sum":
            blocks = blocks.sum(axis=(1, 2), keepdims=True)
        joined: NDArray[np.float64] = blocks.reshape(len(blocks), -1, blocks.shape[3])
        return joined


def _ranked(counts: Mapping[str, int], min_count: int) -> list[tuple[str, int]]:
    """Return tokens and counts in the order of rows: by falling count, then by token."""
    wrong = [token for token, count in counts.items() if not (isinstance(token, str) and _is_count(count))]
    if wrong:
        raise ValueError(f"expected counts >= 1 of tokens that are strings, got {counts[wrong[0]]!r} of {wrong[0]!r}")
    kept = sorted((-count, token) for token, count in counts.items() if count >= min_count)
    if not kept:
        raise ValueError(f"expected tokens that occur {min_count} times or more, got none among {len(counts)} tokens")
    return [(token, -count) for count, token in kept]


def _check_size(n_tokens: int, radius: int, unit: int) -> None:
    """Raise ValueError where a sum could pass 63 bits: one token all along, beside itself."""
    if 2 * int(radius) * unit * n_tokens >= 2**63:
        raise ValueError(
            f"expected at most {2**62 // (int(radius) * unit)} tokens, to be exact in 64 bits, got {n_tokens}; "
            "use more bits, a smaller radius or no distance weights"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)
