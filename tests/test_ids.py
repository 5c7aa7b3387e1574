"""Whole numbers come as arrays, lists or tensors, and shapes are checked where they come in."""

import numpy as np
import pytest
import torch
from mixtures import mixture

from warmstart.cache import DocumentCache
from warmstart.counts import count_pairs
from warmstart.errors import InputError
from warmstart.ids import whole_numbers
from warmstart.kneser_ney import KneserNey
from warmstart.layers import MixtureLM, NearShallowLM
from warmstart.near_shallow import Config
from warmstart.ngrams import count_ngrams

TOKENS, BORDERS = [0, 1, 2, 1, 2, 0, 2, 1, 0], [0, 5, 8]
FORMS = {
    "list": list, "tuple": tuple, "uint16": lambda x: np.array(x, np.uint16), "big": lambda x: np.array(x, ">i8"),
    "tensor": torch.tensor, "strided": lambda x: np.repeat(x, 2)[::2],
}  # fmt: skip


def read_only(x):
    array = np.array(x)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("form", [*FORMS.values(), read_only], ids=[*FORMS, "read-only"])
def test_every_form_gives_the_same(form):
    expected = count_ngrams(np.array(TOKENS), np.array(BORDERS), 3, order=3)
    counts = count_ngrams(form(TOKENS), form(BORDERS), 3, order=3)
    assert counts.digest == expected.digest
    assert (count_pairs(form(TOKENS), 3).pairs != count_pairs(np.array(TOKENS), 3).pairs).nnz == 0
    model = KneserNey(counts)
    for score in (model.log_probs, lambda *text: model.left_out(*text).probs):
        np.testing.assert_array_equal(score(form(TOKENS), form(BORDERS)), score(np.array(TOKENS), np.array(BORDERS)))
    np.testing.assert_array_equal(model.row(form([1, 2])), model.row(np.array([1, 2])))
    caches = [DocumentCache(3, 0) for _ in range(2)]
    for cache, ids in zip(caches, (form(TOKENS[1:]), np.array(TOKENS[1:])), strict=True):
        cache.read(ids)
    np.testing.assert_array_equal(caches[0].row(), caches[1].row())


@pytest.mark.parametrize("form", [list, FORMS["uint16"], FORMS["big"], read_only, torch.tensor])
def test_layers_take_every_form(form):
    torch.manual_seed(0)
    model, ids = NearShallowLM(Config(vocab_size=20, separator=0, bits=8, hidden_bits=6, block_size=4)), [[0, 5, 3, 7]]
    expected = torch.tensor(ids)
    with torch.no_grad():
        assert torch.equal(model(form(ids)), model(expected))
        assert torch.equal(model.generate(form(ids), 5), model.generate(expected, 5))
        assert torch.equal(model.target_log_probs(form(ids), form(ids)), model.target_log_probs(expected, expected))
    both, ids = MixtureLM.from_model(mixture((3, 0, [[1, 2, 1], [2, 1]]))[0]), [[0, 1, 2, 1]]
    targets = [[1, 2, 1, -1]] if form is not FORMS["uint16"] else [[1, 2, 1, 0]]
    with torch.no_grad():
        assert torch.equal(both(form(ids)), both(torch.tensor(ids)))
        scores = both.target_log_probs(form(ids), form(targets))
        assert torch.equal(scores, both.target_log_probs(torch.tensor(ids), torch.tensor(targets)))
        assert torch.equal(both.generate(form(ids), 3), both.generate(torch.tensor(ids), 3))
    with pytest.raises(InputError, match="expected token ids"):
        model([[0, 1], [2]])
    with pytest.raises(InputError, match="expected token ids"):
        model([[0.5, 1.0]])


@pytest.mark.parametrize(
    "values", [5, [[1]], [1.0], [True], ["1"], [None], [[1], [1, 2]], torch.tensor([1.0]), np.zeros((0, 2)), [-1], [3]]
)
def test_what_is_no_row_of_whole_numbers_in_range(values):
    with pytest.raises(InputError, match="expected targets"):
        whole_numbers("targets", values, 3)


def test_an_empty_row_has_no_type():
    assert whole_numbers("targets", [], 3).dtype == np.int64


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_the_range_holds_for_every_type(kind, order):
    """Also for a range beyond the largest number of the type, and for bytes in the other order."""
    for size in (3, 127, 128, 129, 300, 70_000, 2**31 + 1):
        found = whole_numbers("targets", np.array([0, 1, 2], order + kind), size)
        assert found.tolist() == [0, 1, 2]
        if kind.startswith("i"):
            with pytest.raises(InputError, match=f"from 0 to {size - 1}, got -1 to 1"):
                whole_numbers("targets", np.array([0, -1, 1], order + kind), size)
        if size <= np.iinfo(kind).max:
            with pytest.raises(InputError, match=f"from 0 to {size - 1}, got 0 to {size}"):
                whole_numbers("targets", np.array([0, size], order + kind), size)
