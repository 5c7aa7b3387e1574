"""Which benches run: those that have their data and packages; and what a quick run reads."""

import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory, needs, probes


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


def test_word_pairs_are_the_files_of_the_probes(data):
    assert {f"EN-{name}.txt" for name in probes.PAIRS.values()} == {p.name for p in (data / "wordsim").iterdir()}


@pytest.mark.parametrize(
    ("package", "extra", "quick", "lost"),
    [
        (
            "transformers",
            "hf",
            True,
            ["transformers", "mixers", "fast_weights", "embeddings", "blimp", "little_data", "lengths", "tickets"],
        ),
        ("matplotlib", "plot", True, []),
        ("matplotlib", "plot", False, [name for name, needed in needs.BENCHES.items() if needed.plots]),
        ("gensim", "bench", False, ["throughput", "vectors", "defaults"]),
    ],
)
def test_benches_without_their_extra_are_left_out(data, monkeypatch, capsys, package, extra, quick, lost):
    monkeypatch.setitem(sys.modules, package, None)
    assert needs.able(quick) == [name for name in needs.BENCHES if name not in lost]
    said = f"left out: {', '.join(lost)}: expected {package}, found none; pip install 'warmstart[{extra}]'\n"
    assert capsys.readouterr().err == (said if lost else "")


def test_benches_without_their_data_are_left_out(data, monkeypatch, capsys):
    (data / "blimp" / "blimp_dev15.jsonl").unlink()
    assert set(needs.BENCHES) - set(needs.able(quick=True)) == {"blimp", "transformers"}
    assert (
        f"left out: transformers, blimp: expected {data / 'blimp' / 'blimp_dev15.jsonl'}, found none"
        in capsys.readouterr().err
    )
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
    assert (
        "left out: transformers, mixers, fast_weights, embeddings, blimp, little_data, lengths, tickets: "
        "expected transformers" in done.stderr
    )
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


def test_a_quick_run_keeps_nothing(tmp_path):
    points = memory.run(tmp_path, tmp_path / "docs", quick=True)["points"]
    assert {point["length"] for point in points} == {64}
    assert not (tmp_path / "docs").exists()
