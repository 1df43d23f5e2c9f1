"""Numbers of a run: what is in the files, and that a resumed run leaves the same file as an uninterrupted one."""

import json
import socket
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.store.metrics import Writer, as_text, from_text, own, read, restore


def test_one_object_per_line(tmp_path):
  with Writer(tmp_path / "run", tensorboard=False) as writer:
    writer.write(0, {"loss": jnp.float32(0.5), "count": np.int64(3), "half": jnp.bfloat16(1.5)})
    writer.write(1, {"loss": float("nan"), "norm": float("inf"), "ok": True})
    # already there for another process, before any flush
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert lines[0] == {"step": 0, "loss": 0.5, "count": 3, "half": 1.5}
  assert list(lines[0]) == ["step", "loss", "count", "half"]
  assert lines[1] == {"step": 1, "loss": "nan", "norm": "inf", "ok": 1}
  again = read(tmp_path / "run")
  assert np.isnan(again[1]["loss"])
  assert again[1]["norm"] == float("inf")
  with Writer(tmp_path / "other", tensorboard=False) as writer:
    for value in (np.ones(2), "high"):
      with pytest.raises(ValueError, match="metric 'x' has shape .* expected one number"):
        writer.write(0, {"x": value})


def run(folder, first, last, after=None):
  with Writer(folder, after=after, tensorboard=False) as writer:
    for step in range(first, last):
      writer.write(step, {"loss": 1 / (step + 3)})
      if step % 4 == 0:
        writer.write(step, {"eval": step / 7})


def test_a_resumed_run_leaves_the_same_file(tmp_path):
  run(tmp_path / "whole", 0, 20)
  whole = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
  for saved, died in [(0, 1), (4, 12), (7, 8), (11, 19), (12, 13)]:
    folder = tmp_path / f"broken{saved}"
    run(folder, 0, died)
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 19, "lo')  # killed in the middle of a line
    assert read(folder)[-1]["step"] == died - 1
    run(folder, saved + 1, 20, after=saved)
    assert path.read_bytes() == whole, saved
  run(tmp_path / "whole", 0, 20)  # anew
  assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
  "line", ["hello", '{"step": true}', '{"step": 1.0}', '{"loss": 1}', "[]", '{"step": 1, "a": "b"}']
)
def test_a_foreign_file_is_refused(tmp_path, line):
  (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
  with pytest.raises(UserError, match="metrics.jsonl, line 2: expected an object like"):
    Writer(tmp_path, after=3)
  with pytest.raises(UserError, match="there is no file"):
    read(tmp_path / "none.jsonl")


def records(folder):
  """The records of the event files in a folder: length, its checksum, bytes, their checksum (the TFRecord frame)."""
  found = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack("<Q", data[:8])
      found.append(data[12 : 12 + size])
      data = data[16 + size :]
  return found


def scalars(folder):
  """The numbers in the event files of a folder: (step, tag, value)."""
  from tensorboardX.proto.event_pb2 import Event

  events = [Event.FromString(record) for record in records(folder)]
  return [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]


def test_tensorboard_event_files(tmp_path):
  with Writer(tmp_path) as writer:
    writer.write(1, {"loss": 0.5})
    writer.write(3, {"loss": 0.25})
  assert scalars(tmp_path / "tensorboard") == [(1, "loss", 0.5), (3, "loss", 0.25)]
  with Writer(tmp_path, after=1) as writer:  # the number of the step that is repeated stands once
    writer.write(3, {"loss": 0.75})
  assert scalars(tmp_path / "tensorboard") == [(1, "loss", 0.5), (3, "loss", 0.75)]


def test_parts_of_a_run_have_the_same_tags_and_their_own_steps(tmp_path):
  for first, part in enumerate(("teacher", "student")):
    with Writer(tmp_path, after=0, part=part, first=8 * first) as writer:
      writer.write(8, {"loss": 0.5 - first})
  assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
    {"step": 8, "teacher/loss": 0.5},
    {"step": 16, "student/loss": -0.5},
  ]
  assert scalars(tmp_path / "tensorboard" / "teacher") == [(8, "loss", 0.5)]
  assert scalars(tmp_path / "tensorboard" / "student") == [(8, "loss", -0.5)]
  (tmp_path / "tensorboard" / "student" / "events.out.tfevents.1.before").write_bytes(b"of another program")
  # Another part, and files whose tags are named otherwise: what is there is written anew from metrics.jsonl.
  with Writer(tmp_path, after=8, part="student", first=8) as writer:
    writer.write(9, {"loss": 2.0})
  assert scalars(tmp_path / "tensorboard" / "student") == [(8, "loss", -0.5), (9, "loss", 2.0)]
  assert scalars(tmp_path / "tensorboard" / "teacher") == [(8, "loss", 0.5)]


def test_tensorflow_is_not_imported():
  code = """
import sys, tempfile
from leanax.engine.store.metrics import Writer
assert "tensorboardX" not in sys.modules
with Writer(tempfile.mkdtemp()) as writer:
  writer.write(0, {"a": 1})
print("tensorboardX" in sys.modules, "tensorflow" in sys.modules)
"""
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert out.stdout.split() == ["True", "False"]


