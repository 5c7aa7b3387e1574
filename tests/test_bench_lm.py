"""The language-model bench: its texts, KenLM beside it, what is left out, its kept results and its section."""

import stat
import sys

import numpy as np
import pytest

from benchmarks import leaving_out, lm, lm_section, lmplz, needs, texts
from benchmarks.harness import ROOT, Results
from warmstart.errors import InputError
from warmstart.kneser_ney import KneserNey
from warmstart.ngrams import count_ngrams

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(1, 9, size) // 2 + 1 for size in (40, 1, 7, 90, 25)]
TOKENS = np.concatenate([[0], *(np.append(document, 0) for document in DOCUMENTS)])
BORDERS = np.flatnonzero(TOKENS == 0)
COUNTS = count_ngrams(TOKENS, BORDERS, 6, order=3)


def words(text):
    return texts.published(dict.fromkeys(("train", "valid", "test"), text))


def test_published_perplexity_is_that_of_words_and_line_ends_alone():
    text = words("the cat \n \n the <unk> \n")
    tokens, borders = text.parts["train"]
    assert tokens.tolist() == [4, 1, 2, 0, 0, 1, 3, 0, 4]  # <eos>, the, cat, <unk>, separator
    assert borders.tolist() == [0, 8]
    assert text.perplexity(np.log([0.5] * 7 + [1e-9])) == pytest.approx(2)
    assert text._replace(ends=True).perplexity(np.log([0.5] * 7 + [0.125])) == pytest.approx(2 ** (10 / 8))


