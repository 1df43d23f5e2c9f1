"""A small set of the MNIST family, in the original file format, so that the real builder code runs in a second."""

import gzip
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from leanax.engine.data import stock


class Tiny(NamedTuple):
  stock: Any  # stands for TFDS's builder class
  originals: Path
  images: dict[str, np.ndarray]
  labels: dict[str, np.ndarray]


def idx(array: np.ndarray) -> bytes:
  header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
  return gzip.compress(header + array.tobytes(), mtime=0)


@pytest.fixture
def tiny(tmp_path) -> Tiny:
  from tensorflow_datasets.core.download import checksums

  folder = tmp_path / "data" / "mnist"
  folder.mkdir(parents=True)
  random = np.random.RandomState(0)
  images, labels, infos = {}, {}, {}
  url = "http://127.0.0.1:9/tiny/"  # nobody listens on the discard port
  for split, count in (("train", 30), ("test", 10)):
    images[split] = random.randint(0, 256, (count, 28, 28), np.uint8)
    labels[split] = random.randint(0, 10, count).astype(np.uint8)
    for file, array in zip(stock.FILES[split], (images[split], labels[split])):
      data = idx(array)
      (folder / file).write_bytes(data)
      infos[url + file] = checksums.UrlInfo(len(data), hashlib.sha256(data).hexdigest(), file)

  class MNIST(stock.stock_class("mnist"), skip_registration=True):
    URL = url
    url_infos = infos

  return Tiny(MNIST, folder, images, labels)
