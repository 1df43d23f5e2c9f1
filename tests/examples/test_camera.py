"""A stream of frames into a file: what is dropped, the figures by hand, what is loaded, and mistakes."""

import pathlib
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from examples.camera import stream
from leanax import deploy

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def written(path, ends="uint8"):
  """A file that takes (8, 16) pixels and whose class is the brightest channel."""
  network = deploy.lift(
    lambda kernel, x: x @ kernel, jnp.eye(3), jnp.zeros((1, 8, 16, 3)), preprocessing=deploy.Preprocessing(1 / 255)
  )
  path.write_bytes(deploy.litert().write(deploy.with_ends(network, ends, "float32")))
  return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return written(tmp_path_factory.mktemp("camera") / "brightest.tflite")


def test_the_oldest_frame_makes_room():
  buffer = stream.Buffer(2)
  for frame in range(5):
    buffer.put(frame)
  buffer.close()
  assert [buffer.get(), buffer.get(), buffer.get()] == [3, 4, None]
  assert buffer.dropped == 3


def test_a_frame_that_waits_for_room_drops_none():
  buffer = stream.Buffer(1)
  threading.Thread(target=lambda: ([buffer.put(n, wait=True) for n in range(20)], buffer.close())).start()
  assert [buffer.get() for _ in range(20)] == list(range(20))
  assert (buffer.get(), buffer.dropped) == (None, 0)


def test_a_file_that_is_too_slow_drops_frames_and_its_latency_is_bounded():
  seen = []

  def slow(frame):
    seen.append(int(frame))
    time.sleep(0.04)

  found = stream.stream(slow, list(range(30)), 30, fps=100, depth=2)
  assert found.sent == 30 == len(found.latencies) + found.dropped
  assert found.dropped >= 12  # 0.3 s of frames and the three at the end, each 0.04 s
  assert len(seen) == len(found.latencies) + 1 and seen[0] == 0  # the first call is not measured
  assert seen[1:] == sorted(set(seen[1:]))
  assert seen[-2:] == [28, 29]  # the newest ones are never dropped
  assert min(found.latencies) >= 0.04
  assert found.latencies[-1] >= 0.069  # it waited for the one before, which came 0.01 s earlier and took 0.04 s
  assert found.cpu_seconds < found.seconds / 2


def test_as_fast_as_it_goes_nothing_is_dropped():
  found = stream.stream(lambda frame: None, [1, 2], 50, fps=0)
  assert (found.sent, found.dropped, len(found.latencies)) == (50, 0, 50)


def test_frames_come_at_their_times():
  found = stream.stream(lambda frame: None, [1], 10, fps=100)
  assert found.seconds >= 0.1


def test_the_figures_by_hand():
  found = stream.Figures(120, 20, 4.0, 1.0, [n / 1000 for n in range(1, 101)])
  assert stream.lines(found, 30.0) == [
    "frames   120 sent, 100 computed, 20 dropped",
    "rate     25.0 frames/s of 30 sent",
    "CPU      25 % of one core, 10.00 ms a frame",
    "latency  median 50.50 ms, 99th percentile 99.00 ms",
  ]
  assert stream.lines(found, 0)[1] == "rate     25.0 frames/s, as fast as it goes"


def test_the_file_names_the_brightest_channel(model):
  opened = stream.open_model(model)
  frame = np.zeros((8, 16, 3), np.uint8)
  frame[:, :8, 1], frame[:, 8:, 2] = 200, 100
  assert opened.size == (8, 16)
  assert np.array_equal(opened.run(frame), np.repeat([[1] * 8 + [2] * 8], 8, 0))


def test_pictures_of_a_folder_come_by_name_and_are_resized(tmp_path):
  for name, grey in (("b.png", 200), ("a.jpg", 10), ("notes.txt", 0)):
    if name.endswith("txt"):
      (tmp_path / name).write_text("no picture")
    else:
      Image.new("L", (40, 30), grey).save(tmp_path / name)
  found = stream.pictures(str(tmp_path), (8, 16), 5)
  assert [frame.shape for frame in found] == [(8, 16, 3)] * 2
  assert [int(frame.mean()) for frame in found] == [10, 200]
  assert len(stream.pictures(str(tmp_path), (8, 16), 1)) == 1


def test_drawn_frames():
  drive, drawn = (stream.pictures(source, (16, 32), 3) for source in ("drive", "scenes"))
  assert [frame.shape for frame in drive + drawn] == [(16, 32, 3)] * 6
  assert len({frame.tobytes() for frame in drive + drawn}) == 6


def test_a_program_that_loads_neither_jax_nor_leanax(model, tmp_path):
  code = (
    "import sys; from examples.camera import stream; known = set(sys.modules)\n"
    f"status = stream.main([{model!r}, '--frames=4', '--fps=0', '--picture={tmp_path}/last.png'])\n"
    "print(sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)), status)"
  )
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  *words, last = done.stdout.splitlines()
  loaded = set(last.split("]")[0].strip("[").replace("'", "").split(", "))
  assert loaded >= {"numpy", "PIL", "ai_edge_litert"} and last.endswith(" 0")
  assert not loaded & {"jax", "jaxlib", "flax", "leanax", "kd", "quant", "scipy", "ml_collections", "absl"}
  assert words[1] == "frames   4 sent, 4 computed, 0 dropped"
  with Image.open(tmp_path / "last.png") as picture:
    assert picture.size == (32, 8)


def refused(capsys, *given):
  assert stream.main(given) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1 and err.startswith("error: ")
  return err


def test_mistakes_are_one_sentence(model, capsys, tmp_path):
  (tmp_path / "text.tflite").write_text("no model at all")
  (tmp_path / "cut.tflite").write_bytes(pathlib.Path(model).read_bytes()[:8])
  (tmp_path / "folder").mkdir()
  (tmp_path / "bad").mkdir()
  (tmp_path / "bad" / "a.png").write_bytes(b"nothing")
  floats = written(tmp_path / "floats.tflite", "float32")
  assert "nowhere.tflite cannot be read (No such file or directory)" in refused(capsys, "nowhere.tflite")
  assert "text.tflite is no .tflite file" in refused(capsys, str(tmp_path / "text.tflite"))
  assert "the runtime refuses" in refused(capsys, str(tmp_path / "cut.tflite"))
  assert "takes float32 of shape (1, 8, 16, 3); expected uint8 pixels" in refused(capsys, floats)
  assert "--frames: '0' is given; expected a whole number of at least 1" in refused(capsys, model, "--frames=0")
  assert "--fps: 'nan' is given; expected a number of at least 0" in refused(capsys, model, "--fps=nan")
  assert "unrecognized arguments: --frame=3" in refused(capsys, model, "--frame=3")
  assert "the following arguments are required: file" in refused(capsys)
  assert "is no folder; expected 'drive', 'scenes' or a folder" in refused(capsys, model, "--source=drvie")
  assert "has no pictures" in refused(capsys, model, f"--source={tmp_path / 'folder'}")
  assert "a.png cannot be read as a picture" in refused(capsys, model, f"--source={tmp_path / 'bad'}")