def data_of(folder):
    """Word-level texts under the name of WikiText-2."""
    (folder / "wikitext-2").mkdir()
    for part, length in (("train", 3000), ("valid", 50), ("test", 80)):
        lines = [" ".join("abcdefgh"[i] for i in RNG.zipf(1.5, 9) % 8) for _ in range(length // 9)]
        (folder / "wikitext-2" / f"{part}.txt").write_text("\n".join(["<unk>", *lines]) + "\n")
    return folder


STAND_IN = """#!{python}
import sys
from pathlib import Path
import numpy as np
from benchmarks.lmplz import word
from warmstart.arpa import write_arpa
from warmstart.kneser_ney import KneserNey
from warmstart.ngrams import count_ngrams
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if options["-o"] == "9":
    sys.exit("too long")
lines = [[int(w[1:]) for w in line.split()] for line in Path(options["--text"]).read_text().splitlines()]
size = 1 + max(max(line) for line in lines) + 1
tokens = np.array([size - 1] + [token for line in lines for token in [*line, size - 1]])
counts = count_ngrams(tokens, np.flatnonzero(tokens == size - 1), size, int(options["-o"]))
write_arpa(KneserNey(counts), Path(options["--arpa"]), [word(token) for token in range(size)])
"""


@pytest.fixture
def binaries(tmp_path):
    """A program in the place of `lmplz` that has its options and counts by this package."""
    program = tmp_path / "bin" / "lmplz"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program.parent


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a script")
@pytest.mark.parametrize("module", [False, True])
def test_lmplz_gets_the_same_tokens_and_its_file_is_scored(tmp_path, monkeypatch, binaries, module):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if module:
        pytest.importorskip("kenlm", reason="pip install 'warmstart[kenlm]', which compiles it with cmake")
    monkeypatch.setattr(lmplz, "find_spec", lambda name: object() if module else None)
    data = data_of(tmp_path)
    found = lmplz.measure(binaries, data, texts.PUBLISHED, 0, order=3)
    text = texts.load(data, texts.PUBLISHED, 0)
    model = KneserNey(count_ngrams(*text.parts["train"], text.vocab_size, order=3))
    for part in ("valid", "test"):
        assert found[part] == pytest.approx(text.perplexity(model.log_probs(*text.parts[part])), rel=1e-5)
    assert found["scored_by"] == ("kenlm" if module else "warmstart.arpa")
    assert found["seconds"] > 0
    assert found["peak_memory_bytes"] > 10 * 2**20
    with pytest.raises(RuntimeError, match=r"lmplz -o 9 .* failed: too long"):
        lmplz.measure(binaries, data, texts.PUBLISHED, 0, order=9)


def test_kenlm_is_a_folder_with_lmplz_or_none(tmp_path, monkeypatch, binaries):
    monkeypatch.setenv("KENLM", str(binaries))
    assert needs.kenlm() == binaries
    monkeypatch.setenv("KENLM", str(tmp_path))
    with pytest.raises(InputError, match="KENLM: expected a folder with the program lmplz"):
        needs.kenlm()
    monkeypatch.delenv("KENLM")
    assert needs.kenlm() is None


def without_token(discounts, target):
    """P of one target of TOKENS by Kneser-Ney of order 3, the n-grams that end with it counted once less, by hand."""
    grams = {n: {} for n in (1, 2, 3)}
    for i in range(1, TOKENS.size):
        start = max(j for j in BORDERS if j < i)
        for n in (1, 2, 3):
            if i - n + 1 >= start:
                gram = tuple(TOKENS[i - n + 1 : i + 1].tolist())
                grams[n][gram] = grams[n].get(gram, 0) + (i != target)
    p, start = 1 / 6, max(j for j in BORDERS if j < target)
    for n in (1, 2, 3):
        if target - n + 1 < start:
            break
        *h, y = TOKENS[target - n + 1 : target + 1].tolist()

        def count(gram, n=n):
            if n == 3 or (n > 1 and gram[0] == 0):
                return grams[n].get(gram, 0)
            return sum(1 for longer, times in grams[n + 1].items() if longer[1:] == gram and times)

        row = [count((*h, token)) for token in range(6)]
        if sum(row):
            D = [discounts[n - 1][min(c, 3)] for c in row]
            p = (row[y] - D[y] + sum(D) * p) / sum(row)
    return p


def test_a_token_alone_is_left_out():
    model = leaving_out.TokenLeftOut(COUNTS)
    found = model.left_out(TOKENS, BORDERS).probs
    expected = [without_token(model.discounts, target) for target in range(1, TOKENS.size)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    other = KneserNey(COUNTS).left_out(TOKENS, BORDERS).probs
    assert np.abs(found - other).max() > 0.01  # than the whole part


def test_nothing_is_left_out():
    model = leaving_out.NothingLeftOut(COUNTS)
    np.testing.assert_array_equal(model.left_out(TOKENS, BORDERS).probs, KneserNey(COUNTS).score(TOKENS, BORDERS).probs)


def test_halves_are_documents_and_make_the_whole():
    first, second = leaving_out.halves(COUNTS)
    parts = [leaving_out.counts_of(half, COUNTS, 3) for half in (first, second)]
    assert (parts[0] + parts[1]).digest == COUNTS.digest
    assert abs(parts[0].n_tokens - parts[1].n_tokens) <= 90


# Kept results and the section.


def stub(key):
    """A result of every kind, with numbers that can be found again."""
    if key.get("ngrams") == "lmplz":
        return {"seconds": 34.5, "peak_memory_bytes": 2**30, "bytes": 10**9, "valid": 108.0, "test": 114.5528,
                "scored_by": "kenlm"}  # fmt: skip
    if "ngrams" in key:
        times = {"count": 11.5, "solve": 5.25, "tokens_per_second": 2e6, "peak_memory_bytes": 2**30, "bytes": 165e6}
        return times | {"targets": 14179317, "ngrams": [8192, 7], "fallbacks": [], "valid": 108.0, "test": 114.5545}
    if "corpus" in key:
        return {"seconds": 21.4}
    if "rows" in key:
        return {"vocab_size": 50000, "tokens": 1, "ngrams": [1] * 5, "low": 0.1, "median": 0.25, "high": 0.75,
                "largest_error_of_a_sum": 3e-13}  # fmt: skip
    if "mixture" in key:
        names = [*key["contexts"], "unigram"]
        scores = {"perplexity": 77.1 - len(names) / 10, "experts": dict.fromkeys(names, 200.0)}
        scores["shares"] = dict.fromkeys(names, 1 / len(names))
        return {"seconds": {}, "peak_memory_bytes": 1, "left_out": {}, "valid": scores, "test": scores}
    if "leaving out" in key:
        arm = {"sample": 60.25, "valid": 71.5, "ngrams": {"sample": 1.0, "valid": 1.0}}
        return dict.fromkeys(key["leaving out"], arm)
    seconds = {"corpus": 99.0, "count": 10.0, "output": 2.0, "gate": 4.0}
    size = 10.0 ** list(lm.PRESETS).index(key["fit"].split()[1])
    fit = {"parameters": 5, "vocab_size": 8192, "seconds": seconds, "peak_memory_bytes": 2**30}
    fit |= {"ngrams": [8192, 10, 20], "prune": [0, 1, 1]}
    scores = {"perplexity": 90.5 - size / 1e4, "bits_per_byte": 1.7, "tokens": 337622, "seconds": 4.0}
    scores |= {"experts": {"network": 250.0}, "unigram_perplexity": 965.0, "bigram_perplexity": 166.0}
    return {"fit": fit, "eval": scores, "bytes": 1e6 * size}


class Stubs(Results):
    """Results that are made without the work."""

    def do(self, key, work):
        return super().do(key, lambda: stub(key))


@pytest.fixture
def whole(tmp_path, monkeypatch, binaries):
    """All parts of a whole run, and their results."""
    monkeypatch.setenv("KENLM", str(binaries))
    results = Stubs(None, "benchmarks.render")
    return lm.Bench(tmp_path, results, quick=False).parts(), results


def test_no_kept_result_is_out_of_use(whole):
    asked = set(whole[1].records)
    kept = Results(ROOT / "docs" / "results" / "lm.jsonl").records
    assert set(kept) <= asked
    assert len(kept) >= 20


def test_the_section_shows_every_part(whole, tmp_path):
    parts, _ = whole
    assert lm_section.conclusion(parts) == (
        "Perplexity of books never seen, without a gradient step: Kneser-Ney of order 5 114.55 (KenLM 114.55), with a "
        "cache of the document 76.8, with classes and a network too 76.6; a discounted bigram model has 166."
    )
    text = lm_section.body(parts)
    assert "| classics | 5 | 108.00 | 114.55 | 114.55 | +0.001 |" in text
    assert "| and the cache | 76.80 | 76.80 | 76.80 | 76.80 | 76.80 | 76.80 |" in text
    assert (
        "| potato | 3 | 8,222 | 5 | 1.00 | 90.50 | 1.70 | 250 | 10.0 | 0 | 2.00 | 4.00 | 16.0 | 1.00 | 84,406 |" in text
    )
    assert "| warmstart | 11.5 | 5.25 | 16.8 | 1.00 | 165 |" in text
    assert "| `lmplz` | - | - | 34.5 | 1.00 | 1,000 |" in text
    assert "takes 0.25 ms" in text
    assert "| its part | 60.25 | 71.50 |" in text
    assert text.count("`--preset base --") == len(lm.networks(quick=False))
    lm_section.pictures(tmp_path, parts)
    assert {path.name for path in tmp_path.glob("*.png")} == {"lm_presets.png", "lm_bits.png"}


def test_without_kenlm_its_columns_are_empty(whole):
    parts, _ = whole
    for row in parts["ngrams"]:
        row["lmplz"] = None
    assert "| classics | 5 | 108.00 | 114.55 | - | - |" in lm_section.body(parts)
    assert "KenLM" not in lm_section.conclusion(parts)


def test_a_failing_command_says_why(tmp_path):
    (tmp_path / "classics").mkdir()
    (tmp_path / "classics" / "train.txt").write_text("a b c\n\nd e f\n")
    with pytest.raises(RuntimeError, match="preset: expected one of potato"):
        lm.command(tmp_path, "--preset huge", 300, "classics/test.txt")


def test_the_difference_is_in_percent():
    assert lm_section.excess({"test": 101.0, "lmplz": {"test": 100.0}}) == "+1.000"
    assert lm_section.excess({"test": 99.9, "lmplz": {"test": 100.0}}) == "-0.100"
    assert lm_section.excess({"test": 99.9, "lmplz": None}) == "-"
