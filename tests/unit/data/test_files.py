import json

import pytest

from pcpo.data.files import atomic_folder, atomic_path, write_bytes_atomic, write_json_atomic, write_text_atomic
from pcpo.errors import RunFolderError


def test_writes_whole_files_and_creates_folders(tmp_path):
    write_bytes_atomic(tmp_path / "a" / "b.bin", b"\x00\xff")
    write_text_atomic(tmp_path / "t.txt", "caf\u00e9\n")
    write_json_atomic(tmp_path / "v.json", {"a": [1, 2.5, None]})
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "t.txt").read_bytes() == "caf\u00e9\n".encode()
    assert json.loads((tmp_path / "v.json").read_text()) == {"a": [1, 2.5, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "t.txt", "v.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_rest(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyError("killed here")
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert path.read_text() == "old"


def test_json_refuses_what_json_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        write_json_atomic(tmp_path / "v.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_file_system_refusal_is_typed(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_text_atomic(tmp_path / "file" / "inside.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunFolderError, match="folder: cannot be written"):
        write_text_atomic(tmp_path / "folder", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with atomic_folder(tmp_path / "a" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"] and (tmp_path / "a" / "out" / "x").read_text() == "1"
    with pytest.raises(RunFolderError, match="exists already"), atomic_folder(tmp_path / "a" / "out"):
        pytest.fail("entered")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "b") as folder:
        (folder / "x").write_text("1")
        raise KeyError("killed here")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="cannot be written"), atomic_folder(tmp_path / "file" / "out"):
        pytest.fail("entered")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"]
