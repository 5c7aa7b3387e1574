"""ARPA files: against a plain reader of the format, against KenLM, round trips, and what is refused."""

import bz2
import gzip
import lzma
import math
import tempfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from warmstart import _arpa_kernels, arpa
from warmstart.arpa import arpa_words, read_arpa, write_arpa
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.kneser_ney import KneserNey
from warmstart.ngrams import count_ngrams
from warmstart.tokenizer import unknown_id

# KenLM 4cb443e: lmplz -o 3 --discount_fallback, of the lines "a b a c", "b a b", "", "a b c a b", "c c d"
LMPLZ = """\\data\\
ngram 1=7
ngram 2=14
ngram 3=13

\\1-grams:
-1.5563025	<unk>	0
0	<s>	-0.20760831
-0.5380777	</s>	0
-0.66103786	a	-0.029963223
-1.0034605	b	-0.22792287
-0.5380777	c	-0.13469857
-1.1226469	d	-0.13469857

\\2-grams:
-0.63276243	<s> </s>	0
-0.6233096	b </s>	0
-0.55423933	c </s>	0
-0.31957334	d </s>	0
-0.44938344	<s> a	-0.30103
-0.39347503	b a	-0.30103
-0.644511	c a	-0.30103
-0.939902	<s> b	-0.30103
-1.0334238	a b	-0.30103
-0.63276243	<s> c	-0.30103
-0.4723224	a c	-0.30103
-0.6233096	b c	-0.30103
-0.55423933	c c	-0.30103
-0.9137909	c d	-0.30103

\\3-grams:
-0.43293706	a b </s>
-0.19412531	a c </s>
-0.13103233	c d </s>
-0.15362158	<s> b a
-0.48536354	a b a
-0.2122847	b c a
-0.26257175	<s> a b
-0.52827376	b a b
-0.26257175	c a b
-0.37828532	b a c
-0.61255485	a b c
-0.19412531	<s> c c
-0.25105354	c c d

\\end\\
"""
WORDS = ["d", "<|endoftext|>", "b", "a", "c", "<unk>"]
SMALL = """\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-99\t<s>\t-0.30103
-0.30103\t</s>
-0.60206\ta\t-0.30103
-0.60206\tb

\\2-grams:
-0.124938736608\t<s> </s>
-0.124938736608\ta </s>

\\end\\
"""


def plain(path):
    """The n-grams of a file, as word tuples with log10 of probability and weight; nothing is checked."""
    entries = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        fields = line.split("\t")
        if len(fields) > 1:
            entries[tuple(fields[1].split(" "))] = float(fields[0]), float(fields[2]) if len(fields) > 2 else 0.0
    return entries


def plain_score(entries, history, word):
    """log10 P(word | history), by the rule of the format."""
    if (*history, word) in entries:
        return entries[*history, word][0]
    return entries.get(tuple(history), (0, 0.0))[1] + plain_score(entries, history[1:], word)


def plain_scores(entries, text, words, separator):
    """log10 of every target of a text."""
    order, history, scores = max(map(len, entries)), ["<s>"], []
    for token in text[1:]:
        word = "</s>" if token == separator else words[token]
        scores.append(plain_score(entries, history[max(0, len(history) - order + 1) :], word))
        history = ["<s>"] if token == separator else [*history, word]
    return np.array(scores)


def write_text(path, text):
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))
    return path


def read_text(tmp_path, text, words=WORDS, separator=1):
    return read_arpa(write_text(tmp_path / "model.arpa", text), words, separator)


def assert_equal(a, b, tolerance=0.0):
    assert (a.vocab_size, a.separator, a.order) == (b.vocab_size, b.separator, b.order)
    for name in ("bases", "last", "offsets", "probs", "gammas", "sizes"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype.kind == y.dtype.kind
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=0)


@st.composite
def texts(draw):
    """A text with its documents, vocabulary size and separator; most tokens occur, separators inside documents too."""
    size = draw(st.integers(2, 9))
    separator = draw(st.integers(0, size - 1))
    pieces = draw(st.lists(st.lists(st.integers(0, size - 1), max_size=12), min_size=1, max_size=6))
    tokens, borders = [separator], [0]
    for piece in pieces:
        tokens += [*piece, separator]
        borders.append(len(tokens) - 1)
    return np.array(tokens), np.array(borders), size, separator


