"""The bench of the update rules: its recurrences against the chunks, its exponents by hand."""

import pytest
import torch

from benchmarks import memory


@pytest.mark.parametrize("rule", ["sum rule", "delta rule"])
def test_the_recurrence_that_is_timed_is_the_rule(rule):
    tensors = (*torch.rand(3, 2, 3, 70, 5, dtype=torch.float64), torch.rand(2, 3, 70, dtype=torch.float64) / 3)
    found, expected = (memory.ARMS[f"{rule}, {form}"](*tensors) for form in ("recurrence", "chunks"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_point_has_times_and_memory():
    point = memory.measure("delta rule, chunks", 65, 2)
    assert point["forward"] > 0
    assert point["training"] > 0
    assert 0 <= point["bytes"] < 2**30


def test_turns_time_both_forms():
    seconds = memory.compare("sum rule", 65, 3, 2)
    assert set(seconds) == {f"{form}, {kind}" for form in ("recurrence", "chunks") for kind in ("forward", "training")}
    assert all(len(turns) == 3 and min(turns) > 0 for turns in seconds.values())


def test_exponents_by_hand():
    points = [{"length": n, "training": s, "bytes": b} for n, s, b in ((1, 9, 1), (2, 8, 3), (4, 32, 6), (8, 128, 12))]
    assert memory.slope(points, "training") == pytest.approx(2)
    assert memory.slope(points, "bytes") == pytest.approx(1)
