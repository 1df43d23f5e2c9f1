"""A teacher's logits on disk, computed once for all students that see the same views of the same examples.

A cache is a folder: key.json identifies it (`store.teacher_key`), chunks.json lists the finished chunks, and every
array of its form (`store.logit_codes`) is one .npy file that grows by a chunk of rows with all their views
(`store.teacher_files`). A killed build continues after its last chunk and gives the same bytes as an uninterrupted one.
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
from leanax.engine.data.augment import mix_draw
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
    key: identifies the teacher, the data and the views.
    arrays: by name, (N, ...) without augmentation and (N, views, ...) with it; memory-mapped.
    mix: mixup's "mix_partner" (rows) and "mix_weight" (the weight of the example itself), (N, views); else empty.
  """

  key: Key
  arrays: Mapping[str, np.ndarray]
  mix: Mapping[str, np.ndarray]

  @property
  def per_view(self) -> tuple[str, ...]:
    """The names for `Input.per_view`."""
    return tuple(self.arrays) if self.key.augment else ()

  def decode(self, batch: Mapping[str, Array]) -> Float[Array, "b c"]:
    """Decodes a batch's logits from its rows of `arrays`, inside jit."""
    return logit_codes.decode(batch, self.key.classes)


def mixing(arrays: Mapping[str, jax.Array], spec: Input) -> MixOf | None:
  """Returns `build`'s `mix_of` for a training split whose views mix examples, else None."""
  if not spec.augment.mixes:
    return None
  shape = arrays["image"].shape[1:3]
  draw = jax.jit(lambda ids, view: mix_draw(ids, view, spec.augment, len(arrays["id"]), shape)[:2])
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
  """Returns the cache of a key: reads it if it is finished, else continues or builds it.

  Args:
    path: the cache's folder. Processes that build the same cache wait for each other.
    key: identifies the logits.
    logits_of: (rows (n,) int32, view) -> (n, classes). n is constant: rows of the last batch may be repeated.
    mix_of: of `mixing`, if views mix examples: (rows, view) -> (partners (n,), weights (n,)).
    batch: n.
    chunk: rows per chunk, after which a killed build continues; a continued build keeps its own.
    stream: of the size and the progress; sys.stderr if None.
    teacher: the teacher's name in error messages.

  Raises:
    UserError: the folder holds another cache or a damaged one, it cannot be written or the disk is full, the logits are
      not finite or not (n, classes), or the cache was built with other mixup draws.
  """
  path = Path(path)
  if key.mixed != (mix_of is not None):
    raise ValueError("mix_of is needed where the key's augmentation mixes examples, and only there")
  if not files.is_whole(files.load(path, key), key):
    with files.lock(path, stream):
      record = files.load(path, key)
      if not files.is_whole(record, key):
        _print_size(path, key, record, stream)
        _fill(path, key, record or files.start(path, key, chunk), logits_of, mix_of, batch, stream, teacher)
  cache = read(path, key)
  if mix_of is not None:
    _check_mix(path, cache, mix_of, batch)
  return cache


def read(path: str | Path, key: Key) -> Cache:
  """Reads a finished cache after checking its checksums.

  Raises:
    UserError: there is no cache, or it has another key, is not finished, or damaged.
  """
  path = Path(path)
  record = files.load(path, key)
  if record is None:
    raise UserError(f"there is no cache of a teacher's logits at {path}")
  if not files.is_whole(record, key):
    raise UserError(
      f"the cache at {path} is not finished: {record.done} of {files.chunks_of(record, key)} chunks; finish it first"
    )
  files.check(path, key, record)
  arrays = files.mapped(path, key)
  mix = {name: arrays.pop(name) for name in (files.PARTNER, files.WEIGHT) if name in arrays}
  return Cache(key, arrays, mix)


def _print_size(path: Path, key: Key, record: files.Record | None, stream: files.Stream | None) -> None:
  """Prints the size of the cache, and refuses it if the disk is too full."""
  size = (key.classes, key.views, key.form, key.top_k)
  needed = logit_codes.bytes_needed(key.examples, *size, mixed=key.mixed)
  form = key.form if key.top_k is None else f"the {key.top_k} largest in {key.form}"
  views = f"{key.views} view" + ("s" if key.views > 1 else "")
  text = f"{key.examples:,} examples x {views} x {key.classes:,} classes as {form}: {size_text(needed)} in {path}"
  print(f"teacher cache: {text}", file=stream or sys.stderr, flush=True)
  done = 0 if record is None else record.done * record.rows
  remaining, free = logit_codes.bytes_needed(key.examples - done, *size, mixed=key.mixed), shutil.disk_usage(path).free
  if remaining > free:
    raise UserError(f"the cache at {path} needs {size_text(remaining)} of disk; {size_text(free)} are free")


def size_text(count: int) -> str:
  """Formats a number of bytes: 812 B, 4.8 MB, 1.23 GB."""
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
  """Computes and appends the missing chunks."""
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
  """Yields the arrays of rows in one view, per batch; the last batch is padded with the last row."""
  batches = np.arange(-(-len(rows) // batch) * batch).clip(max=len(rows) - 1).reshape(-1, batch)
  # All batches are dispatched before the first result is awaited, so that devices work while the host encodes.
  in_flight = [(logits_of(rows[at], view), mix_of(rows[at], view) if mix_of else None) for at in batches]
  for at, (given, mixed) in zip(batches, in_flight, strict=True):
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
  """Returns the rows that can be stored, (n,) bools: finite, or with -inf in forms that keep every logit."""
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
