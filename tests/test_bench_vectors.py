"""Probes and peers of the bench of word vectors; the runs on real text are too long for a test."""

import numpy as np
import pytest

from benchmarks import probes, vectors
from benchmarks.probes import WordVectors
from warmstart import InputError

CONLLU = """# text = Don't go.
1-2\tDon't\t_\t_
1\tDo\tdo\tAUX
2\tn't\tnot\tPART
3\tgo\tgo\tVERB
3.1\tnow\tnow\tADV
4\t.\t.\tPUNCT

1\tYes\tyes\tINTJ

"""


def test_conllu_has_syntactic_words_only(tmp_path):
    (tmp_path / "a.conllu").write_text(CONLLU)
    first, second = probes.read_conllu(tmp_path / "a.conllu")
    assert first == [("Do", "AUX"), ("n't", "PART"), ("go", "VERB"), (".", "PUNCT")]
    assert second == [("Yes", "INTJ")]


def test_columns(tmp_path):
    (tmp_path / "a.conll").write_text("Ann\tB-person\nran\tO\n\t\n\nhi\tO")
    assert probes.read_columns(tmp_path / "a.conll") == [[("Ann", "B-person"), ("ran", "O")], [("hi", "O")]]


@pytest.mark.parametrize("content", [None, "naïve\tO".encode("latin-1")])
def test_files_missing_or_in_another_encoding(tmp_path, content):
    path = tmp_path / "a.conll"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.conll: expected a UTF-8 file"):
        probes.read_columns(path)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("", set()),
        ("O O", set()),
        ("B-a", {(0, 1, "a")}),
        ("B-a I-a I-a", {(0, 3, "a")}),
        ("B-a B-a", {(0, 1, "a"), (1, 2, "a")}),
        ("B-a I-b O I-b", {(0, 1, "a"), (1, 2, "b"), (3, 4, "b")}),
        ("O I-creative-work I-creative-work", {(1, 3, "creative-work")}),
    ],
)
def test_entities_by_hand(tags, spans):
    assert probes.entities(tags.split()) == spans


def test_entity_f1_by_hand():
    true = [["B-a", "I-a", "O"], ["B-b", "O", "B-a"]]
    predicted = [["B-a", "O", "O"], ["B-b", "B-a", "B-a"]]  # 2 of 3 are right, 4 are predicted: 2 * 2 / 7
    assert probes.entity_f1(true, predicted) == pytest.approx(4 / 7)
    assert probes.entity_f1([["O"]], [["O"]]) == 0.0


def test_features_by_hand():
    words = WordVectors({"a": 0, "B": 1, "b": 2}, np.float32([[1], [2], [3]]))
    sentences = [[("a", ""), ("B", ""), ("b", "")], [("A", ""), ("x", "")]]
    assert words.features(sentences).tolist() == [[1, 0, 2], [2, 1, 3], [3, 2, 0], [1, 0, 0], [0, 1, 0]]


def test_similarity_by_hand(tmp_path):
    for name in probes.PAIRS.values():
        (tmp_path / f"EN-{name}.txt").write_text("a b 1\na c 2\nb c 3\na d 4\n")
    words = WordVectors({"a": 0, "b": 1, "c": 2}, np.float32([[1, 0], [0, 1], [1, 2]]))
    correlations = probes.similarity(words, tmp_path)
    assert correlations["RW"] == (pytest.approx(1.0), 0.75)  # cosines 0, 0.45, 0.89; d has no vector
    assert probes.similarity(WordVectors({}, words.vectors), tmp_path)["MEN"] == (0.0, 0.0)


def test_a_probe_finds_what_is_in_the_vectors(tmp_path):
    rng = np.random.default_rng(0)
    words = WordVectors({f"w{i}": i for i in range(40)}, rng.normal(size=(40, 6)).astype(np.float32))
    words.vectors[:, 0] = np.arange(40) % 2
    for split in probes.SPLITS:
        lines = [f"w{i}\t{'B-x' if i % 2 else 'O'}" for i in rng.integers(0, 40, 400)]
        (tmp_path / f"{split}.conll").write_text("\n\n".join(lines))
    assert probes.named_entities(words, tmp_path) == 1.0
    assert probes.named_entities(WordVectors({}, words.vectors), tmp_path) < 1.0


TEXT = [["the", "cat", "sat", "on", "the", "mat"], ["the", "dog", "sat", "on", "a", "rug"], ["a", "cat", "a", "dog"]]


def test_ppmi_svd_against_a_dense_one(monkeypatch):
    monkeypatch.setattr(vectors, "MIN_COUNT", 1)
    words, window = sorted({w for s in TEXT for w in s}), 2
    counts = np.zeros((len(words), len(words)))
    for sentence in TEXT:
        for i, a in enumerate(sentence):
            for j, b in enumerate(sentence):
                if 0 < abs(i - j) <= window:
                    counts[words.index(a), words.index(b)] += 1
    smooth = counts.sum(axis=0) ** 0.75
    with np.errstate(divide="ignore"):
        ppmi = np.maximum(np.log(counts * smooth.sum() / np.outer(counts.sum(axis=1), smooth)), 0)
    left, values, _ = np.linalg.svd(ppmi)
    made = vectors.ppmi_svd(TEXT, 3, window)
    order = [made.rows[word] for word in words]
    expected = (left[:, :3] * values[:3]) @ left[:, :3].T  # whatever the signs and the order of directions
    np.testing.assert_allclose((made.vectors @ made.vectors.T)[np.ix_(order, order)], expected, atol=1e-3)


def test_a_run_writes_both_tables_and_a_picture(tmp_path, monkeypatch):
    probed = {"tokens": 9, "seconds": 1.0, "cpu_seconds": 2.0, "pos": 0.5, "ner": 0.25}
    probed["similarity"] = dict.fromkeys(probes.PAIRS, (0.125, 0.75))
    monkeypatch.setattr(vectors, "arm", lambda *_: probed)
    output = vectors.run(tmp_path, tmp_path)
    assert [row["vectors"] for row in output["arms"]] == [name for name in vectors.ARMS for _ in vectors.SHARES]
    written = (tmp_path / "benchmarks.md").read_text()
    assert written.count("| PPMI-SVD | 0.500 | 0.250 | 0.125 | 0.125 | 0.125 | 0.125 | 1.00 | 2.00 |") == 2
    assert (tmp_path / "images" / "vectors.png").exists()