def solved(text, order, prune=()):
    tokens, borders, size, _ = text
    return KneserNey(count_ngrams(tokens, borders, size, order), prune)


@settings(deadline=None, max_examples=100)
@given(texts(), st.integers(2, 6), st.sampled_from([(), (0, 1), (0, 0, 1), (0, 0, 0, 2)]), st.booleans(), st.data())
def test_a_file_says_what_the_model_says(text, order, prune, unknown, data):
    model = solved(text, order, prune[:order])
    tokens, borders, size, separator = text
    words = [f"w{i}" for i in range(size)]
    if unknown and (rest := [i for i in range(size) if i != separator]):
        words[data.draw(st.sampled_from(rest))] = "<unk>"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.arpa")
        write_arpa(model, path, words)
        entries, back = plain(path), read_arpa(path, words, separator)
    ours = model.log_probs(tokens, borders)
    np.testing.assert_allclose(plain_scores(entries, tokens, words, separator) * math.log(10), ours, rtol=0, atol=2e-8)
    rows = [back.row(tokens[:i])[tokens[i]] for i in range(1, tokens.size)]
    np.testing.assert_allclose(np.log(rows), ours, rtol=0, atol=2e-8)
    history = data.draw(st.lists(st.integers(0, size - 1), max_size=8))
    np.testing.assert_allclose(back.row(history), model.row(history), rtol=0, atol=2e-8)
    assert abs(back.row(history).sum() - 1) < 1e-8
    assert back.n_ngrams == model.n_ngrams[: back.order]
    assert set(model.n_ngrams[back.order :]) <= {0}
    assert (back.sizes == (np.diff(back.offsets) > 0)).all()
    named = sum(10**log for ngram, (log, _) in entries.items() if len(ngram) == 1)
    assert abs(named - (0 if "<unk>" in words else model.probs[:size].min()) - 1) < 1e-8


@settings(deadline=None, max_examples=20)
@given(texts(), st.integers(1, 5))
def test_a_model_that_was_read_is_written_and_read_as_it_is(text, order):
    words = [f"w{i}" for i in range(text[2])]
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "a.arpa"), Path(folder, "b.arpa.gz")
        write_arpa(solved(text, order), first, words)
        model = read_arpa(first, words, text[3])
        write_arpa(model, second, words)
        assert gzip.decompress(second.read_bytes()) == first.read_bytes()
        assert_equal(read_arpa(second, words, text[3]), model)


def test_a_model_without_histories(tmp_path):
    model = solved((np.array([0, 1, 1, 2, 0]), np.array([0, 4]), 3, 0), 1)
    write_arpa(model, tmp_path / "model.arpa", ["|", "a", "b"])
    back = read_arpa(tmp_path / "model.arpa", ["|", "a", "b"], 0)
    np.testing.assert_allclose(back.row([1]), model.row([1]), atol=1e-9)
    assert (back.order, back.gammas.size, back.sizes.size, back.offsets.tolist()) == (1, 0, 0, [3])


def test_the_bytes_of_a_small_file(tmp_path):
    write_arpa(read_text(tmp_path, SMALL, ["a", "|", "b"]), tmp_path / "out.arpa", ["a", "|", "b"])
    assert (tmp_path / "out.arpa").read_text() == (
        "\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-0.60206\t<unk>\n-99\t<s>\t-0.30103\n-0.60206\ta\t-0.30103\n"
        "-0.30103\t</s>\n-0.60206\tb\n\n\\2-grams:\n-0.124938737\ta </s>\n-0.124938737\t<s> </s>\n\n\\end\\\n"
    )


def test_a_file_of_lmplz_is_read(tmp_path):
    model = read_text(tmp_path, LMPLZ)
    entries = plain(tmp_path / "model.arpa")
    assert (model.order, model.n_ngrams) == (3, [6, 14, 13])
    rng = np.random.default_rng(0)
    text = np.concatenate([[1], rng.integers(0, 6, 500), [1]])
    ours = model.log_probs(text, np.array([0, text.size - 1])) / math.log(10)
    np.testing.assert_allclose(ours, plain_scores(entries, text, WORDS, 1), rtol=0, atol=1e-12)
    sums = [model.row([first, second, third]).sum() for first in range(6) for second in range(6) for third in range(6)]
    assert 0 < np.abs(np.array(sums) - 1).max() < 3e-7  # seven decimals
    assert model.sizes[:6].tolist() == [1, 1, 1, 1, 1, 0]
    assert model.row([1])[5] == pytest.approx(10 ** (-0.20760831 - 1.5563025))


