"""Export: the table in C gives the probabilities of Python, the network runs elsewhere, what is left out is named."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixtures import corpora, mixture
from typer.testing import CliRunner

from warmstart import InputError, NearShallowLM, WarmStartLM
from warmstart.cli import app
from warmstart.edge import EdgeLM, container
from warmstart.export import C_ORDER, export, gate_without, model_arrays

SOURCES = Path(__file__).parents[1] / "examples" / "edge"
TEXTS = ["the cat sat on the mat and the dog sat on the rug. " * n for n in (1, 3, 2)]
TEXTS += ["a rug is not a mat, said the cat. " * n for n in (2, 5)]
FLAGS = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsanitize=undefined,address"]


@pytest.fixture(scope="module")
def predict(tmp_path_factory):
    """Run examples/edge/predict.c on a table and token ids; return its lines as numbers, or its complaint."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc")
    program = tmp_path_factory.mktemp("c") / "predict"
    subprocess.run([gcc, *FLAGS, "-o", program, *SOURCES.glob("*.c")], check=True)

    def run(table, ids=()):
        words = " ".join(map(str, ids))
        done = subprocess.run([program, table], input=words, capture_output=True, text=True, check=False)
        if done.returncode:
            assert done.returncode == 1, done.stderr
            return done.stderr.strip()
        return [[float(number) for number in line.split()] for line in done.stdout.splitlines()]

    return run


@pytest.fixture(scope="module")
def potato():
    return WarmStartLM(preset="potato", vocab_size=290).fit(TEXTS)


@pytest.fixture(scope="module")
def whole():
    contexts = ("ngrams", "classes", "cache", "radial")
    return WarmStartLM(contexts=contexts, order=4, bits=32, vocab_size=290).fit(TEXTS)


def assert_predicts(lines, rows, ngrams, ids):
    assert len(lines) == len(ids) + 1
    for row, line, alone, token in zip(rows, lines, ngrams, [*ids, None], strict=True):
        assert line[1] == pytest.approx(row.max(), abs=1e-5)
        assert row[int(line[0])] == pytest.approx(row.max(), abs=1e-5)
        if token is not None:
            assert line[2] == pytest.approx(row[token], abs=1e-5)
            assert line[3] == pytest.approx(alone[token], abs=1e-5)


def rows_of(model, ids):
    """The rows of a model before each of some tokens and after the last one, and those of its n-grams alone."""
    rows, alone = [], []
    for token in [*ids, None]:
        rows.append(model.row())
        ngrams, nothing = model.ngrams, np.zeros(model.vocab_size)
        history = model.document.history(model.separator, max(1, model.order - 1))
        alone.append(nothing if ngrams is None else ngrams.row(ngrams.contexts(history)))
        if token is not None:
            model.advance([token])
    return rows, alone


def test_c_predicts_as_python(predict, potato, tmp_path):
    report = export(potato, tmp_path / "table.bin", "c")
    assert report["bytes"] == (tmp_path / "table.bin").stat().st_size
    assert (report["experts"], report["left_out"]) == (potato.mixture_.experts.names, [])
    assert report["fits_16_mb"]
    separator = potato.mixture_.experts.separator
    ids = [*potato.tokenizer_.encode(TEXTS[1] + "what a new dog").ids, separator, separator, 3, 3, 3, 4]
    model = EdgeLM(None, container.read(tmp_path / "table.bin"))
    assert_predicts(predict(tmp_path / "table.bin", ids), *rows_of(model, ids), ids)


def test_c_predicts_as_python_in_a_document_longer_than_two_caches(predict, potato, tmp_path):
    export(potato, tmp_path / "table.bin", "c")
    rng = np.random.default_rng(0)
    ids = (rng.zipf(1.3, 1500) % 40 + potato.mixture_.experts.separator + 1).tolist()
    model = EdgeLM(None, container.read(tmp_path / "table.bin"))
    assert_predicts(predict(tmp_path / "table.bin", ids), *rows_of(model, ids), ids)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corpora(), st.sampled_from([{"ngrams"}, {"cache"}, {"ngrams", "cache"}]), st.integers(1, 5), st.integers(0, 9))
