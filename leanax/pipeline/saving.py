"""When a stage's checkpoints are saved, and what of its metrics they hold."""

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from leanax.engine.store import metrics as store
from leanax.engine.store.checkpoint import Checkpoints
from leanax.engine.train.loop import History, Hook, joined
from leanax.engine.train.state import TrainState
from leanax.pipeline import stops

SECONDS = 180.0  # the longest time from one checkpoint to the next step's
ASKED = 0.1  # the time between two questions whether a save has failed, which a step need not wait for
LINES = "lines"  # the key of a checkpoint's `extra` that holds the lines of metrics.jsonl
SINCE = "since"  # the key of a checkpoint's `extra` that holds the metrics since the last line


class Saving:
  """The checkpoints of a stage that trains: every so many steps, every few minutes, and where a signal asks to stop.

  A line of metrics.jsonl is the mean over the steps since the last one. A checkpoint between two lines therefore holds
  the metrics of the steps since the last line, and a resumed run writes the same lines as an unbroken one.

  Args:
    checkpoints: of the stage.
    extra: what was saved with the checkpoint that the run goes on from; {} for a fresh one.
    line: the number of steps between lines.
    steps: of the stage.
    lines: gives the stage's lines so far, of each run; a checkpoint keeps them (`store.metrics`).
    clock: seconds, for tests.
  """

  def __init__(
    self,
    checkpoints: Checkpoints,
    extra: Mapping[str, Any],
    *,
    line: int,
    steps: int,
    lines: Callable[[], list[store.Lines]],
    clock: Callable[[], float] = time.monotonic,
  ):
    self._checkpoints, self._line, self._steps, self._lines, self._clock = checkpoints, line, steps, lines, clock
    self._saved = self._checked = clock()
    self._before = self._since = decoded(extra.get(SINCE, {}))

  def hook(self, every: int) -> Hook:
    """Returns the hook that saves every so many steps, at least once before the last one, by the clock, and at a stop.

    Training ends where a signal has asked for it. Put it behind the hook that writes the lines.
    """
    return Hook(max(min(every, self._steps // 2), 1), self._call, self._due)

  def whole(self, history: History) -> History:
    """Returns the metrics of a line: those since the last line, of which some may be from before a resume.

    Args:
      history: of the steps since the last line or the resume.
    """
    before, self._before = self._before, {}
    return _after(before, history)

  def save(self, step: int, state: TrainState, history: History, metrics: Mapping[str, float] | None = None) -> None:
    """Saves the state of a step, if it has no checkpoint yet.

    Args:
      step: its number.
      state: the state after it.
      history: the metrics of the steps since the last call; {} in the hook that writes the lines.
      metrics: of the checkpoint, by which the best one is chosen.
    """
    self._since = _last(_after(self._since, history), 0 if step == self._steps else step % self._line)
    self._saved = self._clock()
    if self._checkpoints.latest() != step:
      extra: dict[str, Any] = {LINES: [store.as_text(lines) for lines in self._lines()]}
      extra |= {SINCE: encoded(self._since)} if self._since else {}
      self._checkpoints.save(step, state, metrics=metrics, extra=extra)

  def stop(self, state: TrainState, name: str) -> None:
    """Ends the program where a signal has asked for it, once the checkpoint of this state is on disk.

    Args:
      state: of the last step, which has a checkpoint already where training ended for the signal.
      name: of the stage.

    Raises:
      Stopped: a signal has asked to stop.
    """
    if number := stops.asked():
      step = int(state.step)
      with stops.finishing():
        if step:
          self.save(step, state, {})
        self._checkpoints.wait()
      raise stops.Stopped(number, f"stopped at step {step} of stage {name!r}; {stops.GOES_ON}")

  def _due(self) -> bool:
    now = self._clock()
    if now - self._checked >= ASKED:
      self._checkpoints.check()
      self._checked = now
    return bool(stops.asked()) or now - self._saved >= SECONDS

  def _call(self, step: int, state: TrainState, history: History) -> bool:
    if step < self._steps:
      self.save(step, state, history)
    return bool(stops.asked())


def lines(extra: Mapping[str, Any]) -> list[store.Lines]:
  """Returns the lines that a checkpoint keeps, of each run; [] of one from before they were kept, or of none."""
  return [store.from_text(text, "a checkpoint") for text in extra.get(LINES, ())]


def _after(before: History, history: History) -> History:
  return joined([part for part in (before, history) if part])


def _last(history: History, count: int) -> History:
  """Returns the metrics of the last steps; {} of none."""
  return {name: series[..., series.shape[-1] - count :] for name, series in history.items()} if count else {}


def encoded(history: History) -> dict[str, Any]:
  """Returns metrics as JSON values, bit for bit."""
  found = {}
  for name, series in history.items():
    data = base64.b64encode(np.ascontiguousarray(series).tobytes()).decode()
    found[name] = {"dtype": series.dtype.name, "shape": list(series.shape), "data": data}
  return found


def decoded(given: Mapping[str, Any]) -> History:
  """Returns the metrics of `encoded`."""
  return {
    name: np.frombuffer(base64.b64decode(one["data"]), jax.numpy.dtype(one["dtype"])).reshape(one["shape"])
    for name, one in given.items()
  }
