"""The key of a cache of teacher logits: the teacher, the examples and their views, as plain data."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import numpy as np

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.data import augment
from leanax.engine.data.augment import Augment
from leanax.engine.data.batches import Input
from leanax.engine.data.preprocess import to_json
from leanax.engine.store import leaves, logit_codes

SAMPLE = 16  # examples whose pixels are hashed, to detect other random numbers
SPLIT = ("image", "id")  # not the labels: runs with few labels share a teacher


class Key(NamedTuple):
  """Identifies stored logits: equal keys have equal logits. Plain JSON data.

  Attributes:
    teacher: `teacher_hash`.
    data: `data_hash`.
    augment: the entries of Augment without `views`; empty without augmentation, where there is one view.
    preprocess: "mean", "std" and "scale", and the "dtype" of the network's input.
    views: number of views.
    pixels: a hash of a few augmented examples, since random numbers may change between versions of jax; "" without
      augmentation.
    form: of the stored logits.
    top_k: of the stored logits.
    examples: N.
    classes: C.
  """

  teacher: str
  data: str
  augment: Mapping[str, Any]
  preprocess: Mapping[str, Any]
  views: int
  pixels: str
  form: str
  top_k: int | None
  examples: int
  classes: int

  @property
  def name(self) -> str:
    """Sixteen hexadecimal digits, the unique name of the cache's folder."""
    return hashlib.sha256(json.dumps(plain(self), sort_keys=True).encode()).hexdigest()[:16]

  @property
  def mixed(self) -> bool:
    """True if views mix examples."""
    return bool(self.augment.get("mixup") or self.augment.get("cutmix"))


WHAT = {
  "teacher": "another teacher",
  "data": "another data set",
  "augment": "another augmentation",
  "preprocess": "another preprocessing",
  "views": "another number of views",
  "pixels": "other random changes of the same augmentation, perhaps those of another version of jax",
  "form": "another form",
  "top_k": "another top_k",
  "examples": "another number of examples",
  "classes": "another number of classes",
}


def key_of(
  teacher: str, arrays: Mapping[str, jax.Array], spec: Input, classes: int, form: str, top_k: int | None = None
) -> Key:
  """Returns the key of a teacher's logits on a training split.

  Args:
    teacher: `teacher_hash`.
    arrays: the split, of `splits.device_arrays`.
    spec: the settings of the student's input.
    classes: number of logits per example.
    form: one of `logit_codes.FORMS`.
    top_k: see `logit_codes`.

  Raises:
    UserError: the number of views is not fixed, or the form does not fit.
  """
  logit_codes.fields(classes, form, top_k)
  changes, still = spec.augment, spec.augment.is_still
  if not still and changes.views is None:
    raise UserError("augment.views is None, a new view each epoch, whose logits cannot be stored; expected a number")
  entries = {} if still else {name: value for name, value in asdict(changes).items() if name != "views"}
  preprocess = {**to_json(spec.preprocess), "dtype": np.dtype(spec.dtype).name}
  views, pixels = 1 if still else changes.views or 1, "" if still else _pixels(arrays, changes)
  return Key(teacher, data_hash(arrays), entries, preprocess, views, pixels, form, top_k, len(arrays["id"]), classes)


def _pixels(arrays: Mapping[str, jax.Array], changes: Augment) -> str:
  move = jax.jit(lambda images, ids, view: augment.move(images, ids, view, changes))
  images, ids = arrays["image"][:SAMPLE], arrays["id"][:SAMPLE]
  return tree_hash([move(images, ids, np.int32(view)) for view in range(min(changes.views or 1, 2))])[:16]


def teacher_hash(trees: Any, recipe: Any = None) -> str:
  """Returns the SHA-256 of a teacher's arrays and function.

  Args:
    trees: its arrays, in any tree.
    recipe: JSON data that identifies its function.
  """
  return tree_hash(trees, json.dumps(recipe, sort_keys=True))


def data_hash(arrays: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of a split's images and ids."""
  return tree_hash({name: arrays[name] for name in SPLIT})


def tree_hash(tree: Any, text: str = "") -> str:
  """Returns the SHA-256 of a text and of the leaves' names, shapes, dtypes and bytes, in any order."""
  whole = hashlib.sha256(json.dumps(text).encode())
  for name, leaf in sorted(named_leaves(tree).items()):
    array = np.ascontiguousarray(leaves.to_host(leaves.stored(leaf)))
    # The header line has the number of bytes, so that different trees give different sequences.
    whole.update(f"\n{json.dumps([name, *leaves.shape_dtype(leaf), array.nbytes])}\n".encode())
    whole.update(array.reshape(-1).view(np.uint8).data)
  return whole.hexdigest()


def plain(key: Key) -> dict[str, Any]:
  """Returns a key as JSON data."""
  return json.loads(json.dumps(key._asdict()))


def compare(saved: Mapping[str, Any], key: Key, where: str) -> None:
  """Refuses a cache of another key.

  Args:
    saved: `plain` of the cache's key.
    key: the key of this run.
    where: the cache's path.

  Raises:
    UserError: names the first part that differs, with both values.
  """
  for part, wanted in plain(key).items():
    there = saved.get(part)
    if there != wanted:
      if isinstance(wanted, dict) and isinstance(there, dict) and wanted and there:
        differing = [name for name in {**wanted, **there} if wanted.get(name) != there.get(name)]
        there, wanted = ({name: value.get(name) for name in differing} for value in (there, wanted))
      raise UserError(f"the cache at {where} is of {WHAT[part]}: {_short(there)}, expected {_short(wanted)}")


def _short(value: Any) -> str:
  if isinstance(value, dict):
    return ", ".join(f"{name}={each}" for name, each in value.items()) or "none"
  return value[:16] if isinstance(value, str) else str(value)
