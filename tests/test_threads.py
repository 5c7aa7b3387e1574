import pytest

from warmstart._threads import blocks, run_parts, shares


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_parts(workers):
    assert run_parts(lambda part: part * part, range(20), workers) == [part * part for part in range(20)]


@pytest.mark.parametrize("size", [0, 1, 5, 63, 64, 65, 70_000])
@pytest.mark.parametrize("cut", [blocks, shares])
def test_slices_cover_everything_once(cut, size):
    slices = cut(size, 64)
    assert [i for part in slices for i in range(size)[part]] == list(range(size))
    lengths = [part.stop - part.start for part in slices]
    assert set(lengths[:-1]) <= {64} if cut is blocks else max(lengths) - min(lengths) <= 1
