"""The bench of fast weights: carried states against one long window, positions that are off, and its section."""

import numpy as np
import pytest
import torch

from benchmarks import claims, fast_weights
from benchmarks.decoders import Start
from benchmarks.fast_weights import CARRIED, DPFP_DELTA, PAIRS, RANDOM, Arm, Carrying, reading
from benchmarks.harness import Results
from warmstart.counts import count_pairs
from warmstart.errors import InputError
from warmstart.ngrams import count_ngrams

pytest.importorskip("transformers", reason="needs warmstart[hf]")
SHAPE = {"width": 16, "layers": 2, "heads": 2, "context": 24}
TOKENS = np.random.default_rng(0).integers(0, 4, 20_000).cumsum() % 40
IDS = torch.from_numpy(TOKENS[:48]).view(2, 24)


def loud(arm):
    """A start in float64 whose memories have effect."""
    start = fast_weights.build(arm, 0, count_pairs(TOKENS, 40), SHAPE).double()
    torch.manual_seed(1)
    for module in start.model.modules():
        if isinstance(module, Carrying):
            torch.nn.init.normal_(module.output.weight)
    return start


@pytest.mark.parametrize("memory", fast_weights.MEMORIES)
def test_carried_windows_are_one_long_window(memory):
    start = loud(Arm(memory, False))
    whole = start.stream(IDS)
    with reading(start.model, carry=True):
        first = start.stream(IDS[:, :8])
        with reading(start.model, carry=True):  # as at a validation: from empty memories, and the states come back
            torch.testing.assert_close(start.stream(IDS[:, :8]), first, rtol=0, atol=0)
        parts = [first, *(start.stream(part) for part in IDS[:, 8:].split([15, 1], dim=1))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-9)
    with reading(start.model, carry=False):
        reset = start.stream(IDS[:, 8:])
    assert (reset - whole[:, 8:]).abs().max() > 0.01
    assert all(not m.carry and m.state is None for m in start.model.modules() if isinstance(m, Carrying))


def test_gradients_end_at_the_border():
    start = loud(Arm(DPFP_DELTA, False))
    rows = start.model.get_input_embeddings().weight
    ids = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4, 5, 6, 7]])
    with reading(start.model, carry=True):
        start.stream(ids[0]).sum().backward()
        start.zero_grad()
        start.stream(ids[1]).square().sum().backward()
    assert not rows.grad[:3].any()  # the token before the border is an input of the shift, and no gradient reaches it
    assert not rows.grad[3].any()
    assert rows.grad[4:8].any(dim=1).all()


@pytest.mark.parametrize("positions", [True, False])
def test_positions_are_off(positions):
    start = loud(Arm(DPFP_DELTA, positions)).float()
    before = start.model.base_model.wpe.weight.clone()
    (optimizer,) = start.optimizers(0.01, fast_weights.Recipe(0.0, 0.95, 1.0))
    for group in optimizer.param_groups:
        group["lr"] = group["rate"]
    for _ in range(2):
        start.losses(IDS).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = start.model.base_model.wpe.weight
    assert before.any() == (not torch.equal(before, after)) == positions
    later = torch.arange(1, 24)[None]
    usual, moved = (start.model.base_model(IDS[:, :23], position_ids=p).last_hidden_state for p in (None, later))
    assert torch.equal(usual, moved) == (not positions)


