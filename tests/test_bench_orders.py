"""The bench of the order of codes: orders by hand, and that renaming tokens is all that they do."""

import numpy as np
import pytest
from scipy import sparse

from benchmarks import claims, orders, texts
from warmstart.near_shallow import cipher_vectors

COUNTS = np.array([5, 9, 1, 7, 3, 2])


@pytest.mark.parametrize("order", orders.SEEDS)
def test_every_order_gives_each_code_once(order):
    rows = orders.roots(sparse.csr_array(np.random.default_rng(0).integers(9, size=(6, 4)).astype(float)))
    new = orders.names(order, 1, COUNTS, 3, rows)
    assert sorted(new) == list(range(6))
    if order != orders.RANDOM:
        assert new[[1, 3, 0]].tolist() == [0, 1, 2]  # the most frequent, one bit each
    if order == orders.FREQUENCY:
        assert new.tolist() == [2, 0, 5, 1, 3, 4]


def test_similar_tokens_share_bits():
    """Tokens 3, 4, 5 are like the pairs of bits that their codes 101, 110, 011 have, but not in this order."""
    counts = np.array([9, 8, 7, 3, 2, 1])
    like = [*np.eye(3).tolist(), [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    new = orders.names(orders.SIMILAR, 0, counts, 3, orders.roots(sparse.csr_array(like)))
    bits = cipher_vectors(6, 3).toarray() > 0
    assert (bits[new] == (np.array(like) > 0)).all()


def test_neighbours_of_both_sides():
    rows = orders.neighbours(np.array([0, 1, 2, 1, 0]), 3).toarray() ** 2
    assert rows[1].tolist() == pytest.approx([0.5, 0, 0.5, 0.5, 0, 0.5])  # after 1: 0, 2; before 1: 0, 2
    assert rows[0].tolist() == pytest.approx([0, 1, 0, 0, 1, 0])


def test_only_the_names_of_tokens_change():
    """With one-hot codes the network is the same whatever the order."""
    random = np.random.default_rng(0)
    tokens = np.concatenate([[0], random.zipf(1.7, 4000).cumsum() % 9 + 1, [0]])
    parts = dict.fromkeys(("train", "test"), (tokens, np.array([0, tokens.size - 1])))
    text = texts.Text(10, 0, parts)
    rows = orders.neighbours(tokens, 10)
    nats = [orders.network(text, rows, order, 3, 10, 2000)["nats"] for order in (orders.FREQUENCY, orders.RANDOM)]
    assert nats[0] == pytest.approx(nats[1], abs=1e-3)
    few = [orders.network(text, rows, order, 3, 4, 2000)["nats"] for order in (orders.FREQUENCY, orders.RANDOM)]
    assert abs(few[0] - few[1]) > 0.01


def test_label_embeddings_are_learned():
    random = np.random.default_rng(0)
    y = random.integers(6, size=600)
    X = sparse.csr_array(random.poisson(np.eye(6)[y] * 4 + 0.2).astype(float))
    found = orders.labelled((X[:400], y[:400], X[400:], y[400:]), orders.SIMILAR, 0, 3)
    assert found["accuracy"] > 0.5


def test_the_section_says_what_the_verdicts_need():
    values = {orders.FREQUENCY: 5.0, orders.RANDOM: 5.2, orders.FIRST: 5.1, orders.SIMILAR: 4.9}
    nets = [
        {"order": order, "bits": bits, "runs": [{"nats": value}], "mark": ""}
        for order, value in values.items()
        for bits in orders.BITS
    ]
    labels = [
        {
            "order": order,
            "data": name,
            "bits": b,
            "runs": [{"accuracy": value / 10, "cross_entropy": value}],
            "mark": "",
        }
        for order, value in values.items()
        for name, bits in orders.LABELS.items()
        for b in bits
    ]
    conclusion, body = orders.section({"network": nets, "labels": labels})
    first, second = (claims.verdict(claim, conclusion) for claim in claims.CLAIMS if claim.section == "orders")
    assert first[0] == claims.PARTLY  # labels are best at random here
    assert second[0] == claims.PARTLY
    assert "| by frequency | 5.000 | 5.000 |" in body
