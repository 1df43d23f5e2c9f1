"""A teacher's logits on disk, computed once for all students that see the same views of the same examples.

A cache is a folder: key.json says what it is of (`engine.teacher_key`), chunks.json which rows are done, and every
array of its form (`engine.logit_codes`) is one .npy file that grows by a chunk of rows, all their views together
(`engine.teacher_files`). A build that is killed goes on after its last chunk and ends in the same bytes as an unbroken
one.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int32

from leanax.core.errors import UserError
from leanax.engine.data.augment import mixup_draw
from leanax.engine.data.batches import Input
from leanax.engine.store import logit_codes, teacher_key
from leanax.engine.store import teacher_files as files
from leanax.engine.store.teacher_key import Key
from leanax.engine.train.progress import Progress

CHUNK = 4096
BATCH = 512

LogitsOf = Callable[[Int32[np.ndarray, "n"], int], Float[Array, "n c"]]
MixOf = Callable[[Int32[np.ndarray, "n"], int], tuple[Int32[Array, "n"], Float[Array, "n"]]]


class Cache(NamedTuple):
  """A finished cache.

  Attributes:
    key: what it is of.
    arrays: by name, (N, ...) for one still view and (N, views, ...) otherwise; read from the files as they are used.
    mix: likewise mixup's "mix_partner" (rows) and "mix_weight" (what an example keeps of itself), where views mix.
  """

  key: Key
  arrays: Mapping[str, np.ndarray]
  mix: Mapping[str, np.ndarray]

  @property
  def per_view(self) -> tuple[str, ...]:
    """The names for `Input.per_view`."""
    return tuple(self.arrays) if self.key.augment else ()

  def decode(self, batch: Mapping[str, Array]) -> Float[Array, "b c"]:
    """A batch's logits from its rows of `arrays`, inside jit."""
    return logit_codes.decode(batch, self.key.classes)


def mixing(arrays: Mapping[str, jax.Array], spec: Input) -> MixOf | None:
  """`build`'s `mix_of` for a training split whose views mix examples, else None."""
  if not spec.augment.mixup:
    return None
  draw = jax.jit(lambda ids, view: mixup_draw(ids, view, spec.augment, len(arrays["id"])))
  return lambda rows, view: draw(arrays["id"][rows], view)


def build(
  path: str | Path,
  key: Key,
  logits_of: LogitsOf,
  *,
  mix_of: MixOf | None = None,
  batch: int = BATCH,
  chunk: int = CHUNK,
  stream: files.Stream | None = None,
  teacher: str = "the teacher",
) -> Cache:
  """The cache of a key: read if it is there, continued if it is not whole, built if there is none.

  Args:
    path: its folder. Programs that build the same one wait for each other.
    key: what is stored.
    logits_of: (rows (n,) int32, view) -> (n, classes). n is the same each time: rows of the last batch may be repeated.
    mix_of: of `mixing`, if views mix examples; likewise (rows, view) -> (partners (n,), weights (n,)).
    batch: n.
    chunk: rows after which a killed build continues; one that continues keeps its own.
    stream: where the size and the progress are shown; sys.stderr if None.
    teacher: how errors call it.

  Raises:
    UserError: the folder holds another cache or a damaged one, it cannot be written or has no room, the logits are not
      finite or not (n, classes), or the cache mixes other examples.
  """
  path = Path(path)
  if key.mixed != (mix_of is not None):
    raise ValueError("mix_of is needed where the key's augmentation mixes examples, and only there")
  if not files.is_whole(files.load(path, key), key):
    with files.lock(path, stream):
      record = files.load(path, key)
      if not files.is_whole(record, key):
        _say_size(path, key, record, stream)
        _fill(path, key, record or files.start(path, key, chunk), logits_of, mix_of, batch, stream, teacher)
  cache = read(path, key)
  if mix_of is not None:
    _check_mix(path, cache, mix_of, batch)
  return cache


def read(path: str | Path, key: Key) -> Cache:
  """A finished cache; every byte is compared with its checksum.

  Raises:
    UserError: there is none, or it is another one, not finished, or damaged.
  """
  path = Path(path)
  record = files.load(path, key)
  if record is None:
    raise UserError(f"there is no cache of a teacher's logits at {path}")
  if not files.is_whole(record, key):
    raise UserError(
      f"the cache at {path} is not finished: {record.done} of {files.chunks_of(record, key)} chunks; build it on"
    )
  files.check(path, key, record)
  arrays = files.mapped(path, key)
  mix = {name: arrays.pop(name) for name in (files.PARTNER, files.WEIGHT) if name in arrays}
  return Cache(key, arrays, mix)


