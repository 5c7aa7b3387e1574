"""The reporter: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import sys

from warmstart.progress import Reporter, peak_memory


def report(quiet=False):
    with Reporter(quiet) as progress:
        for done in (0, 1_500_000, 3_000_000):
            progress("counting", done, 3_000_000)
        progress("solving", 0, None)


def test_plain_lines(capsys):
    report()
    assert capsys.readouterr() == ("", "counting   0%\nsolving\n")


def test_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    report()
    out, err = capsys.readouterr()
    assert out == ""
    assert "counting" in err
    assert "/s" in err
    assert "solving" in err


def test_quiet(capsys):
    report(quiet=True)
    assert capsys.readouterr() == ("", "")


def test_peak_memory_is_unknown_without_the_unix_module(monkeypatch, tmp_path):
    assert peak_memory() > 2**20
    monkeypatch.setattr("warmstart.progress.STATUS", tmp_path / "missing")
    assert peak_memory() > 2**20
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() == 0
