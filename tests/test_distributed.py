"""Dask and torchrun: the same counts as those of one process, also if a worker is killed; what cannot be is refused."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests import test_scale_page as page
from tests.test_shards import ARGUMENTS, content, fails, texts
from tests.test_shards import cache as cache
from tests.test_shards import fitted as fitted
from tests.test_shards import tokenizer as tokenizer
from warmstart import WarmStartLM, cli, shards
from warmstart.corpus import Corpus
from warmstart.distributed import tasks
from warmstart.errors import InputError
from warmstart.formats import Reading
from warmstart.token_files import TokenFiles

ADDRESS = "tcp://10.0.0.1:8786"  # on the page
COPIES = pytest.mark.filterwarnings("ignore:.*(counted|read) too")  # one document is there twice


@pytest.fixture
def corpus(tmp_path):
    """The text of `fitted`, a file for each document, and files without text."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(texts()):
        (folder / f"{i:02}.txt").write_text(text)
    (folder / "0.txt").touch()
    (folder / "99.txt").write_text(" \n" * 300)
    return folder


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as started:
        yield started


@pytest.fixture
def client(cluster):
    from warmstart.distributed import on_dask

    with on_dask.connected(cluster.scheduler_address) as connected:
        yield connected


def counted(job, parts, order=slice(None)):
    """Run the tasks here; return the file of the sum."""
    done = [tasks.count_shard(job, f"count-{i}", part) for i, part in list(enumerate(parts))[order]]
    return tasks.merge_files(job, "all", done)


# The tasks.


@COPIES
@pytest.mark.parametrize(("n", "expected"), [(1, 1), (7, 9)])
def test_any_cut_into_files_gives_the_counts_of_the_text(tmp_path, corpus, tokenizer, n, expected):
    with tasks.started(corpus, tokenizer, tmp_path / "all.stats", 3, Reading(), n) as (job, parts):
        assert [file for part in parts for file in part] == sorted(corpus.iterdir())
        assert abs(len(parts) - expected) <= 2
        name, notices = counted(job, parts)
        tasks.finish((name, notices), tmp_path / "all.stats")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "all.stats", corpus]
    got, whole = shards.Statistic.load(tmp_path / "all.stats"), shards.count(texts(), tokenizer, order=3)
    assert (got.counts.digest, got.tokenizer) == (whole.counts.digest, whole.tokenizer)


def test_no_shard_is_larger_than_the_limit_unless_it_is_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "SHARD_BYTES", 10)
    files = []
    for i, size in enumerate([4, 6, 1, 30, 0, 9, 2]):
        files.append(tmp_path / str(i))
        files[-1].write_bytes(bytes(size))
    names = [[file.name for file in part] for part in tasks.cut(files, 1)]
    assert names == [["0", "1"], ["2"], ["3"], ["4", "5"], ["6"]]


@COPIES
def test_a_task_whose_file_is_there_does_nothing(tmp_path, corpus, tokenizer):
    with tasks.started(corpus, tokenizer, tmp_path / "all.stats", 3, Reading(), 4) as (job, parts):
        names = {}
        for _ in range(2):
            name, _ = counted(job, parts)
            names[name] = {file.name: file.stat().st_mtime_ns for file in Path(job.folder).iterdir()}
            for file in corpus.iterdir():
                file.write_text("other text")  # it would be counted now
            assert names[name] == {file.name: file.stat().st_mtime_ns for file in Path(job.folder).iterdir()}
    assert not Path(job.folder).exists()


