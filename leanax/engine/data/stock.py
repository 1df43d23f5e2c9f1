"""MNIST and Fashion-MNIST as TensorFlow Datasets define them, prepared without TensorFlow.

The stock builders unpack, read and encode with TensorFlow. A thin subclass replaces these steps by gzip, numpy and
pillow and keeps name, version, features, checksums and keys, and so the order and the splits.
"""

import contextlib
import gzip
import hashlib
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leanax.core.errors import UserError

FILES = {
  "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
  "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


def tensorflow_datasets() -> Any:
  """Imports tensorflow_datasets on first use.

  Raises:
    UserError: it, or an undeclared dependency of it, is not installed.
  """
  try:
    import array_record  # noqa: F401
    import importlib_resources  # noqa: F401
    import PIL  # noqa: F401
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UserError(
      f"data sets from files need {error.name}, which is not installed:"
      " pip install tensorflow-datasets array_record importlib_resources pillow"
    ) from error
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  return tfds


def stock_class(name: str) -> Any:
  """Returns TFDS's builder class of "mnist" or "fashion_mnist"."""
  tensorflow_datasets()
  from tensorflow_datasets.image_classification import mnist

  return getattr(mnist, NAMES[name])


def without_tensorflow(stock: Any) -> Any:
  """Returns the subclass of a builder of the MNIST family that needs no TensorFlow."""
  from PIL import Image

  class Builder(stock, skip_registration=True):
    name = stock.name

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      # Not download_and_extract: TFDS names extracted files by their file names, which the sets of this family share,
      # so the second set would silently become a copy of the first.
      paths = dl_manager.download({split: [self.URL + file for file in files] for split, files in FILES.items()})
      return {split: self._generate_examples(*map(Path, files)) for split, files in paths.items()}

    def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, dict[str, Any]]]:
      for index, (image, label) in enumerate(zip(read_idx(images, 3), read_idx(labels, 1), strict=True)):
        yield index, {"image": Image.fromarray(image), "label": int(label)}

  return Builder


def read_idx(path: Path, dimensions: int) -> np.ndarray:
  """Reads the uint8 array of a gzipped IDX file (two zero bytes, type 8, number of dimensions, their sizes, the data).

  Raises:
    UserError: the file is not an IDX file of this kind.
  """
  try:
    data = gzip.decompress(path.read_bytes())
  except (OSError, EOFError, ValueError) as error:
    raise UserError(f"{path}: cannot be unpacked: {error}") from error
  start = 4 + 4 * dimensions
  shape = np.frombuffer(data[4:start], ">u4")
  if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != start + int(shape.prod()):
    raise UserError(f"{path}: is not an IDX file of {dimensions}-dimensional bytes")
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def prepare(stock: Any, originals: Path | None, prepared: Path, downloads: Path) -> Any:
  """Prepares a set as array_record, if needed, and returns its builder.

  Args:
    stock: the builder class of TFDS.
    originals: the directory of the four original files; None fetches them from the network.
    prepared: TFDS's data_dir.
    downloads: the directory of fetched files; each set has its own folder.

  Raises:
    UserError: a file is missing or has the wrong checksum, or the network does not answer.
  """
  tfds = tensorflow_datasets()
  from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

  builder = without_tensorflow(stock)(data_dir=prepared, file_format="array_record")
  if is_prepared(builder):
    return builder
  fetched = downloads / stock.name
  if originals is not None:
    check_originals(stock, originals)
  elif not any(fetched.rglob("*.INFO")):
    check_network(stock)
  config = tfds.download.DownloadConfig(
    manual_dir=originals, try_download_gcs=False, force_checksums_validation=True, verify_ssl=True
  )
  try:
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints to stdout, which is for results
      builder.download_and_prepare(download_dir=fetched, download_config=config)
  except (NonMatchingChecksumError, tfds.download.DownloadError) as error:
    raise UserError(f"{stock.name}: what was fetched is not the original: {first_line(error)}") from error
  except OSError as error:  # a full disk, a folder without permission, every failure of the network
    if not is_prepared(builder):  # else another process was faster
      raise UserError(f"{stock.name} cannot be prepared in {prepared}: {first_line(error)}") from error
  return builder


def is_prepared(builder: Any) -> bool:
  """Returns whether the set is prepared; TFDS's own check logs a warning if not."""
  return (Path(builder.data_dir) / "dataset_info.json").exists()


def check_network(stock: Any) -> None:
  """Sends one request without retries; TFDS itself gives up only after minutes.

  Raises:
    UserError: there is no answer; names the alternative.
  """
  url = stock.URL + FILES["train"][1]
  try:
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20):
      pass
  except OSError as error:
    files = ", ".join(FILES["train"] + FILES["test"])
    raise UserError(
      f"{stock.name} cannot be fetched from {url} ({first_line(error)});"
      f" without a network put {files} into DIR/{stock.name} and give data_dir=DIR or set LEANAX_DATA_DIR=DIR"
    ) from error


def check_originals(stock: Any, originals: Path) -> None:
  """Compares the original files with the sizes and checksums that TFDS records.

  Raises:
    UserError: names the file.
  """
  for url, info in stock.url_infos.items():
    path = originals / url.rsplit("/", 1)[-1]
    if not path.exists():
      raise UserError(
        f"{path}: no such file; expected the original file of {stock.name}"
        " (to fetch it, give no data_dir and unset LEANAX_DATA_DIR)"
      )
    if path.stat().st_size != info.size or hashlib.sha256(path.read_bytes()).hexdigest() != info.checksum:
      raise UserError(
        f"{path}: is not the original file of {stock.name}: expected {info.size} bytes with sha256 {info.checksum}"
      )


def first_line(error: Exception) -> str:
  """Returns the first line of an error's text, for use in a sentence."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