def folder_of(tmp_path):
    words = np.array(["the", "cat", "dog", "saw", "ran", "and", "then", "a", "man", "boy"])
    wiki = tmp_path / "wikitext-2"
    wiki.mkdir()
    random = np.random.default_rng(0)
    for part, n in (("train", 60_000), ("valid", 8_000), ("test", 8_000)):
        rows = words[random.integers(0, 10, (n // 20, 20))]
        (wiki / f"{part}.txt").write_text("\n\n".join(" ".join(row) for row in rows), encoding="utf-8")


@pytest.fixture
def small(monkeypatch):
    """Small windows for a small text."""
    for name, value in (("windows", 3), ("context", 64), ("scored", 6), ("layers", 1)):
        monkeypatch.setitem(fast_weights.SHAPE, name, value)


@pytest.mark.usefixtures("small")
def test_both_arms_read_the_same_windows_in_the_same_order(tmp_path, monkeypatch):
    ids = np.random.default_rng(0).integers(0, 200, 9_000)
    ids[-1] = ids[0] = 0
    for part in ("train", "valid", "test"):
        np.save(tmp_path / f"{part}.npy", ids)
    levels = count_ngrams(ids.astype(np.uint32), np.array([0, ids.size - 1]), 200, order=2)
    levels.save(tmp_path / "pairs.safetensors")
    read, losses = {}, Start.losses
    for arm in PAIRS[-1]:
        seen = read[arm] = []
        monkeypatch.setattr(Start, "losses", lambda self, x, seen=seen: (seen.append(x.tolist()), losses(self, x))[1])
        result = fast_weights.learn(str(tmp_path), arm, 1, 0.0025, 3, True)
        assert result["nats"][0] != result["nats"][1]
        assert result["test"] != result["other"]
    assert read[PAIRS[-1][0]] == read[PAIRS[-1][1]]
    rows = read[PAIRS[-1][0]][2:5]  # after two of validation
    assert [[row[0] for row in step] for step in rows[1:]] == [[row[-1] for row in step] for step in rows[:-1]]


@pytest.mark.usefixtures("small")
def test_a_quick_run_reads_in_both_ways(tmp_path):
    folder_of(tmp_path)
    drawn, carried = fast_weights.run(tmp_path, tmp_path / "docs", quick=True)["arms"]
    assert (drawn["windows"], carried["windows"]) == (RANDOM, CARRIED)
    for row in (drawn, carried):
        (run,) = row["runs"]
        assert run["steps"] == [0, 2]
        assert 0 < run["test"] < run["nats"][0] + 1
    assert carried["runs"][0]["other"] != carried["runs"][0]["test"]
    assert not (tmp_path / "docs").exists()


def keep(results, bench, losses, seeds):
    """Keep invented runs: searches whose best rate is the first, and whole runs."""
    for pair, ends in zip(PAIRS, losses, strict=True):
        for arm, end in zip(pair, ends, strict=True):
            run = {"nats": [4.6, end], "test": end, "other": 4.4, "seconds": [0.0, 80.0]}
            if arm.windows == RANDOM:
                for rate, more in ((2.5e-3, 0.0), (1.25e-3, 0.1), (5e-3, 0.1)):
                    searched = {"nats": [4.6, end + more]}
                    results.do(bench.key(arm, 0, rate, fast_weights.SEARCH_TOKENS), lambda made=searched: made)
            for seed in seeds:
                results.do(bench.key(arm, seed, 2.5e-3, fast_weights.TOKENS), lambda made=run: made)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (((4.3, 4.3), (4.2, 4.21), (4.1, 4.0), (4.1, 4.05)), 3 * (claims.HOLDS,)),
        (((4.3, 4.1), (4.2, 4.22), (4.1, 4.0), (4.1, 4.095)), 3 * (claims.PARTLY,)),
        (((4.1, 4.2), (4.2, 4.3), (4.1, 4.2), (4.1, 4.2)), 3 * (claims.FAILS,)),
    ],
)
def test_the_section_is_written_from_kept_results(tmp_path, ends, expected):
    results = Results(tmp_path / "results" / "fast_weights.jsonl", fast_weights.__name__)
    keep(results, fast_weights.Bench(results), ends, (0, 1))
    fast_weights.write_kept(tmp_path)
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    words = [claim for claim in claims.CLAIMS if claim.section == "fast_weights"]
    for claim, verdict in zip(words, expected, strict=True):
        assert f"| {claim.sentence} | {verdict} |" in text
    assert claims.claimed("fast_weights") in " ".join(text.split())
    assert f"| FAVOR+, sum rule | yes | 0.0025 | 2 | 4.600 | {ends[0][0]:.3f} ± 0.000 |" in text
    assert f"| carried | 0.0025 | 2 | 4.600 | {ends[3][1]:.3f} ± 0.000 | {ends[3][1]:.3f} ± 0.000 | 4.400 ± " in text


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(InputError, match=r"kept result of memory FAVOR\+, sum rule, positions True, order random, see"):
        fast_weights.write_kept(tmp_path)
    assert not (tmp_path / "benchmarks.md").exists()
