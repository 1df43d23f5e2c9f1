"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn contains, so that no network is needed.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998),
its test part, as packaged by scikit-learn (BSD). The packaged file is read directly: importing scikit-learn costs
seconds.

Pixels are 0 to 16 in the source and are multiplied by 15 (0 to 240), so that all sets share one preprocessing scale.

The source has no standard split. Ours: sort the rows by (label, row number); place i of that list goes to the test
split if i mod 5 is 0, to the validation split if it is 3, and to the training split otherwise: 1,078 / 359 / 360
images, stratified by class, without a random generator.
"""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from leanax.core.errors import UserError
from leanax.engine.data.splits import Dataset, Split, make_split

SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
ROWS = 1797


def load() -> Dataset:
  """Loads the digits with our fixed stratified split; ids are row numbers of the source.

  Raises:
    UserError: scikit-learn is not installed, or its file has another checksum.
  """
  table = read(packaged_file())
  images = (table[:, :64] * 15).reshape(ROWS, 8, 8, 1)
  labels = table[:, 64]
  order = np.argsort(labels, kind="stable")
  place = np.arange(ROWS) % 5
  classes = tuple(str(digit) for digit in range(10))

  def part(name: str, chosen: np.ndarray) -> Split:
    rows = np.sort(order[chosen])
    return make_split(images[rows], labels[rows], rows, classes, f"digits/{name}")

  return Dataset(
    train=part("train", (place != 0) & (place != 3)),
    validation=part("validation", place == 3),
    test=part("test", place == 0),
  )


def packaged_file() -> Path:
  """Finds the file without importing scikit-learn."""
  spec = importlib.util.find_spec("sklearn")
  if spec is None or not spec.submodule_search_locations:
    raise UserError("data set 'digits' is embedded in scikit-learn, which is not installed: pip install scikit-learn")
  return Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")


def read(path: Path) -> np.ndarray:
  """Reads the (1797, 65) uint8 table: 64 pixels and the label.

  Raises:
    UserError: the file is missing or damaged, or has another checksum.
  """
  try:
    text = gzip.decompress(path.read_bytes())
  except FileNotFoundError as error:
    raise UserError(f"{path}: no such file; expected the digits that scikit-learn packages") from error
  except (OSError, EOFError, ValueError) as error:
    raise UserError(f"{path}: cannot be unpacked ({error}); reinstall scikit-learn") from error
  if hashlib.sha256(text).hexdigest() != SHA256:
    raise UserError(
      f"{path}: is not the table of digits that was expected (its checksum differs); reinstall scikit-learn"
    )
  return np.loadtxt(text.decode().splitlines(), np.uint8, delimiter=",")
