"""A file is written wholly or not at all; the first difference of two configs is named."""

import os
import pathlib
import stat
import zlib

import pytest

from leanax.core import files
from leanax.core.errors import UserError


def test_a_file_is_replaced_with_the_usual_permissions(tmp_path):
  path, plain = tmp_path / ("x" * 250), tmp_path / "plain"
  plain.touch()
  for content, bytes_ in (("é\n", "é\n".encode()), (b"\r\n\0", b"\r\n\0"), (memoryview(b"ab"), b"ab"), ("", b"")):
    files.write(path, content)
    assert path.read_bytes() == bytes_
  assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
  assert sorted(tmp_path.iterdir()) == sorted([path, plain])


def test_an_open_reader_reads_the_old_file_to_its_end(tmp_path):
  path = tmp_path / "file"
  files.write(path, "old")
  with path.open() as reader:
    files.write(path, "new, and longer")
    assert reader.read() == "old"
  assert path.read_text() == "new, and longer"


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
  path = tmp_path / "file"
  files.write(path, "old")

  def full(_):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="file' cannot be written: No space left on device"):
      files.write(path, "new")
  with pytest.raises(TypeError):
    files.write(path, 3)
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
  with pytest.raises(UserError, match="missing/file' cannot be written: No such file or directory"):
    files.write(tmp_path / "missing" / "file", "new")
  with pytest.raises(UserError, match="cannot be written: Not a directory"):
    files.write(path / "below", "new")
  with pytest.raises(UserError, match="cannot be written: Is a directory"):
    files.write(tmp_path, "new")


@pytest.mark.parametrize(
  ("there", "here", "words"),
  [
    ({"a": {"b": 1}}, {"a": {"b": 1}}, ""),
    ({"a": {"b": 1}}, {"a": {"b": 2}}, "'a.b' was 1 and is 2 here"),
    ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "'a.b' was [1, 2] and is [1, 3] here"),
    ({"a": {}}, {"a": {"b": 1}}, "'a.b' is set here only"),
    ({"a": {"b": None}}, {"a": {}}, "'a.b' is set there only"),
    ({"a": {"b": 1}}, {"a": 1}, "'a' was {'b': 1} and is 1 here"),
    ({"a": 1, "b": 2}, {"b": 3, "a": 1}, "'b' was 2 and is 3 here"),
  ],
)
def test_the_first_difference(there, here, words):
  assert files.difference(there, here) == words


def test_a_place_is_refused_where_a_write_would_be(tmp_path):
  files.write(tmp_path / "file", "old")
  files.check_place(tmp_path / "file")
  files.check_place(tmp_path / "new")
  assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"
  for place in ("missing/file", "file/below", "."):
    with pytest.raises(UserError) as refused:
      files.check_place(tmp_path / place)
    with pytest.raises(UserError) as failed:
      files.write(tmp_path / place, "new")
    assert str(refused.value) == str(failed.value) and "cannot be written: " in str(failed.value)


def test_a_file_and_its_name_are_on_disk(tmp_path, monkeypatch):
  synced, fsync = [], os.fsync
  monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
  files.write(tmp_path / "a", "text")
  assert [pathlib.Path(path).suffix for path in synced] == [".part", ""] and synced[1] == str(tmp_path)


def test_halves_of_killed_programs_are_removed_and_nothing_else(tmp_path):
  mine = [tmp_path / ".0123456789abcdef.part", tmp_path / "a/b/.0123456789abcdef.part"]
  others = [tmp_path / "x.part", tmp_path / ".0123.part", tmp_path / "a/b/c/.0123456789abcdef.part"]
  (tmp_path / "a/b/c").mkdir(parents=True)
  for path in (*mine, *others):
    path.touch()
  files.remove_parts(tmp_path)
  assert [path.exists() for path in (*mine, *others)] == [False] * 2 + [True] * 3


def test_a_kept_object_finds_whatever_changes_in_it(tmp_path):
  path, values = tmp_path / "kept.json", {"b": [1, 2.5, None, "é"], "a": {"x": float("nan"), "y": 1e-300}, "": True}
  assert files.kept(path) == {}
  files.keep(path, values)
  whole = path.read_bytes()
  assert str(files.kept(path)) == str(values) and whole.decode() == files.kept_text(values)
  same = 0
  for place in range(len(whole)):
    for bit in range(8):
      damaged = bytearray(whole)
      damaged[place] ^= 1 << bit
      path.write_bytes(damaged)
      try:
        found = files.kept(path)
      except UserError as error:
        assert str(error).startswith(f"{str(path)!r} is damaged: it ") and "\n" not in str(error)
      else:  # a space that is another one, a number that is written otherwise, or the name of the checksum
        same += 1
        assert str({key: found[key] for key in values}) == str(values) and len(found) <= len(values) + 1
  assert same < 0.1 * 8 * len(whole)
  for text, words in (("[]", "no JSON object; x"), ("[" * 10**5, "no JSON object; x"), ("\ud800", "no JSON object; x")):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=words):
      files.kept(path, "x")
  path.write_text('{"old": 1}')  # from before there were checksums
  assert files.kept(path) == {"old": 1}


def test_the_checksum_of_a_file_is_that_of_its_bytes(tmp_path):
  path, content = tmp_path / "x", bytes(range(256)) * 5000
  path.write_bytes(content)
  assert files.checksum(path) == zlib.crc32(content)
  assert files.checksum(tmp_path) is files.checksum(path / "below") is files.checksum(tmp_path / "none") is None


PART = ".0123456789abcdef.part"


def test_the_first_file_of_a_program_in_a_directory_removes_the_halves_of_killed_ones(tmp_path):
  """A directory of files that no run holds, such as that of --out or a cache."""
  mine, other, below = tmp_path / PART, tmp_path / ".mine.part", tmp_path / "a" / PART
  below.parent.mkdir()
  for path in (mine, other, below):
    path.touch()
  files.write(tmp_path / "file", "text")
  assert [path.exists() for path in (mine, other, below)] == [False, True, True]


def test_what_a_living_program_writes_is_left_alone(tmp_path, monkeypatch):
  fsync, seen = os.fsync, []

  def meanwhile(file):  # of this process or another one: a lock is of an opened file
    files.remove_parts(tmp_path)
    seen.append([path.suffix for path in tmp_path.iterdir()])
    fsync(file)

  monkeypatch.setattr(os, "fsync", meanwhile)
  files.write(tmp_path / "file", "text")
  assert seen[0] == [".part"] and (tmp_path / "file").read_text() == "text"


def test_a_half_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
  import fcntl

  flock, calls = fcntl.flock, []

  def late(file, how):
    calls.append(how)
    if len(calls) == 1:
      next(tmp_path.glob(".*.part")).unlink()
    flock(file, how)

  monkeypatch.setattr(fcntl, "flock", late)
  files.write(tmp_path / "file", "text")
  assert len(calls) == 2 and (tmp_path / "file").read_text() == "text"


def test_a_secret_is_its_users_and_the_first_one_stays(tmp_path):
  path = tmp_path / "key"
  for text in ("first", "second"):
    files.write(path, text, secret=True)
  assert path.read_text() == "first" and stat.S_IMODE(path.stat().st_mode) == 0o600
  assert list(tmp_path.iterdir()) == [path]
