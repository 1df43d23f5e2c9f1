"""Numbers of a run: what is in the files, and that a resumed run leaves the same file as an uninterrupted one."""

import json
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.store.metrics import Writer, read


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


def test_a_foreign_file_is_refused(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
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
