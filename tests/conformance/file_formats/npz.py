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
  for name, (_, shape, dtype, grid, data) in network.tensors.items():
    tensors[name] = {"shape": shape, "dtype": dtype}
    if grid is not None:
      arrays[f"scale {name}"] = grid.scale
      tensors[name]["grid"] = {"zero_point": int(grid.zero_point), "bits": grid.bits, "axis": grid.axis}
    if data is not None:
      arrays[f"data {name}"] = data
  layers = [(type(layer).__name__, dataclasses.asdict(layer)) for layer in network.layers]
  head = {"layers": layers, "tensors": tensors, "ends": (dict(network.inputs), dict(network.outputs))}
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
  ends = [{name: network.tensors[t] for name, t in ends.items()} for ends in (network.inputs, network.outputs)]

  def compute(arrays):
    return ir.arranged(network.outputs, reference.run(network, tuple(arrays)), name)

  call = functools.partial(compute, [zeros(tensor, 1) for tensor in ends[0].values()])
  return Runner(name, len(content), *ends, compute, lambda: call, network.preprocessing, threads)


def _network(content):
  with np.load(io.BytesIO(content)) as file:
    arrays = {name: file[name] for name in file.files}
  head = json.loads(arrays.pop("head").item())
  tensors = {}
  for name, given in head["tensors"].items():
    grid = ir.grid(arrays[f"scale {name}"], **given["grid"]) if "grid" in given else None
    tensors[name] = ir.Tensor(name, tuple(given["shape"]), given["dtype"], grid, arrays.get(f"data {name}"))
  layers = tuple(
    LAYERS[kind](**{key: _tuples(value) for key, value in fields.items()}) for kind, fields in head["layers"]
  )
  given = head.get("preprocessing")
  how = None if given is None else Preprocessing.from_json(given.encode())
  return ir.check(ir.Network(tuple(layers), tensors, *head["ends"], how))


def _tuples(value):
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
