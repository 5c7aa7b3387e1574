"""CooccurrenceEmbedding: word vectors that are sums of the codes of neighbouring tokens.

============ ================== ==========================================================================
code         symbol             meaning
============ ================== ==========================================================================
V, bits      V, b               number of tokens, bits of a code; rows are frequency ranks, 0 the most frequent
sums_        (V, R, sides, b)   ``S[t] = sum E[neighbour]`` by ring of distance. Ring r has the neighbours farther
                                away than radius r - 1 and not farther than radius r. int64, in units of
                                ``1 / unit_`` co-occurrences
blocks       (V, R, sides, b)   cumulative sums of the rings: one block for each radius and side
shares                          blocks divided by their L1 norm, before the transform
vectors_     (V, d)             transformed shares of all blocks, compressed
============ ================== ==========================================================================

The values of a code are fractions ``1 / |u|``, distance weights are fractions ``1 / distance``. Counted in units of one
over their least common multiple, every sum is an integer. Therefore the order of the sentences, the number of threads
and the way parts are merged do not change a byte. Source: Williams and Zhao 2023, arXiv 2311.11012, section 3.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from bitcipher import _vectors, codes
from bitcipher._stream import Stream
from bitcipher.files import replacing, writing

TRANSFORMS = (None, "sqrt", "log_ratio")
BITS, COMPONENTS = 512, 300  # the largest values of "auto"
OVERLAP = 0.25  # bits that two codes share on average; with more there is a warning
MANY = 1000  # tokens; a smaller vocabulary is not checked for overlapping codes
SUMS_A_DISTANCE = (
    32  # with at most so many sums a token for each distance, windows are moved, else neighbours are added
)
EQUAL = 0.5  # share of tokens without a vector of their own; with more there is a warning


class CooccurrenceEmbedding(BaseEstimator):  # type: ignore[misc]
    """Word vectors: for each token, the codes of its neighbours are summed, transformed and compressed.

    There is no gradient step and no randomness. The text is read once, and its token ids are kept in a temporary file
    (4 bytes a token), because the codes depend on the final counts. Counting takes
    O(tokens * largest radius * mean code weight) time and ``8 * V * bits`` bytes for each radius and side.

    Parameters
    ----------
    bits : int or "auto", default="auto"
        Dimension of the codes, at least 1 and at most V. "auto" is 512, or V if there are fewer tokens.
    radii : tuple of int, default=(1, 5)
        Largest distances of the neighbours that are summed, ascending, each at least 1. Windows end with the sentence.
    mode : {"concat", "sum"}, default="concat"
        "concat": one block of values for each radius and side. "sum": one block, the sum over the radii. A neighbour
        then counts once for every radius that reaches it.
    sides : {"both", "separate"}, default="separate"
        "separate": neighbours before and after a token have a block each, first left, then right. "both": they share a
        block, which ``mode="sum"`` needs.
    transform : {None, "sqrt", "log_ratio"}, default="log_ratio"
        Transform of the shares p, which are the blocks with L1 norm 1. None: no transform. "sqrt": the square root of p
        (Hellinger). "log_ratio": ``max(0, log(p' / q))``, where q are the shares of the block over all tokens, and p'
        the shares of the token after one co-occurrence, distributed as q, is added for smoothing.
    distance_weights : {None, "harmonic"}, default=None
        "harmonic": a neighbour at distance d counts ``1 / d``.
    min_count : int, default=1
        Tokens with a smaller count get no vector. They keep their place: windows do not close over them.
    components : int, None or "auto", default="auto"
        Dimension of the vectors after compression, at most bits x blocks. The compression keeps the directions that
        matter most for the 10,000 most frequent tokens, weighted by ``count ** 0.25``. "auto" is 300, or the number of
        tokens or bits x blocks where these are fewer. None: no compression, rows with L1 norm 1.

    Attributes
    ----------
    vocabulary_ : dict of str to int
        Row of each token. Rows are sorted by falling count, then by token (code points), so that they do not depend on
        the order of the text.
    counts_ : ndarray of shape (V,), int64
        Count of each row when the vocabulary was fixed.
    sums_ : ndarray of shape (V, radii, sides, bits), int64
        Sums by ring of distance, in units of ``1 / unit_`` co-occurrences.
    unit_ : int
        Number of units of one co-occurrence.

    Warns
    -----
    UserWarning
        The bits are too few to keep the vocabulary apart: the codes of two tokens share more than a quarter of a bit on
        average. Or more than half of the tokens have no vector of their own: it is zero, or equal to another one.

    Notes
    -----
    Codes follow the ranks, so they are fixed before the first sum. `fit` and the first `partial_fit` take the ranks
    from their sentences, or from ``counts`` if given. Later calls of `partial_fit`, and `merge`, keep the codes and
    skip unknown tokens. To count the parts of a text on several machines, first count its tokens (for instance with
    ``collections.Counter``, whose objects can be added), then give the same ``counts`` to all parts. The merged parts
    have the same bytes as one `fit` on the whole text.

    The defaults were chosen by a probe for parts of speech, on texts of 30,000 to 12 million tokens: no setting in the
    table of ``python -m benchmarks defaults`` is better by more than 0.005. Counting 12 million tokens with 109,000
    types takes 3 GB; ``min_count=5`` about a third. For the similarity of words choose ``bits=2048, radii=(5,),
    sides="both"``. The sums of the paper are ``bits=100, sides="both", transform=None, components=None``.

    References
    ----------
    Williams and Zhao 2023, arXiv 2311.11012. Lebret and Collobert 2014, arXiv 1312.5542 (Hellinger). Levy and Goldberg
    2014, Neural word embedding as implicit matrix factorization (positive log ratios).

    Examples
    --------
    >>> model = CooccurrenceEmbedding(
    ...     bits=2, radii=(1,), sides="both", transform=None, components=None
    ... ).fit([["b", "a", "b"], ["c"]])
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
        bits: int | str = "auto",
        radii: Sequence[int] = (1, 5),
        mode: str = "concat",
        sides: str = "separate",
        transform: str | None = "log_ratio",
        distance_weights: str | None = None,
        min_count: int = 1,
        components: int | str | None = "auto",
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
        """Fix vocabulary and codes, count, and return the estimator itself. Earlier counts are forgotten.

        Parameters
        ----------
        sentences : iterable of lists of str, or corpus
            Read once. A corpus has the attributes ``tokens``, ``documents``, ``counts``, ``separator`` and
            ``tokenizer`` of ``warmstart.Corpus``; its documents are the sentences.
        y : None
            Ignored.
        counts : mapping of str to int, optional
            Counts that fix vocabulary and codes. By default those of the sentences.
        workers : int, default=1
            Number of threads. The result does not depend on it.

        Raises
        ------
        ValueError
            A parameter is out of its range, a sentence is no list of strings, no token reaches ``min_count``, or there
            are fewer tokens than ``bits``. The estimator is not changed.
        CapacityError
            There are more tokens than codes.
        """
        self._check()
        with tempfile.TemporaryFile() as spool:
            stream = Stream.of(sentences, spool)
            self._start(stream.counts() if counts is None else counts, stream.n_tokens)
            _warn_of_overlap(self._code[1], len(self.vocabulary_), self._fixed["bits"])
            return self._add(stream, workers)

    def partial_fit(
        self, sentences: Any, y: None = None, *, counts: Mapping[str, int] | None = None, workers: int = 1
    ) -> Self:
        """Count more sentences with the vocabulary and the codes of the first call, which is a `fit`.

        Raises
        ------
        ValueError
            As for `fit`, or ``counts`` are given after the first call. Nothing is counted then.
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
        """Add the sums of another embedding, which is not changed, and return the estimator itself.

        Raises
        ------
        ValueError
            The vocabularies differ, or the parameters that decide the sums. Give both parts the same ``counts``.
        """
        check_is_fitted(self)
        check_is_fitted(other)
        self._check_unchanged()
        if self.vocabulary_ != other.vocabulary_ or self._fixed != other._fixed:
            raise ValueError(
                f"expected embeddings of one vocabulary and the same {', '.join(self._fixed)}, got "
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
        """Vectors, (V, components) float32, signed, of any norm. A token without neighbours has a vector of zeros.

        Without compression they have shape (V, bits x blocks), are non-negative and have L1 norm 1. The blocks are in
        the order of ``radii``; in each the left side comes before the right side.

        They are computed from ``sums_`` on the first access, in the number of threads of the last `fit`. ``mode``,
        ``transform`` and ``components`` may be changed without counting again.
        """
        check_is_fitted(self)
        self._check()
        key = (self.mode, self.transform, self.components)
        if self._vectors is None or self._vectors[0] != key:
            size = self._n_components()
            arguments = (self.sums_, self.unit_, self.counts_, self.mode, self.transform, size, self._workers)
            self._vectors = (key, _vectors.from_sums(*arguments))
            _warn_of_equal(self._vectors[1])
        return self._vectors[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write sums, vocabulary, parameters and vectors to a safetensors file. Needs the package safetensors.

        An error leaves no partial file. The file has numbers in place of "auto". Equal counts and parameters give equal
        bytes.
        """
        from safetensors.numpy import save_file

        check_is_fitted(self)
        tokens = np.frombuffer(json.dumps(list(self.vocabulary_)).encode(), np.uint8)
        parameters = self.get_params() | self._fixed | {"components": self._n_components()}
        facts = {"parameters": parameters, "n_tokens": self._n_tokens}
        arrays: dict[str, NDArray[Any]] = {"counts": self.counts_, "sums": self.sums_, "tokens": tokens}
        with replacing(path) as temporary:
            save_file(arrays | {"vectors": self.vectors_}, temporary, {"bitcipher": json.dumps(facts, sort_keys=True)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote. Needs the package safetensors.

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
        """Write the vectors in the text or the binary format of word2vec. An error leaves no partial file.

        A name that ends in ``.gz``, ``.bz2`` or ``.xz`` is a compressed file.

        For instance gensim (``KeyedVectors.load_word2vec_format``) and spaCy (``init vectors``, text) read it.

        Raises
        ------
        ValueError
            A token is empty or contains white space, which the format does not allow.
        """
        check_is_fitted(self)
        for token in self.vocabulary_:
            if not token or any(character.isspace() for character in token):
                raise ValueError(f"expected tokens without white space, as the word2vec format needs, got {token!r}")
        vectors = self.vectors_
        with writing(path) as file:
            file.write(f"{vectors.shape[0]} {vectors.shape[1]}\n".encode())
            for token, vector in zip(self.vocabulary_, vectors, strict=True):
                values = vector.astype("<f4").tobytes() if binary else " ".join(map(str, vector.tolist())).encode()
                file.write(token.encode() + b" " + values + b"\n")

    def _check(self) -> None:
        """Raise ValueError if a parameter is out of its range."""
        radii = list(self.radii) if isinstance(self.radii, Iterable) else []
        if not radii or not all(_is_count(r) for r in radii) or sorted(set(radii)) != radii:
            raise ValueError(f"expected radii to be integers >= 1 in ascending order, got {self.radii!r}")
        if self.bits != "auto" and not _is_count(self.bits):
            raise ValueError(f'expected bits to be an integer >= 1 or "auto", got {self.bits!r}')
        if self.components not in (None, "auto") and not _is_count(self.components):
            raise ValueError(f'expected components to be None, an integer >= 1 or "auto", got {self.components!r}')
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

    def _sums_parameters(self, auto_bits: int) -> dict[str, Any]:
        """Return the parameters that decide the sums, with ``auto_bits`` in place of "auto"."""
        return {
            "bits": auto_bits if self.bits == "auto" else int(self.bits),
            "radii": [int(radius) for radius in self.radii],
            "sides": self.sides,
            "distance_weights": self.distance_weights,
        }

    def _check_unchanged(self) -> None:
        """Raise ValueError if a parameter that decides the sums was changed after the first call."""
        self._check()
        parameters = self._sums_parameters(self._fixed["bits"])
        if parameters != self._fixed:
            raise ValueError(f"expected the parameters of the first call, {self._fixed}, got {parameters}; fit anew")

    def _start(self, counts: Mapping[str, int], n_tokens: int) -> None:
        """Fix vocabulary and codes for a text of ``n_tokens`` and set the sums to zero. On an error change nothing."""
        ranked = _ranked(counts, self.min_count)
        fixed = self._sums_parameters(min(BITS, len(ranked)))
        bits = fixed["bits"]
        assigned = codes.assign_codes(len(ranked), bits)
        if bits > len(ranked):
            raise ValueError(f"expected bits <= {len(ranked)}, the number of tokens, got {bits}; use fewer bits")
        weights, distances = codes.code_weights(assigned), range(1, max(self.radii) + 1)
        code_unit = math.lcm(*np.unique(weights).tolist())
        distance_unit = math.lcm(*distances) if self.distance_weights else 1
        _check_size(n_tokens, distances[-1], code_unit * distance_unit)
        self.vocabulary_ = {token: row for row, (token, _) in enumerate(ranked)}
        self.counts_ = np.array([count for _, count in ranked], np.int64)
        self.unit_ = code_unit * distance_unit
        self.sums_ = np.zeros((len(ranked), len(self.radii), 2 if self.sides == "separate" else 1, bits), np.int64)
        self._code = (*codes.code_indices(assigned), code_unit // weights)
        distance_units = [distance_unit // d if self.distance_weights else 1 for d in distances]
        rings = np.searchsorted(np.array(self.radii), np.arange(distances.stop))
        self._rings = (np.array([0, *distance_units], np.int64), rings)
        self._n_tokens = 0
        self._workers = 1
        self._fixed = fixed
        self._vectors = None

    def _add(self, stream: Stream, workers: int) -> Self:
        """Count a text. Each worker writes rows of its own."""
        from bitcipher._kernels import add_neighbours, add_windows  # imported late: it loads numba

        rows = stream.rows(self.vocabulary_)
        if not self.sums_.flags.writeable:  # they are mapped to a file
            self.sums_ = self.sums_.copy()
        self._vectors = None
        self._n_tokens += stream.n_tokens
        self._workers = workers
        wide = self.distance_weights is None and self.sums_[0].size <= SUMS_A_DISTANCE * max(self.radii)
        with ThreadPoolExecutor(workers) as pool:
            for block in stream.blocks(rows, max(self.radii)):
                if wide:
                    add = partial(add_windows, *block, *self._code, np.array(self.radii, np.int64), self.sums_)
                else:
                    add = partial(add_neighbours, *block, *self._code, *self._rings, self.sums_)
                for future in [pool.submit(add, part, workers) for part in range(workers)]:
                    future.result()
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    def _n_components(self) -> int | None:
        """Return the dimension after compression, None for no compression."""
        available: int = self.sums_.shape[3] if self.mode == "sum" else math.prod(self.sums_.shape[1:])
        if self.components is None:
            return None
        if self.components == "auto":
            return min(COMPONENTS, available, len(self.vocabulary_))
        if int(self.components) > available:
            raise ValueError(f"expected components <= {available}, bits x blocks, got {self.components}")
        return int(self.components)


def _ranked(counts: Mapping[str, int], min_count: int) -> list[tuple[str, int]]:
    """Return tokens and counts in the order of rows: by falling count, then by token."""
    for token, count in counts.items():
        if not (isinstance(token, str) and _is_count(count)):
            raise ValueError(f"expected counts >= 1 of tokens that are strings, got {count!r} of {token!r}")
    ranked = sorted((-count, token) for token, count in counts.items() if count >= min_count)
    if not ranked:
        raise ValueError(f"expected tokens that occur {min_count} times or more, got none among {len(counts)} tokens")
    return [(token, -count) for count, token in ranked]


def _check_size(n_tokens: int, radius: int, unit: int) -> None:
    """Raise ValueError if a sum could exceed 63 bits. The worst case is a text that repeats one token."""
    if 2 * int(radius) * unit * n_tokens >= 2**63:
        raise ValueError(
            f"expected at most {2**62 // (int(radius) * unit)} tokens, to be exact in 64 bits, got {n_tokens}; "
            "use more bits, a smaller radius or no distance weights"
        )


def _warn_of_overlap(indices: NDArray[np.int32], vocab_size: int, bits: int) -> None:
    """Warn if codes overlap. ``indices`` has the bits of all codes."""
    frequencies = np.bincount(indices) / vocab_size  # the share of codes that have a bit on, for each bit
    overlap = float(frequencies @ frequencies)
    if vocab_size > MANY and overlap > OVERLAP:
        warnings.warn(
            f"{bits} bits do not keep {vocab_size} tokens apart: two codes share {overlap:.2f} bits on average, "
            f"so that different tokens have similar vectors; use more bits, for instance {BITS}",
            stacklevel=3,
        )


def _warn_of_equal(vectors: NDArray[np.float32]) -> None:
    """Warn if most rows are zero or equal to another row."""
    times = Counter(hash(row.tobytes()) if row.any() else None for row in vectors)
    zero = times.pop(None, 0)
    equal = sum(count for count in times.values() if count > 1)
    if zero + equal > EQUAL * len(vectors):
        warnings.warn(
            f"of {len(vectors)} tokens {zero} have a vector of zeros and {equal} have the vector of another token, "
            "because they have too few neighbours; use more text, longer sentences or a larger radius",
            stacklevel=3,
        )


def _is_count(value: Any) -> bool:
    whole = type(value) is int or (isinstance(value, int | np.integer) and not isinstance(value, bool))
    return whole and bool(value >= 1)
