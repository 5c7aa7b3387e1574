"""The README: its snippets run and print what it shows, its commands exist, its numbers are in docs/benchmarks.md."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from warmstart.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def test_length():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^warmstart .*$|`(warmstart [^`]*)`", README, re.M))))
def test_commands_and_options_exist(line):
    words = line.split("#")[0].split()
    if len(words) > 1:
        assert words[1] in COMMANDS
        known = {option for parameter in COMMANDS[words[1]].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known | {"--help"}


def test_examples_exist_and_take_what_is_shown():
    transformers = README.split("## For transformers")[1].split("\n## ")[0]
    for name in re.findall(r"examples/(\w+\.py)", README):
        assert (ROOT / "examples" / name).is_file()
    example = (ROOT / "examples" / "train_with_trainer.py").read_text(encoding="utf-8")
    options = set(re.findall(r"`(--[a-z-]+) [\d.]+`", transformers))
    assert options == {"--counted-targets"}
    assert "counted_targets: Annotated" in example


def agrees(printed, shown):
    """The words are the same and the numbers close: Python's documentation differs from version to version."""
    assert NUMBER.sub("#", printed.strip()) == NUMBER.sub("#", shown.strip())
    numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.3)


@pytest.mark.slow  # a language model and a GPT-2 are counted and solved
@pytest.mark.filterwarnings("default")  # other people's
def test_snippets_run_and_print_what_is_shown(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="needs warmstart[hf]")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, re.S)
    names: dict[str, object] = {}
    for code, shown in blocks:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, names)  # noqa: S102 - our own README
        agrees(output.getvalue(), shown)
    assert len(blocks) >= 5
    assert f"# {names['accuracy']:.2f}, from counts" in README


@pytest.mark.slow  # five processes
def test_the_five_commands_run(tmp_path):
    section = README.split("## Five commands")[1].split("```sh\n")[1].split("```")[0]
    lines = [line.split("#")[0].split('"') for line in section.splitlines()]
    assert len(lines) == 5
    for before, *quoted in lines:
        words = [sys.executable, "-m", "warmstart.cli", *before.split()[1:], *quoted[:1]]
        words += ["--vocab-size", "512"] if "fit" in words else ["--max-tokens", "4000"] if "finetune" in words else []
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


SECTIONS = {  # row of the table of results -> section of docs/benchmarks.md
    "novels never seen": "lm", "MNIST": "classifier", "CLINC150": "classifier", "GPT-2, 2.7": "transformers",
    "Llama": "transformers", "GPT-2 with delta-rule": "mixers", "near-shallow": "finetune",
}  # fmt: skip


def test_every_row_of_the_results_is_in_its_section():
    measured = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in README.split("## Results")[1].splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(SECTIONS)
    for (task, *cells), (begin, name) in zip(rows, SECTIONS.items(), strict=True):
        assert task.strip().startswith(begin)
        section = measured.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
        for number in re.findall(r"\b(?:\d\.\d{3}|\d{3})\b", " ".join(cells)):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", section), (task, number)


def test_numbers_are_the_measured_ones():
    measured = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    sections = ("## When it helps", "## For word vectors", "## Results")
    text = "".join(README.split(section)[1].split("\n## ")[0] for section in sections)
    decimals = set(re.findall(r"\b\d\.\d{2,3}\b", text))
    assert len(decimals) > 20
    assert [number for number in sorted(decimals) if number not in measured] == []


def test_tree_is_the_tree():
    tree = README.split("## The tree")[1].split("\n## ")[0]
    for package in ("bitcipher", "warmstart"):
        modules = (path for path in (ROOT / package).iterdir() if not path.name.startswith(("_", "py.")))
        names = {path.name + "/" * path.is_dir() for path in modules} - {"errors.py", "progress.py"}
        assert [name for name in sorted(names) if name not in tree] == []
    for name in re.findall(r"\b([a-z_]+(?:\.py|/))", tree.split("`make bench`")[0]):
        assert any((ROOT / folder / name).exists() for folder in ("", "bitcipher", "warmstart", "docs", "tests")), name
