"""A figure has the format that its name says."""

import pytest

from warmstart.errors import InputError
from warmstart.figures import figure, save_figure
from warmstart.finetune.log import Log


@pytest.mark.parametrize(
    ("name", "begins"), [("a.png", b"\x89PNG"), ("a", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")]
)
def test_the_name_decides(tmp_path, name, begins):
    pytest.importorskip("matplotlib")
    drawing, axes = figure(1)
    axes[0].plot([0, 1], [1, 0])
    save_figure(drawing, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)
    for other in ("a.csv", "a.gz"):
        with pytest.raises(InputError, match="expected a name that ends in one of"):
            save_figure(drawing, tmp_path / other)


def test_a_log_is_not_compressed(tmp_path):
    with pytest.raises(InputError, match=r"without .gz"):
        Log(tmp_path / "log.jsonl.gz")
    assert not list(tmp_path.iterdir())