@pytest.mark.filterwarnings("ignore:.*one document")
def test_files_of_tokens(tmp_path, tokenizer):
    """They are counted by tasks and by `warmstart count` as by `fit`."""
    ids = Corpus.encode(texts(), tokenizer)
    for name, part in zip("ab", np.array_split(ids.tokens[1:], [int(ids.documents[4])]), strict=False):
        part.astype("<u2").tofile(tmp_path / f"{name}.bin")
    files = [tmp_path / "a.bin", tmp_path / "b.bin"]
    whole = shards.count(texts(), tokenizer)
    sources = TokenFiles(files, tokenizer)
    with tasks.started(sources, tokenizer, tmp_path / "all.stats", 5, Reading(), 9) as (job, parts):
        assert len(parts) == 2
        name, _ = counted(job, parts)
        assert shards.Statistic.load(name).counts.digest == whole.counts.digest
    for file in files:
        words = ["count", file, "--tokenizer", tokenizer, "--end-of-text", "<|endoftext|>", "-o", f"{file}.stats", "-q"]
        assert CliRunner().invoke(cli.app, [*map(str, words)]).exit_code == 0
    merged = shards.merge([f"{file}.stats" for file in files])
    model = shards.solve(merged, WarmStartLM("potato"))
    fit = WarmStartLM("potato").fit(Corpus.build(TokenFiles(files, tokenizer)))
    for one, folder in ((model, "one"), (fit, "other")):
        one.save_pretrained(tmp_path / folder)
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_token_files_are_refused_with_the_place(tmp_path, tokenizer, monkeypatch, capsys):
    np.array([5, 6, 999, 7], "<u2").tofile(tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(b"\5\0\6")
    (tmp_path / "a.txt").write_text("ban")
    words = ["--tokenizer", tokenizer, "-o", tmp_path / "x.stats", "--quiet"]
    for name, message in {"a.bin": "got 999 at offset 4", "b.bin": "got 1 bytes at offset 2"}.items():
        assert message in fails(monkeypatch, capsys, "count", tmp_path / name, *words)
    result = CliRunner().invoke(cli.app, [*map(str, ["count", tmp_path / "a.txt", "--end-of-text", "ban", *words])])
    assert result.exit_code == 2
    assert not (tmp_path / "x.stats").exists()


def test_what_no_engine_can_count_is_refused(tmp_path, corpus, tokenizer):
    def start(sources, output=tmp_path / "all.stats"):
        return tasks.started(sources, tokenizer, output, 3, Reading(), 2)

    for sources in (["ban der"], Path("-")):
        with pytest.raises(InputError, match="expected files or folders that all machines see"), start(sources):
            pass
    with pytest.raises(InputError, match=r"got something else; choose another name"), start(corpus, corpus / "01.txt"):
        pass
    with start([corpus / "0.txt", corpus / "99.txt"]) as (job, parts):
        assert counted(job, parts) == (None, [])
        with pytest.raises(InputError, match="expected a corpus with text, got nothing but whitespace"):
            tasks.finish((None, []), tmp_path / "all.stats")
    with pytest.raises(InputError, match="expected a folder that all machines see, got none on "):
        tasks.count_shard(job, "count-0", parts[0])
    assert not list(tmp_path.glob("*.stats"))


# Dask.


@COPIES
def test_fit_on_dask_has_the_bytes_of_fit(tmp_path, corpus, tokenizer, fitted, cluster):
    words = ["fit", corpus, "-o", tmp_path / "new" / "model", *ARGUMENTS, "--tokenizer", tokenizer, "--json"]
    words += ["--engine", "dask", "--scheduler", cluster.scheduler_address]
    result = CliRunner().invoke(cli.app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "merge statistics" in result.stderr
    assert content(tmp_path / "new" / "model") == fitted
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


@COPIES
def test_a_killed_worker_loses_its_shard_only(tmp_path, corpus, tokenizer, cluster, client):
    from warmstart.distributed import on_dask

    found = []

    def statistics():
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(".all.stats.*/*/count-*.stats")}

    def progress(stage, done, total):
        if (stage, done) == ("count shards", 2):
            found.append(statistics())
            os.kill(next(iter(cluster.workers.values())).process.pid, signal.SIGKILL)
        if (stage, done) == ("merge statistics", 1):
            found.append(statistics())
        seen.append((stage, done, total))

    seen = []
    on_dask.count(client, corpus, tokenizer, tmp_path / "all.stats", progress=progress)
    assert shards.Statistic.load(tmp_path / "all.stats").counts.digest == shards.count(texts(), tokenizer).counts.digest
    before, after = found
    assert 2 <= len(before) < len(after)
    assert before.items() <= after.items()
    stages = [stage for stage, done, total in seen if done == total]
    assert stages == ["count shards", "merge statistics"]
    assert not list(tmp_path.glob(".all*"))


def test_counts_of_no_model_are_kept(tmp_path, corpus, tokenizer, cluster, monkeypatch, capsys):
    words = ["fit", corpus / "01.txt", "-o", tmp_path / "model", "--tokenizer", tokenizer, "--quiet"]
    words += ["--engine", "dask", "--scheduler", cluster.scheduler_address, "--contexts", "radial", "--bits", "2"]
    monkeypatch.setattr(sys, "argv", ["warmstart", *map(str, words)])
    with pytest.raises(SystemExit), pytest.warns(UserWarning, match=r"model\.\w+\.stats: the counts are kept; go on"):
        cli.main()
    assert "bits" in capsys.readouterr().err
    (kept,) = tmp_path.glob("model*")
    assert shards.Statistic.load(kept).counts.n_tokens == shards.count(corpus / "01.txt", tokenizer).counts.n_tokens


def test_no_scheduler(tmp_path, corpus, tokenizer, monkeypatch, capsys):
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    words = ["fit", corpus, "-o", tmp_path / "model", "--tokenizer", tokenizer, "--engine", "dask", "--scheduler"]
    began = time.monotonic()
    with dask.config.set({"distributed.comm.timeouts.connect": "200ms"}):
        for address in ("tcp://127.0.0.1:9", "nonsense", "127.0.0.1:port"):
            err = fails(monkeypatch, capsys, *words, address)
            assert err.startswith(f"error: {address}: expected a Dask scheduler, got: ")
    assert time.monotonic() - began < 20
    assert not list(tmp_path.glob("*model*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "dask"], "expected --engine dask and --scheduler ADDRESS together"),
        (["--scheduler", ADDRESS], "expected --engine dask and --scheduler ADDRESS together"),
        (["--tokenizer", "bpe"], "expected --tokenizer FILE with --engine dask, got bpe"),
        (["--max-memory", "1G"], "expected --engine dask without --max-memory, got both"),
        (["--cold"], "expected --engine dask without --cold, got both"),
        (["--resume"], "expected --engine dask without --resume, got both"),
        (["--sample", "0.5"], "expected --engine dask without --sample, got both"),
        (["--contexts", "radial,document"], "got document, which need a pass"),
    ],
)
def test_options_that_do_not_fit(tmp_path, corpus, tokenizer, monkeypatch, capsys, options, message):
    pytest.importorskip("distributed")
    words = ["fit", corpus, "-o", tmp_path / "model", "--tokenizer", tokenizer, *options]
    words += [] if message.endswith("together") else ["--engine", "dask", "--scheduler", ADDRESS]
    monkeypatch.setattr(sys, "argv", ["warmstart", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (1, 2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*model*"))


# The page docs/scale.md.


@COPIES
def test_the_page_on_dask(tmp_path, corpus, tokenizer, cluster, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tokenizer").symlink_to(tokenizer)
    words = page.DASK.splitlines()[2].replace(ADDRESS, cluster.scheduler_address).split()[1:]
    options = {option for option in words if option.startswith("--")}
    assert options == {"--tokenizer", "--engine", "--scheduler"}  # the command itself is in a test above
    code = page.DASK_PYTHON.replace(ADDRESS, cluster.scheduler_address)
    exec(f"from pathlib import Path\n{code}", {"__name__": "__main__"})  # noqa: S102
    assert shards.Statistic.load("all.stats").counts.digest == shards.count(texts(), "tokenizer").counts.digest


def die(job, name, shard):  # last, so that no test waits for a new worker
    os._exit(1)


def test_errors_of_workers_and_lost_clusters(tmp_path, corpus, tokenizer, cluster, client, monkeypatch):
    from distributed import Future

    from warmstart.distributed import on_dask

    def count(**options):
        on_dask.count(client, corpus, tokenizer, tmp_path / "all.stats", **options)

    with pytest.raises(InputError, match=r"\.txt: .*line 1: expected a JSON object"):
        count(format="jsonl")

    def cancel(*_):
        client.cancel([Future(key, client) for key in list(client.futures)])

    with pytest.raises(InputError, match=r"tcp://.*: expected a scheduler that answers until all is counted"):
        count(progress=cancel)
    monkeypatch.setattr(on_dask, "count_shard", die)
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(InputError, match=r"count shards: expected workers that live, got 1 that died .*count_shard-.*"):
        count()
    assert not list(tmp_path.glob("*all*"))


@COPIES
def test_the_page_on_torchrun(tmp_path, corpus, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tokenizer").symlink_to(tokenizer)
    Path("examples").symlink_to(Path(__file__).parents[1] / "examples")
    words = re.findall(r"^torchrun (.*)$", page.TORCHRUN, re.M)[0].split()
    page.start("-m", "torch.distributed.run", *words)
    assert shards.Statistic.load("all.stats").counts.digest == shards.count(texts(), tokenizer).counts.digest
    assert not list(tmp_path.glob(".all*"))
