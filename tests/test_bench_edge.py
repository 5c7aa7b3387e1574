"""The bench of small machines: a quick run measures, and the section says what the rows show."""

from benchmarks import edge as bench

ROW = {
    "preset": "potato", "experts": ["ngrams"], "bytes": 10_000_000, "counts_bytes": 46_000_000,
    "table_bytes": 9_000_000, "left_out": [], "import_seconds": 0.0125, "open_seconds": 0.004, "tokens": 2000,
    "ms_a_token": 0.25, "memory_bytes": 12 * 2**20, "sampling_memory_bytes": 19 * 2**20, "count_seconds": 4.0,
    "count_memory_bytes": 700 * 2**20, "c_ms_a_token": None,
}  # fmt: skip


def test_the_section():
    small = {"preset": "small", "bytes": 300_000_000, "table_bytes": 200_000_000, "left_out": ["classes", "network"]}
    conclusion, body = bench.section([ROW, ROW | small])
    assert "`potato` takes 12.0 MiB of memory beyond numpy's, 0.25 ms a token and 0.013 s to import" in conclusion
    assert "its table for a board has 9.0 MB" in conclusion
    assert "| potato | 10.0 | 12.0 | 0.0125 | 0.00400 | 0.250 | 46.0 | 4.00 | 700 |" in body
    assert "| potato | 9.00 | yes | - | nothing |" in body
    assert "| small | 200 | no | - | classes, network |" in body
    assert "random numbers, 7.0 MiB more" in body
