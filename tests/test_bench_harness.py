"""What the benches share: results kept by configuration that outlive a kill, digests of code, search, sections."""

import json
import sys

import pytest
import torch

from benchmarks import harness, render, training
from benchmarks.harness import OLDER, Results, Workers, code_digest, search
from warmstart.errors import InputError
from warmstart.finetune.phases import Phase

KEY = {"arm": "a", "seeds": (0, 1)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "bench.jsonl"


def open_results(path):
    return Results(path, "benchmarks.training")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_result_is_kept_under_its_whole_configuration(path):
    first = open_results(path)
    assert first.do(KEY, lambda: {1: (0.5, float("inf"))}) == {"1": [0.5, float("inf")]}
    again = open_results(path)
    assert again.do({"seeds": [0, 1], "arm": "a"}, lambda: pytest.fail("is kept")) == {"1": [0.5, float("inf")]}
    assert again.do(KEY | {"seeds": (0,)}, lambda: "other") == "other"
    assert [record["result"] for record in lines(path)] == [{"1": [0.5, float("inf")]}, "other"]
    assert set(lines(path)[0]) == {"key", "result", "commit", "code", "machine", "date"}


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_line_is_dropped_with_a_note_and_no_other(path, capsys, cut):
    for i in range(3):
        open_results(path).do({"run": i}, lambda i=i: i)
    whole = path.read_text()
    path.write_text(whole[:-cut])
    torn = open_results(path)
    assert len(torn.records) == (3 if cut == 1 else 2)  # only the end of the line is missing: the result is whole
    assert capsys.readouterr().err.count("bench.jsonl, line 3: expected a result") == (cut > 1)
    torn.do({"run": 2}, lambda: 2)
    torn.do({"run": 3}, lambda: 3)
    assert [record["result"] for record in lines(path)] == [0, 1, 2, 3]
    assert path.read_text().startswith(whole)


@pytest.mark.parametrize("line", ["", "[]", '{"key": {}}', "\0\xff"])
def test_a_line_of_something_else_is_no_crash(path, capsys, line):
    open_results(path).do(KEY, lambda: 1)
    with path.open("a", encoding="latin-1") as file:
        file.write(line + "\n")
    assert len(open_results(path).records) == 1
    assert "line 2" in capsys.readouterr().err


def test_results_of_older_code_are_kept_and_marked(path):
    open_results(path).do(KEY, lambda: {"loss": 1})
    record = lines(path)[0]
    path.write_text(json.dumps(record | {"code": "old:1", "commit": "abc", "date": "2020-01-01"}) + "\n")
    results = open_results(path)
    assert results.row(KEY, lambda: pytest.fail("is kept"), arm="a") == {"arm": "a", "loss": 1, "mark": OLDER}
    new = results.row({"arm": "b"}, lambda: {"loss": 2})
    assert new["mark"] == ""
    stamp = results.stamp("python -m benchmarks x")
    for part in ("`python -m benchmarks x`", "cores", "numpy", "torch", "commit abc, ", "2020-01-01 to ", "† Made by"):
        assert part in stamp


def test_a_digest_follows_reachable_code_and_no_comment_or_docstring(tmp_path, monkeypatch):
    """A bench that imports a module, once at its head and once in a function."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    bench = '"""Words."""\nfrom benchmarks.pocket_head import one\ndef run():\n    import benchmarks.pocket_inner\n'
    sources = {"pocket": bench, "pocket_head": "one = 1\n", "pocket_inner": "two = 2\n", "pocket_other": "three = 3\n"}
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules["benchmarks"], "__path__", [str(folder)])

    def digest(**changed):
        for name, source in (sources | changed).items():
            (folder / f"{name}.py").write_text(source)
        code_digest.cache_clear()
        return code_digest("benchmarks.pocket")

    before = digest()
    assert digest(pocket=bench.replace("Words", "Other words") + "# a comment\n") == before
    assert digest(pocket_other="three = 4\n") == before
    assert len({before, digest(pocket_head="one = 2\n"), digest(pocket_inner="two = 3\n")}) == 3
    code_digest.cache_clear()


def test_search_ends_inside_of_what_it_tried():
    for best in (0.01, 0.3, 1.0, 200.0):
        chosen, tried = search(lambda at, best=best: abs(at["rate"] - best), {"rate": 1.0}, trials=5)
        rates = [point["rate"] for point, _ in tried]
        assert min(rates) < chosen["rate"] < max(rates)
        assert len(tried) >= 5


def test_workers_keep_what_other_processes_make(path):
    with Workers(open_results(path), processes=1) as workers:
        found = workers.together([lambda i=i: workers.do({"run": i}, divmod, 7, i) for i in (2, 3)])
    assert found == [[3, 1], [2, 1]]
    assert len(lines(path)) == 2


def test_training_follows_its_schedule_and_may_stop_early():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "rate": 1.0}])
    phase = Phase("all", warmup=0.0, decay="linear", floor=0.0)

    def run(stop=lambda losses: False):
        with torch.no_grad():
            parameter.zero_()
        return training.train(
            [optimizer], lambda step: -parameter.sum(), 4, phase, parameter.item, (0, 2, 4), None, stop
        )

    curve = run()
    assert curve["steps"] == [0, 2, 4]
    assert curve["nats"] == pytest.approx([0, 7 / 8 + 5 / 8, 7 / 8 + 5 / 8 + 3 / 8 + 1 / 8])  # at the middle of steps
    assert run(stop=lambda losses: losses[-1] > 1)["steps"] == [0, 2]


# Sections of docs/benchmarks.md.


def test_sections_are_replaced_where_they_stand_and_listed_at_the_head(tmp_path):
    def write(name, conclusion):
        render.write(tmp_path, name, f"About {name}", conclusion, "| a |\n|---|\n\n" + "word " * 60, Results(None))
        return (tmp_path / "benchmarks.md").read_text()

    write("one", "First.")
    write("two", "Second.")
    text = write("one", r"\1 new.")
    assert text.index("- [About one](#about-one): \\1 new.") < text.index("[About two]") < text.index("<!-- one -->")
    assert text.index("<!-- /one -->") < text.index("<!-- two -->")
    assert "First." not in text
    assert max(map(len, text.split("<!-- one -->")[1].splitlines())) <= 120
    assert write("one", r"\1 new.") == text
    (tmp_path / "benchmarks.md").write_text("<!-- one -->\nmine\n")
    with pytest.raises(InputError, match="expected <!-- /one -->"):
        write("one", "New.")
    assert (tmp_path / "benchmarks.md").read_text() == "<!-- one -->\nmine\n"


def test_tables_align_numbers_right():
    rows = [["a", 0.5, "1.250 ± 0.100"], ["b", None, "-"], ["c|d", 1200, "2.000"]]
    assert render.table(["name", "x", "nats"], rows) == (
        "| name | x | nats |\n|---|---:|---:|\n"
        "| a | 0.500 | 1.250 ± 0.100 |\n| b | - | - |\n| c\\|d | 1,200 | 2.000 |\n"
    )


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"warmstart\[plot\]"):
        render.curves(tmp_path / "a.png", {"title": {}}, "x", "y")