def backwards(text):
    """The same file with the n-grams of every length in the opposite order."""
    head, *sections, end = text.split("\n\n")
    sections = [[lines[0], *lines[:0:-1]] for lines in (section.split("\n") for section in sections)]
    return "\n\n".join([head, *map("\n".join, sections), end])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\t0\n", "\n"),
        lambda text: "\n\n" + text.replace("\n\\2", "\n\n \n\\2") + "\n \n",
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("\t", " ").replace(" a b", "   a \t b "),
        lambda text: text.replace("ngram 2=14", "ngram  2 = 14"),
        lambda text: text.replace("<unk>", "<UNK>"),
        lambda text: text.replace("0\t<s>", "-99\t<s>"),
        lambda text: text.replace("-0.30103\n", "-3.0103e-1\n").replace("-1.5563025", "-1556302.5E-06"),
        backwards,
    ],
)
def test_other_ways_to_write_the_same_file(tmp_path, change):
    assert_equal(read_text(tmp_path, change(LMPLZ)), read_text(tmp_path, LMPLZ))


def test_blocks_of_any_size_give_the_same_model(tmp_path, monkeypatch):
    whole = read_text(tmp_path, LMPLZ)
    for size in (40, 41, 64, 100, 333):
        monkeypatch.setattr(arpa, "BLOCK", size)
        assert_equal(read_text(tmp_path, LMPLZ), whole)
    assert_equal(read_text(tmp_path, "\ufeff" + LMPLZ), whole)
    monkeypatch.setattr(arpa, "BLOCK", 5)
    with pytest.raises(InputError, match="line 2: expected a line of at most 5 bytes, got a longer one"):
        read_text(tmp_path, LMPLZ)


def test_tokens_that_the_file_does_not_list_share_the_unknown_word(tmp_path):
    words = [*WORDS, "rare", "rarer"]
    model, one = read_text(tmp_path, LMPLZ, words), read_text(tmp_path, LMPLZ)
    np.testing.assert_allclose(model.row([3, 2])[[5, 6, 7]], one.row([3, 2])[5] / 3)
    np.testing.assert_allclose(model.row([7]), model.row([5]))
    assert abs(model.row([3, 2]).sum() - 1) < 3e-7
    lone = read_text(tmp_path, LMPLZ, ["d", "|", "b", "a", "c", "rare"])
    assert_equal(lone, one)


def test_n_grams_of_the_unknown_word_belong_to_the_one_token_it_stands_for(tmp_path):
    text = SMALL.replace("\tb", "\t<unk>\t0").replace("a </s>", "<unk> <unk>").replace("\ta\t-0.30103", "\ta")
    text = text.replace("<unk>\t0", "<unk>\t-0.30103").replace("-0.124938736608\t<unk>", "-0.204119982656\t<unk>")
    for name in ("<unk>", "rare"):
        row = read_text(tmp_path, text, ["a", "|", name]).row([2])
        np.testing.assert_allclose(row, [0.125, 0.25, 0.625], atol=1e-6)
    with pytest.raises(InputError, match=r"line 13: expected no n-gram of <unk>.*got '<unk> <unk>'"):
        read_text(tmp_path, text, ["a", "|", "rare", "rarer"])


def test_an_unknown_word_without_a_token_is_left_out_only_if_rows_still_sum_to_1(tmp_path):
    words = ["d", "|", "b", "a", "c"]
    with pytest.raises(InputError, match=r"1-grams that sum to 1, got 0.972222 without <unk>.*has 0.0277778"):
        read_text(tmp_path, LMPLZ, words)
    beside = SMALL.replace("1=4", "1=5").replace("\tb", "\tb\n-0.5\t<unk>")
    assert_equal(read_text(tmp_path, beside, ["a", "|", "b"]), read_text(tmp_path, SMALL, ["a", "|", "b"]))


