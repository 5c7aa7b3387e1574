"""What the benches share: results as JSON lines that outlive a kill, and benches that lack something left out."""

import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import classifier, memory, needs, probes
from benchmarks.report import Book
from warmstart import InputError


def counter():
    done = []

    def work():
        done.append(1)
        return len(done)

    return work


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "bench.jsonl"


def test_finished_runs_are_kept_until_the_code_changes(path):
    work = counter()
    assert [Book(path, "a").do("run", work) for _ in range(2)] == [1, 1]
    assert Book(path, "b").do("run", work) == 2
    assert Book(path, "b").do("run", work) == 2


def test_a_result_is_a_line_appended_when_it_is_made(path):
    book = Book(path, "a")
    for i in range(3):
        book.do(f"run {i}", lambda i=i: {"at": i})
        lines = [{"name": f"run {j}", "code": "a", "result": {"at": j}} for j in range(i + 1)]
        assert list(map(json.loads, path.read_text().splitlines())) == lines
    inode = path.stat().st_ino
    book.do("run 3", lambda: None)
    assert path.stat().st_ino == inode  # not written anew


def test_what_other_code_made_stays_until_it_is_superseded(path):
    for name in ("one", "two"):
        Book(path, "a").do(name, lambda name=name: name)
    Book(path, "b").do("two", lambda: "new")
    assert [tuple(json.loads(line).values()) for line in path.read_text().splitlines()] == [
        ("one", "a", "one"),
        ("two", "b", "new"),
    ]


