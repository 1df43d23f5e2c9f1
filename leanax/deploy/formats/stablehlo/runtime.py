"""Opens a .stablehlo file and runs it with jax, without the code that made the model."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from leanax.core.errors import UserError
from leanax.core.texts import quoted
from leanax.deploy import trial
from leanax.deploy.description import Description
from leanax.deploy.formats.base import Runner, Source, check_threads, read, refusal, zeros
from leanax.deploy.formats.stablehlo import program
from leanax.deploy.formats.stablehlo.writer import METADATA, PROGRAM
from leanax.deploy.packed import unpack
from leanax.deploy.packed.header import MAGIC
from leanax.deploy.preprocessing import Preprocessing


def load(source: Source, threads: int = 1) -> Runner:
  """Returns a .stablehlo file, run by jax on its default device; see `formats.base.Open`.

  XLA has one pool of threads for a process, so `threads` changes nothing, and the runner says how many processors there
  are. Each size of a batch is compiled once.
  """
  name, content = read(source, "StableHLO")
  check_threads(threads)
  program.package()
  if content[: len(MAGIC)] != MAGIC:
    raise UserError(f"{name} is no .stablehlo file of this package; expected one of deploy.stablehlo")
  variables, _, metadata = unpack(source, kind="StableHLO")
  trial.check("stablehlo", content, name)
  try:
    weights, exported, meta = _parts(variables, metadata)
    named = len(weights)
    inputs = program.ends(exported.in_avals[named:], meta["inputs"], "input")
    outputs = program.ends(exported.out_avals, meta["outputs"], "output")
    preprocessing = Preprocessing.from_json(meta["preprocessing"].encode()) if "preprocessing" in meta else None
    description = Description.from_json(meta["description"].encode()) if "description" in meta else None
  except UserError as error:
    raise UserError(f"{name}: {error}") from None
  call = jax.jit(exported.call)
  held = jax.device_put(weights)

  def compute(arrays: list[np.ndarray]) -> list[np.ndarray]:
    try:
      return [np.asarray(out) for out in call(held, *arrays)]
    except Exception as error:  # of the compiler, or of the device
      raise refusal("XLA", name, error) from None

  def repeat() -> Callable[[], None]:
    arrays = [zeros(tensor, 1) for tensor in inputs.values()]
    compute(arrays)
    return lambda: jax.block_until_ready(call(held, *arrays))

  threads = os.cpu_count() or 1
  return Runner(name, len(content), inputs, outputs, compute, repeat, preprocessing, threads, description=description)


def _parts(variables: Any, metadata: dict[str, Any]) -> tuple[dict[str, np.ndarray], Any, Mapping[str, Any]]:
  """Returns the weights, the program and what the file says of itself.

  Raises:
    UserError: a file of another kind, or parts that do not fit; the text is without the file's name.
  """
  meta = metadata.get(METADATA)
  if not isinstance(meta, dict) or not isinstance(variables, dict) or variables.keys() != {"params", PROGRAM}:
    raise UserError("it holds no program; expected a file of deploy.stablehlo")
  inputs, outputs = ([*given] if isinstance(given := meta.get(key), list) else [None] for key in ("inputs", "outputs"))
  texts = (*inputs, *outputs, meta.get("jax"), meta.get("preprocessing", ""), meta.get("description", ""))
  if not all(isinstance(text, str) for text in texts):
    raise UserError("it is damaged: what it says of its program cannot be read")
  weights, content = variables["params"], variables[PROGRAM]
  try:
    exported = jax.export.deserialize(bytearray(np.asarray(content, np.uint8).tobytes()))
    program.check(exported)
  except UserError:
    raise
  except Exception as error:  # of flatbuffers or MLIR, which have no base in common
    text = quoted(error, 200)
    raise UserError(
      f"its program, of jax {meta.get('jax')}, cannot be read by jax {jax.__version__}: it is damaged, more than six "
      f"months older or some weeks newer ({type(error).__name__}: {text})"
    ) from None
  expected = jax.tree.structure((({name: 0 for name in weights}, *(0 for _ in inputs)), {}))
  described = {name: (aval.shape, aval.dtype) for name, aval in zip(sorted(weights), exported.in_avals, strict=False)}
  if (
    exported.in_tree != expected
    or exported.out_tree != jax.tree.structure(tuple(0 for _ in outputs))
    or described != {name: (array.shape, array.dtype) for name, array in weights.items()}
  ):
    raise UserError("it is damaged: its program is one of other weights, inputs or outputs")
  platform = jax.export.default_export_platform()
  if platform not in exported.platforms:
    raise UserError(f"its program is for {', '.join(exported.platforms)}, and jax runs on {platform} here")
  return weights, exported, meta
