"""The bench of little data: its texts, its arithmetic, and a section from a few curves."""

import lzma

from benchmarks import little_data as bench


def test_a_short_text_has_as_much_of_each_book(tmp_path):
    folder = tmp_path / "data" / "classics"
    folder.mkdir(parents=True)
    books = [letter * 500 for letter in "abcdefghijklmnopqrst"] + ["short"]
    with lzma.open(folder / "train.txt.xz", "wt") as file:
        file.write("\n\n".join(books))
    for part in ("valid", "test"):
        (folder / f"{part}.txt").write_text(part)
    short = bench.shortened(tmp_path / "data", tmp_path / "new", 1600)
    with lzma.open(short / "classics" / "train.txt.xz", "rt") as file:
        found = file.read().split("\n\n")
    assert found == [letter * 100 for letter in "abcdefghijklmnop"]
    assert (short / "classics" / "valid.txt").read_text() == "valid"
    assert bench.shortened(tmp_path / "data", tmp_path / "new", 0) == tmp_path / "data"


def test_the_section_names_the_best_of_each_size():
    def curve(*nats):
        return {"steps": [0, 100, 600], "nats": list(nats)}

    arms = {
        bench.COUNTS: {"steps": [0], "nats": [4.0]},
        "cold start": curve(9.0, 6.0, 5.0),
        "warm start": curve(6.0, 4.5, 4.8),
        "warm start beside n-grams and cache": curve(4.1, 3.9, 4.2),
    }
    conclusion, body = bench.section({"1 M tokens": arms})
    assert "0.50 nats below the cold one with 1 M tokens" in conclusion
    assert "0.50 nats below the warm start" in conclusion
    assert "| 4.000 at 0 | 5.000 at 600 | 4.500 at 100 | 3.900 at 100 |" in body
    assert "| 1 M tokens | 0 steps | n-grams and cache alone, 4.000 | warm start, 6.000 |" in body
    assert "| 1 M tokens | 600 steps | warm start beside n-grams and cache, 3.900 | warm start, 4.500 |" in body


def test_every_run_has_a_key_of_its_own():
    keys = [
        str(key) for size in bench.SIZES.values() for key in bench.Bench(None, None, *size, None, 8192).keys().values()
    ]
    assert len(set(keys)) == len(keys) == 24