def test_last_words_that_are_no_n_gram_are_scored_from_shorter_ones(tmp_path):
    """SRILM prunes "b </s>" and keeps "a b </s>"."""
    text = SMALL.replace("ngram 2=2", "ngram 2=3\nngram 3=1").replace(
        "\n\n\\end", "\n-0.90309\ta b\t0.0791812\n\n\\3-grams:\n-0.39794\ta b </s>\n\n\\end"
    )
    model = read_text(tmp_path, text, ["a", "|", "b"])
    entries = plain(tmp_path / "model.arpa")
    tokens = np.array([1, 0, 2, 1, 0, 2, 0, 1])
    scores = plain_scores(entries, tokens, ["a", "|", "b"], 1) * math.log(10)
    np.testing.assert_allclose(model.log_probs(tokens, np.array([0, 3, 7])), scores, atol=1e-12)
    np.testing.assert_allclose(model.row([0, 2]), [0.3, 0.4, 0.3], atol=1e-6)


def replaced(old, new, text=LMPLZ):
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (replaced("-0.4723224\ta c", "0.4723224\ta c"), r"line 26: expected a logarithm of at most 0.*got '0.47.*a c"),
        (replaced("-0.66103786", "-0.66x"), r"line 10: expected a decimal logarithm, got '-0.66x\\ta"),
        (replaced("-0.66103786", "nan"), r"line 10: expected a decimal logarithm, got 'nan"),
        (replaced("-0.66103786", "-inf"), r"line 10: expected a decimal logarithm, got '-inf"),
        (replaced("a\t-0.029963223", "a\tinf"), r"line 10: expected a decimal logarithm of at most 99 as weight"),
        (replaced("a\t-0.029963223", "a\t1e3"), r"line 10: expected a decimal logarithm of at most 99 as weight"),
        (replaced("a\t-0.029963223", "a\t-"), r"line 10: expected a decimal logarithm of at most 99 as weight"),
        (replaced("a\t-0.029963223", "a\t-0.03\t1"), "line 10: expected the end of the line"),
        (replaced("-0.2122847\tb c a", "-0.2122847\tb c"), "line 37: expected more words"),
        (replaced("-0.2122847\tb c a", "-0.2122847\tb c a\t-1"), r"line 37: expected no weight.*got -1"),
        (replaced("-0.2122847\tb c a", "-0.2122847\tb c e"), r"line 37: expected words of the vocabulary, got '.*c e'"),
        (replaced("-0.2122847\tb c a", "-0.2122847\tb d a"), r"line 37: expected an n-gram whose first 2 .*'b d a'"),
        (replaced("-0.2122847\tb c a", "-0.2122847\tb <s> a"), r"line 37: expected <s> as first .*'b <s> a'"),
        (replaced("-0.2122847\tb c a", "-0.2122847\tb </s> a"), r"line 37: expected </s> as last .*'b </s> a'"),
        (replaced("-0.2122847\tb c a", "-0.48536354\ta b a"), r"line 37: expected every n-gram once"),
        (replaced("d\t-0.13469857", "c\t-0.13469857"), r"line 13: expected every n-gram once"),
        (replaced("ngram 2=14", "ngram 2=15"), r"line 29: expected 15 n-grams of length 2.*got 14"),
        (replaced("ngram 2=14", "ngram 2=13"), r"line 29: expected 13 n-grams of length 2.*got 14"),
        (replaced("ngram 2=14\n", ""), r"line 3: expected the number of n-grams of length 2.*got ngram 3=13"),
        (replaced("ngram 3=13\n", ""), r"line 19: expected no weight.*got -0.30103"),
        (replaced("ngram 1=7", "ngram 0=7"), r"line 2: expected the number of n-grams of length 1"),
        (replaced("ngram 1=7", "ngram 1=x"), r"line 2: expected \\1-grams:.*got ngram 1=x"),
        ("\\data\\\n\n\\end\\\n", r"line 3: expected \\1-grams:.*got \\end\\"),
        ("\\data\\\nngram 1=0\n\n\\1-grams:\n\n\\end\\\n", r"line 4: expected </s> among the 1-grams"),
        (replaced("-0.6233096\tb </s>", "\n-0.6233096\tb </s>"), r"line 16: expected 14 n-grams of length 2.*got 1 "),
        (replaced("\\3-grams:", "\\4-grams:"), r"line 31: expected \\3-grams:, got \\4-grams:"),
        (replaced("\\end\\\n", ""), r"expected \\end\\, got the end of the file"),
        (LMPLZ + "more", r"line 47: expected nothing after \\end\\, got more"),
        ("", r"line 0: expected \\data\\.*got the end of the file"),
        ("iARPA\n", r"line 1: expected \\data\\ as first line, got iARPA"),
        ("x" * 5000, r"line 1: expected \\data\\ as first line, got x{200}\.\.\.;"),
        (replaced("0\t<s>\t-0.20760831\n", "").replace("1=7", "1=6"), "expected <s> among the 1-grams, got none"),
        (replaced("-0.5380777\t</s>\t0\n", "").replace("1=7", "1=6"), "expected </s> among the 1-grams, got none"),
        (replaced("-1.5563025\t<unk>\t0\n", "").replace("1=7", "1=6"), r"line 12: expected a 1-gram of .*'<unk>'"),
        (replaced("-0.66103786", "-0.7"), "expected 1-grams that sum to 1, got 0.981272"),
        (replaced("b\t-0.22792287", "b"), r"line 29: expected weights.*got 1.08264 after 'b'"),
        (replaced("<s>\t-0.20760831", "<s>"), r"line 29: expected weights.*after '<s>'"),
        (replaced("b a\t-0.30103", "b a\t-0.3"), r"line 44: expected weights.*after 'b a'"),
        (replaced("b </s>\t0", "b </s>\t-0.1"), r"expected weights.*got 0.794328 after 'b </s>'"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_text(tmp_path, text)


def test_contexts_whose_last_words_are_no_context_are_refused(tmp_path):
    text = """\\data\\\nngram 1=3\nngram 2=2\nngram 3=1\nngram 4=1\n
\\1-grams:\n-99\t<s>\n-0.30103\t</s>\n-0.30103\ta\n
\\2-grams:\n-0.30103\t<s> a\n-0.30103\t<s> </s>\n
\\3-grams:\n-0.30103\t<s> a a\n
\\4-grams:\n-0.30103\t<s> a a a\n
\\end\\
"""
    with pytest.raises(InputError, match=r"line 20: expected n-grams whose last words are .* got '<s> a a'"):
        read_text(tmp_path, text, ["a", "|"])


@pytest.mark.parametrize("name", ["model.arpa", "model.arpa.gz", "model.arpa.bz2", "model.arpa.xz"])
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
    content = write_text(tmp_path / name, LMPLZ).read_bytes()
    for size in range(0, len(content) - 2, 7):
        (tmp_path / name).write_bytes(content[:size])
        with pytest.raises(InputError, match=r"model\.arpa"):
            read_arpa(tmp_path / name, WORDS, 1)


def test_files_that_are_none(tmp_path):
    for path in (tmp_path / "nothing.arpa", tmp_path / "nothing.gz", tmp_path):
        with pytest.raises(InputError, match="expected an ARPA file"):
            read_arpa(path, WORDS, 1)
    (tmp_path / "plain.gz").write_text(LMPLZ)
    with pytest.raises(InputError, match="expected a whole file, got: Not a gzipped file"):
        read_arpa(tmp_path / "plain.gz", WORDS, 1)


ODD = [" ", "|", "\n", "\t", "<s>", "</s>", "<UNK>", "\u3000", "\0", "\\1-grams:", "</S>", "-0.5", "a\x1cb", "é"]


def test_words_that_the_format_cannot_hold_are_written_as_bytes(tmp_path):
    text = np.array([1, *range(2, 14), 0, 4, 1]), np.array([0, 15]), 14, 1
    model = solved(text, 3)
    write_arpa(model, tmp_path / "model.arpa", ODD)
    entries = plain(tmp_path / "model.arpa")
    assert [ngram[0] for ngram in entries if len(ngram) == 1] == [
        "<unk>", "<s>", "<0x20>", "</s>", "<0x0A>", "<0x09>", "<0x3C>s>", "<0x3C>/s>", "<0x3C>UNK>",
        "<0xE3><0x80><0x80>", "<0x00>", "\\1-grams:", "</S>", "-0.5", "a<0x1C>b", "é",
    ]  # fmt: skip
    back = read_arpa(tmp_path / "model.arpa", ODD, 1)
    np.testing.assert_allclose(back.row([3, 4]), model.row([3, 4]), atol=1e-8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "|"], "expected one for each of 3 tokens, got 2"),
        (["a", "|", "a"], "expected different ones, got 'a' twice"),
        ([" ", "|", "<0x20>"], "expected different ones, got '<0x20>' twice"),
        (["a", "", ""], "expected one for every token, got an empty one for 2"),
    ],
)
def test_words_that_are_refused(tmp_path, words, message):
    model = read_text(tmp_path, SMALL, ["a", "|", "b"])
    with pytest.raises(InputError, match=message):
        write_arpa(model, tmp_path / "out.arpa", words)
    with pytest.raises(InputError, match=r"separator: expected a token from 0 to 1, got 2"):
        read_arpa(tmp_path / "model.arpa", ["a", "b"], 2)