def _say_size(path: Path, key: Key, record: files.Record | None, stream: files.Stream | None) -> None:
  """Prints what the cache will take, and refuses it where there is no room."""
  size = (key.classes, key.views, key.form, key.top_k)
  needed = logit_codes.bytes_needed(key.examples, *size, mixed=key.mixed)
  form = key.form if key.top_k is None else f"the {key.top_k} largest in {key.form}"
  views = f"{key.views} view" + ("s" if key.views > 1 else "")
  text = f"{key.examples:,} examples x {views} x {key.classes:,} classes as {form}: {size_text(needed)} in {path}"
  print(f"teacher cache: {text}", file=stream or sys.stderr, flush=True)
  there = 0 if record is None else record.done * record.rows
  left, free = logit_codes.bytes_needed(key.examples - there, *size, mixed=key.mixed), shutil.disk_usage(path).free
  if left > free:
    raise UserError(f"the cache at {path} needs {size_text(left)} of disk; {size_text(free)} are free")


def size_text(count: int) -> str:
  """Bytes as people read them: 812 B, 4.8 MB, 1.23 GB."""
  power = next((power for power in range(4) if count < 999.5 * 1000**power), 4)
  return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _fill(
  path: Path,
  key: Key,
  record: files.Record,
  logits_of: LogitsOf,
  mix_of: MixOf | None,
  batch: int,
  stream: files.Stream | None,
  teacher: str,
) -> None:
  """Adds the chunks that are missing."""
  files.check(path, key, record)
  batch = min(batch, key.examples)
  sizes = [min(record.rows, key.examples - start) for start in range(0, key.examples, record.rows)]
  steps = [-(-size // batch) * key.views for size in sizes]
  step = sum(steps[: record.done])
  with Progress(sum(steps), start=step, label="teacher cache", stream=stream) as bar:
    while not files.is_whole(record, key):
      rows = record.done * record.rows + np.arange(sizes[record.done], dtype=np.int32)
      views: list[dict[str, np.ndarray]] = []
      for view in range(key.views):
        parts = []
        for part in _parts(rows, view, key, logits_of, mix_of, batch, teacher):
          parts.append(part)
          step += 1
          bar.update(step)
        views.append({name: np.concatenate([part[name] for part in parts])[: len(rows)] for name in parts[0]})
      record = files.append(path, key, record, {name: np.stack([v[name] for v in views], 1) for name in views[0]})


def _parts(
  rows: np.ndarray, view: int, key: Key, logits_of: LogitsOf, mix_of: MixOf | None, batch: int, teacher: str
) -> Iterator[dict[str, np.ndarray]]:
  """The arrays of these rows in one view, a batch at a time; the last row is repeated to fill the last batch."""
  batches = np.arange(-(-len(rows) // batch) * batch).clip(max=len(rows) - 1).reshape(-1, batch)
  # All are asked for before the first is waited for, so that a device is not idle while the host encodes.
  asked = [(logits_of(rows[at], view), mix_of(rows[at], view) if mix_of else None) for at in batches]
  for at, (given, mixed) in zip(batches, asked, strict=True):
    logits = np.asarray(given).astype(np.float32)
    if logits.shape != (batch, key.classes):
      raise UserError(f"the teacher's logits have shape {logits.shape}; expected {(batch, key.classes)}")
    if len(wrong := np.flatnonzero(~_storable(logits, key))):
      raise UserError(
        f"the logits of {teacher} are not finite for row {rows[at][wrong[0]]} in view {view}; expected numbers, or, "
        "stored as they are in float32 or float16, -inf for an excluded class"
      )
    mix = {} if mixed is None else {files.PARTNER: np.asarray(mixed[0]), files.WEIGHT: np.asarray(mixed[1])}
    yield {**logit_codes.encode(logits, key.form, key.top_k), **mix}


def _storable(logits: np.ndarray, key: Key) -> np.ndarray:
  """(n,) bools: rows of numbers; the forms that keep each logit keep -inf of an excluded class, too."""
  keeps_each = key.top_k is None and key.form != "int8"
  return np.isfinite(np.max(logits if keeps_each else np.abs(logits), axis=1))


def _check_mix(path: Path, cache: Cache, mix_of: MixOf, batch: int) -> None:
  """Compares a few stored partners and weights with this run's."""
  rows = np.arange(min(batch, cache.key.examples), dtype=np.int32)
  for view in range(min(cache.key.views, 2)):
    partners, weights = map(np.asarray, mix_of(rows, view))
    same = (cache.mix[files.PARTNER][rows, view] == partners).all()
    if not same or np.abs(cache.mix[files.WEIGHT][rows, view] - weights).max() > 1e-4:
      raise UserError(f"the cache at {path} mixes {teacher_key.WHAT['pixels']}; delete it and it is built again")
