"""Feeds frames at the rate of a camera into a .tflite file that takes pixels, and prints how it keeps up.

    python -m examples.camera.stream road.tflite --frames=300 --fps=30

Nothing but numpy, Pillow and the runtime (ai-edge-litert) is loaded, as on a device. README.md beside this file
explains the figures.
"""

import argparse
import collections
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.driving import scenes

DRAWN = 90  # frames that are drawn before the clock starts; longer streams repeat them
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
COLOURS = ((100, 150, 255), (60, 160, 60), (90, 90, 90), (255, 255, 255), (255, 60, 60), (255, 200, 0), (140, 0, 140))


class Mistake(Exception):
  """A mistake of the user's, as one sentence."""


class Model(NamedTuple):
  """A file in the runtime: its (height, width), and a function from uint8 (height, width, 3) to its outputs' argmax."""

  size: tuple[int, int]
  run: Callable[[np.ndarray], np.ndarray]


class Figures(NamedTuple):
  """What a stream was: frames sent and dropped, wall and CPU seconds, and for each frame that came through its latency.

  A latency is the time from when the camera had the frame to when its classes were known, in seconds.
  """

  sent: int
  dropped: int
  seconds: float
  cpu_seconds: float
  latencies: Sequence[float]


class Buffer:
  """Keeps at most `depth` frames between two threads; where it is full, the oldest one makes room and is dropped."""

  def __init__(self, depth: int) -> None:
    self.dropped = 0
    self._depth, self._closed = depth, False
    self._frames: collections.deque[Any] = collections.deque()
    self._changed = threading.Condition()

  def put(self, frame: Any, wait: bool = False) -> None:
    """Adds a frame; with `wait` when there is room for it, else at once."""
    with self._changed:
      if wait:
        self._changed.wait_for(lambda: len(self._frames) < self._depth or self._closed)
      elif len(self._frames) == self._depth:
        self._frames.popleft()
        self.dropped += 1
      self._frames.append(frame)
      self._changed.notify_all()

  def get(self) -> Any:
    """Waits for the oldest frame and returns it; None where there will be none."""
    with self._changed:
      self._changed.wait_for(lambda: self._frames or self._closed)
      frame = self._frames.popleft() if self._frames else None
      self._changed.notify_all()
      return frame

  def close(self) -> None:
    """Ends the stream: `get` returns what is left and then None, and `put` waits no more."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()


def open_model(path: str, threads: int = 1) -> Model:
  """Opens a .tflite file in the runtime.

  Raises:
    Mistake: it cannot be read, is no such file, or does not take one RGB image of uint8 pixels.
  """
  try:
    content = Path(path).read_bytes()
  except OSError as error:
    raise Mistake(f"{path} cannot be read ({error.strerror}); expected a .tflite file") from None
  if content[4:8] != b"TFL3":
    raise Mistake(f"{path} is no .tflite file: its bytes 4 to 8 are {content[4:8]!r}; expected b'TFL3'")
  try:
    from ai_edge_litert.interpreter import Interpreter
  except ImportError:
    raise Mistake("the runtime is missing; expected `pip install ai-edge-litert`") from None
  try:
    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
  except (ValueError, RuntimeError) as error:
    raise Mistake(f"the runtime refuses {path}: {' '.join(str(error).split())}") from None
  inputs, output = interpreter.get_input_details(), interpreter.get_output_details()[0]["index"]
  shape, dtype = [int(n) for n in inputs[0]["shape"]], np.dtype(inputs[0]["dtype"])
  if len(inputs) != 1 or dtype != np.uint8 or len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
    raise Mistake(
      f"{path} takes {dtype.name} of shape {tuple(shape)}; expected uint8 pixels of shape (1, height, width, 3), as "
      "`python -m scripts.export --input=uint8` writes files"
    )
  place = inputs[0]["index"]

  def run(frame: np.ndarray) -> np.ndarray:
    interpreter.set_tensor(place, frame[None])
    interpreter.invoke()
    return interpreter.get_tensor(output)[0].argmax(-1)

  return Model((shape[1], shape[2]), run)


def pictures(source: str, size: tuple[int, int], count: int) -> list[np.ndarray]:
  """Returns up to `count` frames, uint8 (height, width, 3), of `size`.

  Args:
    source: "drive", consecutive frames of a drive; "scenes", scenes that have nothing to do with each other; or a
      folder of pictures, in the order of their names, which are resized.
    size: (height, width).
    count: how many at most.

  Raises:
    Mistake: the folder is not there or has no picture, or one cannot be read.
  """
  if source == "drive":
    return [scenes.drive(index, size) for index in range(count)]
  if source == "scenes":
    return [scenes.scene("test", index, size)[0] for index in range(count)]
  from PIL import Image, UnidentifiedImageError

  if not Path(source).is_dir():
    raise Mistake(f"--source={source} is no folder; expected 'drive', 'scenes' or a folder of pictures")
  paths = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in PICTURES)[:count]
  if not paths:
    raise Mistake(f"--source={source} has no pictures; expected files that end in {', '.join(PICTURES)}")
  found = []
  for path in paths:
    try:
      with Image.open(path) as image:
        found.append(np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError):
      raise Mistake(f"{path} cannot be read as a picture; expected one of {', '.join(PICTURES)}") from None
  return found


def stream(
  run: Callable[[np.ndarray], Any], frames: Sequence[np.ndarray], count: int, fps: float, depth: int = 2
) -> Figures:
  """Sends frames at their times from a thread of its own, and runs each that is not dropped, oldest first.

  Args:
    run: computes a frame's classes.
    frames: of the stream, which repeats them.
    count: how many are sent.
    fps: frames a second; 0 for each as soon as there is room for it, so that none is dropped.
    depth: frames that wait at most; where one more comes, the oldest is dropped.
  """
  run(frames[0])  # what a runtime does once is no part of the figures
  buffer, latencies = Buffer(depth), []
  start, cpu = time.perf_counter(), time.process_time()

  def camera() -> None:
    for index in range(count):
      due = start + (index + 1) / fps if fps else 0.0
      if fps:
        time.sleep(max(due - time.perf_counter(), 0))
      buffer.put((due or time.perf_counter(), frames[index % len(frames)]), wait=not fps)
    buffer.close()

  thread = threading.Thread(target=camera, daemon=True)
  thread.start()
  while (given := buffer.get()) is not None:
    due, frame = given
    run(frame)
    latencies.append(time.perf_counter() - due)
  seconds, used = time.perf_counter() - start, time.process_time() - cpu
  thread.join()
  return Figures(count, buffer.dropped, seconds, used, latencies)


def lines(figures: Figures, fps: float) -> list[str]:
  """Returns the figures as text; the 99th percentile is the least latency that 99 % of the frames do not exceed."""
  done = len(figures.latencies)
  high = np.percentile(figures.latencies, 99, method="inverted_cdf")
  return [
    f"frames   {figures.sent} sent, {done} computed, {figures.dropped} dropped",
    f"rate     {done / figures.seconds:.1f} frames/s" + (f" of {fps:g} sent" if fps else ", as fast as it goes"),
    f"CPU      {100 * figures.cpu_seconds / figures.seconds:.0f} % of one core, "
    f"{1e3 * figures.cpu_seconds / done:.2f} ms a frame",
    f"latency  median {1e3 * np.median(figures.latencies):.2f} ms, 99th percentile {1e3 * high:.2f} ms",
  ]


def save(path: str, frame: np.ndarray, classes: np.ndarray) -> None:
  """Writes a frame and, beside it, its classes in colours as a picture."""
  from PIL import Image

  if classes.shape != frame.shape[:2]:
    raise Mistake(f"--picture: the file names {classes.shape} classes of a frame; expected one for each of its pixels")
  coloured = np.asarray(COLOURS, np.uint8)[classes % len(COLOURS)]
  try:
    Image.fromarray(np.concatenate([frame, coloured], 1)).save(path)
  except (OSError, ValueError) as error:
    raise Mistake(f"--picture={path} cannot be written ({error}); expected a name such as last.png") from None


def at_least(least: float, kind: type) -> Callable[[str], Any]:
  """Returns the type of a flag: a number of a kind from `least` up."""

  def value(text: str) -> Any:
    try:
      number = kind(text)
    except ValueError:
      number = least - 1
    if not least <= number < 1e9:
      what = "a whole number" if kind is int else "a number"
      raise argparse.ArgumentTypeError(f"{text!r} is given; expected {what} of at least {least:g}")
    return number

  return value


class Parser(argparse.ArgumentParser):
  """Flags whose mistakes are one sentence."""

  def error(self, message: str) -> Any:
    raise Mistake(message)


def arguments(given: Sequence[str]) -> argparse.Namespace:
  """Returns the values of the flags."""
  parser = Parser(prog="python -m examples.camera.stream", description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("file", help="a .tflite file that takes uint8 pixels, (1, height, width, 3)")
  parser.add_argument("--frames", type=at_least(1, int), default=300, help="frames to send")
  parser.add_argument("--fps", type=at_least(0, float), default=30.0, help="frames a second; 0: as fast as it goes")
  parser.add_argument("--queue", type=at_least(1, int), default=2, help="frames that wait at most")
  parser.add_argument("--threads", type=at_least(1, int), default=1, help="threads of the runtime")
  parser.add_argument("--source", default="drive", help="'drive', 'scenes', or a folder of pictures")
  parser.add_argument("--picture", default="", help="a file for the last frame and its classes in colours")
  return parser.parse_args(given)


def main(given: Sequence[str]) -> int:
  """Runs the program; returns its exit status, 2 after a mistake of the user's."""
  try:
    flags = arguments(given)
    model = open_model(flags.file, flags.threads)
    frames = pictures(flags.source, model.size, min(flags.frames, DRAWN))
    figures = stream(model.run, frames, flags.frames, flags.fps, flags.queue)
    height, width = model.size
    print(f"file     {flags.file}, {width}x{height}, threads of the runtime: {flags.threads}")
    print("\n".join(lines(figures, flags.fps)))
    if flags.picture:
      last = frames[(flags.frames - 1) % len(frames)]
      save(flags.picture, last, model.run(last))
  except Mistake as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