@pytest.mark.parametrize(("name", "value"), [("probs", 1.5), ("probs", np.nan), ("probs", -0.1), ("gammas", np.inf)])
def test_a_model_that_is_no_distribution_is_not_written(tmp_path, name, value):
    model = read_text(tmp_path, SMALL, ["a", "|", "b"])
    getattr(model, name)[1] = value
    with pytest.raises(InputError, match="expected a model of numbers from 0 to"):
        write_arpa(model, tmp_path / "out.arpa", ["a", "|", "b"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.arpa"]


def test_a_probability_of_0_is_minus_99(tmp_path):
    model = read_text(tmp_path, SMALL, ["a", "|", "b"])
    model.probs[:3] = 0.5, 0.5, 0.0
    model.gammas[:2] = 0.5
    write_arpa(model, tmp_path / "out.arpa", ["a", "|", "b"])
    assert "\n-99\tb\n" in (tmp_path / "out.arpa").read_text()
    assert read_arpa(tmp_path / "out.arpa", ["a", "|", "b"], 1).row([0])[2] == pytest.approx(5e-100)


@pytest.mark.parametrize("name", ["model.arpa", "model.arpa.gz", "model.arpa.bz2", "model.arpa.xz"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, name):
    model, words = read_text(tmp_path, LMPLZ), WORDS
    reports = []
    write_arpa(model, tmp_path / name, words, lambda *report: reports.append(report))
    assert reports == [("write n-grams", 7, 34), ("write n-grams", 21, 34), ("write n-grams", 34, 34)]
    whole = (tmp_path / name).read_bytes()

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_arpa(model, tmp_path / name, words, stop)
    assert (tmp_path / name).read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {"model.arpa", name}
    write_arpa(model, tmp_path / "again.arpa.gz", words)
    write_arpa(model, tmp_path / "once.arpa.gz", words)
    assert (tmp_path / "again.arpa.gz").read_bytes() == (tmp_path / "once.arpa.gz").read_bytes()
    reports.clear()
    read_arpa(tmp_path / name, words, 1, lambda *report: reports.append(report))
    assert reports[-1] == ("read n-grams", 34, 34)


def text_array(text):
    return np.frombuffer(text.encode() + b"\n", np.uint8)


decimals = st.from_regex(r"[-+]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][-+]?[0-9]{1,2})?", fullmatch=True)


@given(decimals)
@example("-0.30103")
@example("99999999999999999999")
@example("-.00000000000000000001e-99")
def test_the_compiled_number_is_that_of_python(text):
    text = text.encode("ascii", "ignore").decode()
    array = text_array(text)
    assert _arpa_kernels.number(array, 0, array.size - 1) == pytest.approx(float(text), rel=1e-14, abs=0)


@pytest.mark.parametrize(
    "text", ["", "-", "+", ".", "-.", "e5", "1e", "1e+", "1.2.3", "--1", "1-", "0x10", "1_0", "inf"]
)
def test_what_is_no_number(text):
    array = text_array(text)
    assert math.isnan(_arpa_kernels.number(array, 0, array.size - 1))


@given(st.integers(-(10**12), 10**12))
@example(-99 * 10**9)
@example(-(10**9) - 1)
def test_a_number_is_written_exactly_and_without_zeros_at_its_end(value):
    out = np.empty(40, np.uint8)
    text = bytes(out[: _arpa_kernels.write_number(value, out, 0)]).decode()
    assert Decimal(text) == Decimal(value) / 10**9
    assert text == f"{Decimal(value) / 10**9:f}".rstrip("0").rstrip(".") or value % 10**9 == 0


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters=" \t\r\n"), min_size=1), unique=True, max_size=60)
)
def test_words_are_found_whatever_their_bytes(words):
    encoded = [word.encode() for word in words]
    starts = np.cumsum([0, *map(len, encoded)])
    letters = np.frombuffer(b"".join(encoded), np.uint8)
    for size in (64, 1024):
        slots = _arpa_kernels.word_slots(letters, starts, size)
        for i, word in enumerate(words):
            text = text_array(f" {word}")
            assert _arpa_kernels.find_word(text, 1, text.size - 1, slots, letters, starts) == i
            longer = text_array(f"{word}\r")
            assert _arpa_kernels.find_word(longer, 0, longer.size - 1, slots, letters, starts) == -1