LINES = [{"step": 2, "loss": 0.5, "a": "nan"}, {"step": 4, "loss": 0.25, "a": 1}]


def copies(folder, lines=LINES, first=0, parts=("one", "two")):
  return restore(folder, lines, "one", first, 2, parts)


def whole_file(folder):
  with Writer(folder, part="one", tensorboard=False) as writer:
    for line in LINES:
      writer.write(line["step"], {name: float(value) for name, value in line.items() if name != "step"})
  with Writer(folder, part="two", first=4, tensorboard=False) as writer:
    writer.write(1, {"loss": 3.0})
  return (folder / "metrics.jsonl").read_bytes()


def test_lines_come_back_from_what_was_saved(tmp_path, capsys):
  whole = whole_file(tmp_path)
  saved = from_text(as_text(own(tmp_path / "metrics.jsonl", "one")), "x")
  assert [list(line.items()) for line in saved] == [
    [("step", 2), ("loss", 0.5), ("a", "nan")],
    [("step", 4), ("loss", 0.25), ("a", 1.0)],
  ]
  assert copies(tmp_path, saved) == saved and capsys.readouterr().err == ""
  path, said = tmp_path / "metrics.jsonl", "metrics.jsonl lacks lines of 'one', or has others; they are made again"
  first, second, third = whole.splitlines(keepends=True)
  for damaged in (
    whole.replace(b"0.25", b"0.26"),
    whole.replace(b"0.25", b"0.2\n"),
    whole.replace(b'"nan"', b'"man"'),
    whole.replace(b"one/loss", b"onf/loss", 1),
    first + third,
    second + third,
    first + first + second + third,
    first.replace(b"}\n", b"}") + second + third,
    third,
    first[:-1] + b"\r" + second + third,
    b"\xff" * 9 + whole[9:],
  ):
    path.write_bytes(damaged)
    copies(tmp_path, saved)
    assert path.read_bytes() == whole and said in capsys.readouterr().err, damaged
  # The order of parts, where one was trained later, and steps where it has moved, are no damage.
  for text, offset, desired in [
    (third + first + second, 0, whole),
    (whole, 7, third + first.replace(b"2,", b"9,") + second.replace(b"4,", b"11,")),
  ]:
    path.write_bytes(text)
    copies(tmp_path, saved, offset)
    assert path.read_bytes() == desired and capsys.readouterr().err == ""
  # A part of no name that the run has, of a line whose name was changed alone.
  path.write_bytes(whole + b'{"step": 9, "onf/loss": 1.0}\n')
  copies(tmp_path, saved)
  assert path.read_bytes() == whole


def test_lines_that_were_not_saved_stay_as_they_are(tmp_path):
  whole = whole_file(tmp_path)
  assert copies(tmp_path, None) == own(tmp_path / "metrics.jsonl", "one")
  (tmp_path / "metrics.jsonl").write_bytes(whole.replace(b'"one/loss"', b"one/loss"))
  with pytest.raises(UserError, match="metrics.jsonl, line 1: expected an object like"):
    copies(tmp_path, None)
  for text in (3, "x\n", '{"step": "a"}\n', '{"step": 1, "a": [1]}\n'):
    with pytest.raises(UserError, match="x(, line 1: expected an object| holds no lines of metrics)"):
      from_text(text, "x")


def test_a_writer_goes_on_from_saved_lines(tmp_path, capsys):
  """Whatever the file holds by then, and also where the part stands elsewhere in the run now."""
  path, whole = tmp_path / "metrics.jsonl", whole_file(tmp_path)
  for damaged, changed in [(b"", True), (whole.replace(b"0.5", b"0.6"), True), (whole, False)]:
    path.write_bytes(damaged)
    with Writer(tmp_path, after=2, part="one", lines=LINES, tensorboard=False) as writer:
      assert writer.lines == LINES[:1]
      writer.write(4, {"loss": 0.25, "a": 1.0})
      assert writer.lines == LINES
    assert own(path, "one") == LINES
    assert ("made again" in capsys.readouterr().err) == changed


def test_event_files_are_made_again(tmp_path):
  copies(tmp_path)
  (file,) = (tmp_path / "tensorboard" / "one").iterdir()
  whole = file.read_bytes()
  numbers = scalars(file.parent)
  assert numbers[1:] == [(2, "a", pytest.approx(float("nan"), nan_ok=True)), (4, "loss", 0.25), (4, "a", 1.0)]
  assert socket.gethostname() not in file.name and socket.gethostname().encode() not in whole
  copies(tmp_path)
  assert file.read_bytes() == whole
  rng = np.random.default_rng(0)
  places = [*range(12), *rng.integers(len(whole), size=12)]
  for place in places:
    damaged = bytearray(whole)
    damaged[place] ^= 1 << rng.integers(8)
    file.write_bytes(damaged)
    copies(tmp_path)
    (file,) = file.parent.iterdir()
    assert scalars(file.parent)[2:] == numbers[2:], place
  for damaged in (whole[:-9], whole[: len(whole) // 2], b"", whole + whole):
    file.write_bytes(damaged)
    copies(tmp_path)
    (file,) = file.parent.iterdir()
    assert scalars(file.parent)[2:] == numbers[2:]
