"""A file format of the tests: numpy's .npz of the layers and tensors, run by the integer reference.

It is found like the formats of deploy, and shows that a format is one file.
"""

import dataclasses
import functools
import io
import json

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from leanax.deploy.formats.base import Format, Runner, read, zeros
from leanax.deploy.preprocessing import Preprocessing

LAYERS = {kind.__name__: kind for kind in ir.Layer.__subclasses__() if kind.__module__ == ir.Layer.__module__}


def npz():
  """The format of .npz files."""
  return Format(".npz", check, write, load)


def check(network):
  ir.check(network)
  for layer in network.layers:
    if type(layer).__name__ not in LAYERS:
      raise UserError(f"layer {layer.name!r} is a {type(layer).__name__}, which .npz files lack")


def write(network):
  check(network)
  arrays, tensors = {}, {}
  for name, tensor in network.tensors.items():
    tensors[name] = {key: value for key, value in tensor._asdict().items() if not isinstance(value, np.ndarray)}
    arrays |= {f"{key} {name}": value for key, value in tensor._asdict().items() if isinstance(value, np.ndarray)}
  layers = [(type(layer).__name__, dataclasses.asdict(layer)) for layer in network.layers]
  head = {"layers": layers, "tensors": tensors, "ends": (network.input, network.output)}
  if network.preprocessing is not None:
    head["preprocessing"] = network.preprocessing.to_json().decode()
  file = io.BytesIO()
  np.savez(file, head=json.dumps(head), **arrays)
  return file.getvalue()


def load(source, threads=1):
  name, content = read(source, "npz")
  if threads < 1:
    raise UserError(f"{threads} threads; expected 1 or more")
  try:
    network = _network(content)
  except Exception as error:
    raise UserError(f"{name} is damaged or no .npz file of a network") from error
  compute = functools.partial(reference.run, network)
  ends = network.tensors[network.input], network.tensors[network.output]
  call = functools.partial(compute, zeros(ends[0], 1))
  return Runner(name, len(content), *ends, compute, lambda: call, network.preprocessing, threads)


def _network(content):
  with np.load(io.BytesIO(content)) as file:
    arrays = {name: file[name] for name in file.files}
  head = json.loads(arrays.pop("head").item())
  tensors = {
    name: ir.Tensor(**{**given, "shape": tuple(given["shape"])}, **_arrays(arrays, name))
    for name, given in head["tensors"].items()
  }
  layers = tuple(
    LAYERS[kind](**{key: _tuples(value) for key, value in fields.items()}) for kind, fields in head["layers"]
  )
  given = head.get("preprocessing")
  how = None if given is None else Preprocessing.from_json(given.encode())
  return ir.check(ir.Network(tuple(layers), tensors, *head["ends"], how))


def _arrays(arrays, name):
  return {key.split(" ", 1)[0]: value for key, value in arrays.items() if key.split(" ", 1)[1] == name}


def _tuples(value):
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
