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
    point = memory._alone("measure", "delta rule, chunks", 65, 2)
    assert point["forward"] > 0
    assert point["training"] > 0
    assert 0 <= point["bytes"] < 2**30


def test_turns_time_both_forms():
    found = memory.compare("sum rule", 65, 3, 2)
    assert set(found) == {f"{form}, {part}" for form in ("recurrence", "chunks") for part in ("forward", "training")}
    assert all(len(seconds) == 3 and min(seconds) > 0 for seconds in found.values())


def test_a_failing_point_is_an_error():
    with pytest.raises(RuntimeError, match=r"measure .*nothing.* failed: (?s:.*)KeyError"):
        memory._alone("measure", "nothing", 5, 1)


def test_exponents_by_hand():
    rows = [(1, 9.0, 1), (2, 8.0, 3), (4, 32.0, 6), (8, 128.0, 12)]
    assert memory._slope(rows, 1) == pytest.approx(2)
    assert memory._slope(rows, 2) == pytest.approx(1)
