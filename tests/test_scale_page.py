"""docs/scale.md: what it shows runs, and gives the bytes of one fit; other engines run where they are installed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_shards import content, cut, texts

PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S)
COMMANDS, PYTHON, SPARK, RAY, DATATROVE, DASK, DASK_PYTHON, TORCHRUN = (content for _, content in BLOCKS)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Be in a folder with the shards that the page names; merge makes their sum."""
    (tmp_path / "texts").mkdir()
    for i, part in enumerate(cut(texts(), 2)):
        (tmp_path / "texts" / f"{i}.txt").write_text("<|endoftext|>".join(part))
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*words):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_runs(place):
    from typer.testing import CliRunner

    from warmstart.cli import app

    lines = [line.split()[1:] for line in COMMANDS.splitlines()]
    assert [line[0] for line in lines] == ["tokenizer", "count", "count", "merge", "solve"]
    fit = ["fit", "texts", "--tokenizer", "tokenizer", "-o", "model-fit"]
    for words in [*lines, fit]:
        result = CliRunner().invoke(app, [*words, "--quiet"])
        assert result.exit_code == 0, (words, result.exception)
    (place / "page.py").write_text(PYTHON)
    start("page.py")
    assert content(place / "model") == content(place / "model-python") == content(place / "model-fit")


ENGINES = {
    "pyspark": "import os, sys\nos.environ['PYSPARK_PYTHON'] = sys.executable\n" + SPARK,
    "ray": "import os\nos.environ['RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO'] = '0'\n" + RAY,
    "datatrove": f"""{DATATROVE}
from datatrove.data import Document
list(Count().run(Document(text, str(i)) for i, text in enumerate(Path(paths[0]).read_text().split("<|endoftext|>"))))
names = ["texts/0.stats", count(paths[1])]
""",
}


@pytest.mark.slow  # a cluster is started
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_run_the_same_function(place, engine):
    pytest.importorskip(engine)
    from warmstart import shards

    shards.train(Path("texts/0.txt"), "tokenizer", vocab_size=512)
    functions, main = PYTHON.split('if __name__ == "__main__":\n')
    paths = main.splitlines()[0].strip()
    whole = shards.count(texts(), "tokenizer").counts.digest
    code = f"{functions}\nif True:\n    {paths}\n{ENGINES[engine]}\nprint(shards.merge(names).counts.digest)"
    (place / "page.py").write_text(code)
    assert start("page.py").split()[-1] == whole
