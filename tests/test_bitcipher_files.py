"""The writer of whole files: what stays after an error, and who may read the result."""

import bz2
import gzip
import lzma
import os
import stat

import pytest

from bitcipher import CooccurrenceEmbedding
from bitcipher.files import replacing, writing


def write_half_and_fail(path):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


@pytest.mark.parametrize("before", [None, "old"])
def test_an_exception_leaves_the_old_file_or_none(tmp_path, before):
    path = tmp_path / "file"
    if before:
        path.write_text(before)
    with pytest.raises(KeyboardInterrupt):
        write_half_and_fail(path)
    assert (path.read_text() if path.exists() else None) == before
    assert list(tmp_path.iterdir()) == ([path] if before else [])


def test_the_file_is_readable_as_the_umask_says(tmp_path):
    umask = os.umask(0o027)
    try:
        with replacing(str(tmp_path / "file")) as temporary:
            temporary.unlink()
            temporary.touch(0o600)  # as safetensors does
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("ending", "unpack"),
    [
        ("", bytes),
        (".gz", gzip.decompress),
        (".GZ", gzip.decompress),
        (".bz2", bz2.decompress),
        (".xz", lzma.decompress),
    ],
)
def test_a_file_is_compressed_as_its_name_says(tmp_path, ending, unpack):
    model = CooccurrenceEmbedding(bits=2, components=2).fit([["b", "a", "b", "c"]])
    model.save_word2vec(tmp_path / "plain.txt")
    model.save_word2vec(tmp_path / f"vectors.txt{ending}")
    assert unpack((tmp_path / f"vectors.txt{ending}").read_bytes()) == (tmp_path / "plain.txt").read_bytes()


@pytest.mark.parametrize("write", [replacing, writing])
def test_a_name_that_promises_too_much_is_refused(tmp_path, write):
    with pytest.raises(OSError, match="expected a name"), write(tmp_path / "file.zst"):
        pass
    with pytest.raises(OSError, match="is not compressed"), replacing(tmp_path / "file.safetensors.gz"):
        pass
    assert not list(tmp_path.iterdir())
