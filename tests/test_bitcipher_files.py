"""The writer of whole files: what stays after an error, and who may read the result."""

import os
import stat

import pytest

from bitcipher.files import replacing


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