def corpus_of_words(tmp_path):
    rng = np.random.default_rng(1)
    letters = list("abcdefghijklmnop")
    documents = [" ".join(rng.choice(letters, rng.integers(1, 80))) for _ in range(20)]
    train = Corpus.build(documents[:15], tokenizer="words", vocab_size=12, cache_dir=tmp_path)
    return train, Corpus.encode([*documents[15:], "zz a zz"], train.tokenizer, cache_dir=tmp_path)


def kenlm_scores(path, corpus, words):
    kenlm = pytest.importorskip("kenlm", reason="pip install 'warmstart[kenlm]', which compiles it with cmake")
    model, scores = kenlm.Model(str(path)), []
    for start, stop in zip(corpus.documents[:-1], corpus.documents[1:], strict=True):
        sentence = " ".join(words[token] for token in corpus.tokens[start + 1 : stop])
        scores += [score for score, _, _ in model.full_scores(sentence)]
    return np.array(scores)


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize("prune", [(), (0, 1)])
@pytest.mark.parametrize("ending", [".arpa", ".arpa.gz"])
def test_kenlm_scores_as_we_do(tmp_path, order, prune, ending):
    train, new = corpus_of_words(tmp_path)
    model = KneserNey(count_ngrams(train.tokens, train.documents, train.vocab_size, order), prune)
    words = arpa_words(train.tokenizer)
    unknown = unknown_id(train.tokenizer)
    assert (words[unknown], (new.tokens == unknown).any()) == ("<unk>", True)
    write_arpa(model, tmp_path / f"model{ending}", words)
    words[unknown] = "never-seen"
    for corpus in (train, new):
        ours = model.log_probs(corpus.tokens, corpus.documents) / math.log(10)
        theirs = kenlm_scores(tmp_path / f"model{ending}", corpus, words)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)
        assert abs(theirs.sum() - ours.sum()) < 1e-4