def test_a_later_line_of_a_name_counts(path):
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"name": "run", "code": "a", "result": i}) + "\n" for i in range(3)))
    assert Book(path, "a").do("run", lambda: pytest.fail("is kept")) == 2


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_line_is_dropped_with_a_note_and_no_other(path, capsys, cut):
    book, work = Book(path, "a"), counter()
    for i in range(3):
        book.do(f"run {i}", work)
    whole = path.read_text()
    path.write_text(whole[:-cut])
    again = Book(path, "a")
    assert len(again.done) == (3 if cut == 1 else 2)  # only the end of the line is missing: it is whole
    assert capsys.readouterr().err.count("bench.jsonl, line 3: expected a result") == (cut > 1)
    again.do("run 2", lambda: 3)
    again.do("run 3", work)
    assert path.read_text().startswith(whole)
    assert [json.loads(line)["result"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert len(Book(path, "a").done) == 4
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", ["", "[]", "7", '{"name": "x"}', '{"name": [], "code": "a", "result": 1}', "\0\xff"])
def test_a_line_of_something_else_is_no_crash(path, capsys, line):
    Book(path, "a").do("run", lambda: 1)
    with path.open("a", encoding="latin-1") as file:
        file.write(line + "\n")
    assert Book(path, "a").done.keys() == {"run"}
    assert "line 2" in capsys.readouterr().err


def test_new_and_kept_results_are_the_same(path):
    made = Book(path, "a").do("run", lambda: {1: (0.1, float("inf"))})
    assert made == {"1": [0.1, float("inf")]} == Book(path, "a").do("run", lambda: None)


def test_nothing_is_written_without_a_path():
    book = Book(None, "a")
    assert [book.do("run", work) for work in [counter()] * 2] == [1, 1]


# Benches that lack something.


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Every file that a bench needs, empty."""
    for files, *_ in needs.BENCHES.values():
        for file in files:
            (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / file).touch()
    monkeypatch.setenv("WARMSTART_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_all_benches_have_their_files_and_a_module(data):
    assert needs.able(quick=False) == list(needs.BENCHES)
    names = {file.stem for file in Path(needs.__file__).parent.glob("*.py") if "def run(" in file.read_text()}
    assert names == set(needs.BENCHES)


def test_files_are_those_that_are_read(data):
    assert {f"EN-{name}.txt" for name in probes.PAIRS.values()} == {p.name for p in (data / "wordsim").iterdir()}
    (data / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="train-images"):  # empty, but looked for by the same name
        classifier.mnist(data)


@pytest.mark.parametrize(
    ("package", "extra", "quick", "lost"),
    [
        ("transformers", "hf", True, ["transformers", "mixers", "embeddings"]),
        ("matplotlib", "plot", True, []),
        ("matplotlib", "plot", False, [name for name, needed in needs.BENCHES.items() if needed.plots]),
        ("gensim", "bench", False, []),  # some arms of vectors need it, the bench does not
    ],
)
def test_benches_without_their_extra_are_left_out(data, monkeypatch, capsys, package, extra, quick, lost):
    monkeypatch.setitem(sys.modules, package, None)
    assert needs.able(quick) == [name for name in needs.BENCHES if name not in lost]
    said = f"left out: {', '.join(lost)}: expected {package}, found none; pip install 'warmstart[{extra}]'\n"
    assert capsys.readouterr().err == (said if lost else "")


def test_benches_without_their_data_are_left_out(data, monkeypatch, capsys):
    (data / "blimp" / "blimp_dev15.jsonl").unlink()
    assert set(needs.BENCHES) - set(needs.able(quick=True)) == {"blimp"}
    assert f"left out: blimp: expected {data / 'blimp' / 'blimp_dev15.jsonl'}, found none" in capsys.readouterr().err
    monkeypatch.setenv("WARMSTART_DATA", str(data / "missing"))
    assert needs.able(quick=True) == ["memory", "retrieval"]
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "WARMSTART_DATA" in err


def test_all_goes_on_with_the_others_and_one_alone_is_an_error(tmp_path):
    """In a process without transformers and without data: what needs neither is measured."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import typer; from benchmarks import __main__, memory, retrieval\n"
        "memory.run = retrieval.run = lambda *a: {'ran': 1}\n"
        "typer.run(__main__.main)"
    )

    def bench(*arguments):
        command = [sys.executable, "-c", code, *arguments]
        environment = {"WARMSTART_DATA": str(tmp_path / "missing"), "PYTHONPATH": str(Path(__file__).parents[1])}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    done = bench("all", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [{"bench": "memory", "ran": 1}, {"bench": "retrieval", "ran": 1}]
    assert "left out: transformers, mixers, embeddings: expected transformers" in done.stderr
    assert "pip install 'warmstart[hf]'" in done.stderr
    assert "left out: classifier, attention" in done.stderr
    alone = bench("transformers", "--quick")
    assert (alone.returncode, alone.stdout) == (1, "")
    assert alone.stderr == "error: expected transformers, found none; pip install 'warmstart[hf]'\n"
    assert bench("lm").stderr.startswith("error: expected a folder of data sets")


def test_a_quick_bench_reads_the_beginnings_of_its_files(data, tmp_path):
    with lzma.open(data / "classics" / "train.txt.xz", "wt") as file:
        file.write("ä" * 500_000)
    (data / "classics" / "valid.txt").write_text("ä" * 100_000)
    (data / "ud-english-ewt" / "en_ewt-ud-train.conllu").write_text("1\ta\ta\tX\n\n" * 400)
    (data / "blimp" / "blimp_dev15.jsonl").write_text("".join(f"{i}\n" for i in range(95)))
    (data / "wordsim" / "EN-MEN-TR-3k.txt").write_text("a b 1\n")
    for name in ("vectors", "blimp"):
        small = needs.cut(name, tmp_path / name)
        assert sorted(p.relative_to(small) for p in small.rglob("*.*")) == sorted(map(Path, needs.BENCHES[name].files))
    with lzma.open(small / "classics" / "train.txt.xz", "rt") as file:
        assert file.read() == "ä" * 400_000
    assert (small / "classics" / "valid.txt").read_text() == "ä" * 60_000
    assert (small / "blimp" / "blimp_dev15.jsonl").read_text().split() == [str(i) for i in range(0, 95, 10)]
    assert len(probes.read_conllu(tmp_path / "vectors" / "ud-english-ewt" / "en_ewt-ud-train.conllu")) == 300
    assert (tmp_path / "vectors" / "wordsim" / "EN-MEN-TR-3k.txt").read_text() == "a b 1\n"


def test_a_quick_run_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_alone", lambda *_: {"forward": 1, "training": 1, "bytes": 1})
    points = memory.run(tmp_path, tmp_path / "docs", quick=True)["points"]
    assert {point["length"] for point in points} == {64}
    assert not (tmp_path / "docs").exists()