def test_c_predicts_as_the_definitions(predict, tmp_path, corpus, experts, order, seed):
    found, twin = mixture(corpus, experts, order, (0, seed % 3)[:order], (), seed)
    container.write(tmp_path / "table.bin", model_arrays(found)[0])
    past = max(corpus[2], key=len)
    lines = predict(tmp_path / "table.bin", past)
    for i, line in enumerate(lines):
        row = twin.row(past[:i])
        assert line[1] == pytest.approx(row.max(), abs=1e-5)
        if i < len(past):
            assert line[2] == pytest.approx(row[past[i]], abs=1e-5)


def test_c_refuses_what_is_no_table(predict, potato, whole, tmp_path):
    path = tmp_path / "table.bin"
    export(potato, path, "c")
    content = path.read_bytes()
    for place in (32, 33, 60, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert predict(path) == "expected other bytes: damaged"
    for damaged, message in [
        (b"", "something else"),
        (content[:31], "something else"),
        (b"x" * 100, "something else"),
        (content[:-1], "another size"),
        (content + b"\0", "another size"),
        (content[:8] + b"\2" + content[9:], "another version"),
    ]:
        path.write_bytes(damaged)
        assert message in predict(path)
    container.write(path, model_arrays(whole.mixture_)[0])
    assert "export the model with --format c" in predict(path)
    for name, other in {"ngrams.offsets": [9, 3], "ngrams.last": [10**4], "shape": [3], "caches": [99, 1]}.items():
        arrays = model_arrays(potato.mixture_)[0]
        arrays[name] = np.array(other, arrays[name].dtype)
        container.write(path, arrays)
        assert predict(path).startswith("expected")
    assert "name of a table" in predict(tmp_path / "none")


def test_c_leaves_out_classes_and_network_and_says_so(predict, whole, tmp_path):
    report = export(whole, tmp_path / "table.bin", "c")
    assert report["left_out"] == ["classes", "network"]
    assert report["experts"] == ["ngrams", "cache", "cache 1024", "cache 128", "unigram"]
    ids = whole.tokenizer_.encode(TEXTS[1]).ids
    rows, weights = [], gate_without(whole.mixture_, ["classes", "network"])[0]
    stream = whole._stream(np.zeros(0, np.int64))
    for token in [*ids, None]:
        bucket = np.flatnonzero((whole.mixture_.gate.weights == stream.weights()).all(axis=1))[0]
        kept = [i for i, name in enumerate(stream.experts.names) if name not in ("classes", "network")]
        rows.append(weights[bucket] @ stream.rows()[kept])
        if token is not None:
            stream.advance([token])
    alone = rows_of(EdgeLM(None, container.read(tmp_path / "table.bin")), ids)[1]
    assert_predicts(predict(tmp_path / "table.bin", ids), rows, alone, ids)


def test_c_refuses_orders_and_vocabularies_that_its_header_does_not_have(tmp_path):
    assert f"#define WS_ORDER {C_ORDER} " in (SOURCES / "warmstart.h").read_text()
    model = WarmStartLM(contexts=("ngrams",), order=9, vocab_size=290).fit(TEXTS)
    with pytest.raises(InputError, match="expected n-grams up to order 8 for a table in C, got 9"):
        export(model, tmp_path / "table.bin", "c")
    model.mixture_.experts.prior = np.full(2**16 + 1, 1 / (2**16 + 1))
    with pytest.raises(InputError, match="expected at most 65536 tokens for a table in C, got 65537"):
        export(model, tmp_path / "table.bin", "c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("contexts", [("radial",), ("classes", "radial")])
def test_c_needs_ngrams_or_a_cache(contexts, tmp_path):
    model = WarmStartLM(contexts=contexts, bits=32, order=3, vocab_size=290).fit(TEXTS)
    with pytest.raises(InputError, match="expected n-grams or a cache for a table in C, got neither"):
        export(model, tmp_path / "table.bin", "c")
    assert not list(tmp_path.iterdir())


def test_a_network_with_other_contexts_is_left_out_of_the_runtime(tmp_path):
    contexts = ("ngrams", "cache", "radial", "document")
    model = WarmStartLM(contexts=contexts, bits=32, order=3, vocab_size=290).fit(TEXTS)
    assert export(model, tmp_path / "edge", "numpy")["left_out"] == ["network"]
    small = EdgeLM.open(tmp_path / "edge")
    assert small.left_out == ["network"]
    row = small.predict_proba(model.tokenizer_.encode("the cat").ids)
    assert row.sum() == pytest.approx(1)
    alone = WarmStartLM(contexts=contexts[2:], bits=32, vocab_size=290).fit(TEXTS)
    with pytest.raises(InputError, match="got a network with radial, document alone"):
        export(alone, tmp_path / "none", "numpy")
    with pytest.raises(InputError, match="expected a network with the radial context alone, got a network with"):
        export(alone, tmp_path / "none", "onnx")
    assert not (tmp_path / "none").exists()


def test_torch_is_the_network(whole, potato, tmp_path):
    report = export(whole, tmp_path / "network", "torch")
    assert (report["experts"], report["left_out"][0]) == (["network"], "ngrams")
    theirs = NearShallowLM.from_pretrained(tmp_path / "network").state_dict()
    assert all((theirs[name] == weight).all() for name, weight in whole.state_dict().items())
    with pytest.raises(InputError, match="expected a model with a network, got counts alone"):
        export(potato, tmp_path / "none", "torch")


def test_onnx_runs_the_network(whole, potato, tmp_path):
    pytest.importorskip("onnx", reason="pip install 'warmstart[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'warmstart[onnx]'")
    report = export(whole, tmp_path / "network.onnx", "onnx")
    assert report["bytes"] == (tmp_path / "network.onnx").stat().st_size
    session = runtime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    network = whole.to_torch()
    ids = np.array([network.config.separator, *whole.tokenizer_.encode(TEXTS[0]).ids])
    window = np.stack([np.maximum(0, np.arange(len(ids)) - age) for age in range(network.config.radius)], axis=1)
    (logits,) = session.run(["logits"], {"tokens": ids[window]})
    np.testing.assert_allclose(logits, network(ids[None])[0].detach().numpy(), rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="got counts alone"):
        export(potato, tmp_path / "none.onnx", "onnx")


def test_without_onnx_the_extra_is_named(whole, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(InputError, match=r"expected onnx, found none; pip install 'warmstart\[onnx\]'"):
        export(whole, tmp_path / "network.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_the_command(potato, tmp_path):
    potato.save_pretrained(tmp_path / "model")
    run = CliRunner().invoke
    done = run(app, ["export", str(tmp_path / "model"), "-o", str(tmp_path / "edge"), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["bytes"] == {f.name: f.stat().st_size for f in sorted((tmp_path / "edge").iterdir(), reverse=True)}
    assert report["counts_further"]
    again = run(app, ["export", str(tmp_path / "model"), "-o", str(tmp_path / "edge"), "--quiet"])  # replaced
    assert (again.exit_code, again.output) == (0, "")
    done = run(app, ["export", str(tmp_path / "model"), "-o", str(tmp_path / "table.bin"), "--format", "c"])
    size = f"{(tmp_path / 'table.bin').stat().st_size:,}"
    assert size in done.output
    ids = potato.tokenizer_.encode("the cat").ids
    row = EdgeLM.open(tmp_path / "edge").predict_proba(ids)
    np.testing.assert_allclose(row, potato.predict_proba(ids), rtol=0, atol=1e-6)


def test_what_the_readme_shows_runs(potato, tmp_path, monkeypatch):
    text = (SOURCES / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    export(potato, "edge", "numpy")
    before = (tmp_path / "edge" / "counts.bin").read_bytes()
    exec(compile(text.split("```python")[1].split("```")[0], "README.md", "exec"), {})  # noqa: S102 - our own
    assert (tmp_path / "edge" / "counts.bin").read_bytes() != before


def test_other_folders_and_formats_are_refused(potato, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"expected a new folder, an empty one or an exported model, got mine\.txt"):
        export(potato, tmp_path / "notes", "numpy")
    with pytest.raises(InputError, match="expected a folder, got a file"):
        export(potato, tmp_path / "notes" / "mine.txt", "numpy")
    with pytest.raises(InputError, match="format: expected one of numpy, c, torch, onnx, got 'excel'"):
        export(potato, tmp_path / "new", "excel")
    assert [path.name for path in tmp_path.rglob("*")] == ["notes", "mine.txt"]