def test_kenlm_gives_a_word_that_we_do_not_have_what_a_token_never_counted_has(tmp_path):
    text = np.array([0, 1, 2, 1, 0]), np.array([0, 4]), 4, 0
    model = solved(text, 2)
    write_arpa(model, tmp_path / "model.arpa", ["|", "a", "b", "never"])
    kenlm = pytest.importorskip("kenlm", reason="pip install 'warmstart[kenlm]', which compiles it with cmake")
    scores = kenlm.Model(str(tmp_path / "model.arpa"))
    assert scores.score("a never b") == pytest.approx(scores.score("a xyz b"), abs=1e-6)


def test_we_score_a_file_of_lmplz_as_kenlm_does(tmp_path):
    model = read_text(tmp_path, LMPLZ)
    rng = np.random.default_rng(0)
    tokens = np.concatenate([[1], rng.integers(0, 6, 300), [1]])
    corpus = type("", (), {"tokens": tokens, "documents": np.flatnonzero(tokens == 1)})
    ours = model.log_probs(corpus.tokens, corpus.documents) / math.log(10)
    np.testing.assert_allclose(kenlm_scores(tmp_path / "model.arpa", corpus, WORDS), ours, rtol=0, atol=2e-6)


def test_words_of_a_tokenizer_that_calls_its_unknown_token_otherwise():
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}))  # [UNK] is its default
    assert arpa_words(tokenizer) == ["<unk>", "a", "##b"]
