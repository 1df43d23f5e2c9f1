"""The program of a .stablehlo file: what it takes and gives, and which ones are refused.

It is a function of the weights, a dict by the names that the graph gives leaves, and of the inputs; it returns a tuple.
The first axis of every input and output is the batch, and no other depends on it.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.mlir import ir as mlir_ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from leanax.core.errors import UserError
from leanax.deploy import ir

PLATFORMS = ("cpu", "cuda", "tpu")
INPUTS = ("float32", "int32", "uint8", "bool")
# Calls that are StableHLO's own, or that jax resolves before anything runs. Others are calls of functions of a process,
# which a file from elsewhere could give any pointers.
CALLS = ("shape_assertion", "Sharding", *(f"stablehlo.dynamic_{name}" for name in ("top_k", "reduce_window")))
CALLS += tuple(f"mhlo.{name}" for name in ("asin", "acos", "atan", "sinh", "cosh", "tan", "erf", "topk"))


def package() -> None:
  """Checks that programs can be written and read.

  Raises:
    UserError: the extra is missing.
  """
  try:
    import flatbuffers  # noqa: F401
  except ImportError as error:
    raise UserError(f"StableHLO files need the package flatbuffers: pip install leanax[stablehlo] ({error})") from None


def ends(avals: Sequence[Any], names: Sequence[str], kind: str) -> dict[str, ir.Tensor]:
  """Returns the inputs or the outputs of a program by their names.

  Raises:
    UserError: one without a batch axis in front, with another axis of any size, or an input of a type that is not read;
      the text is without the file's name.
  """
  found = {}
  for name, aval in zip(names, avals, strict=True):
    batch, *sizes = aval.shape or (1,)
    if not jax.export.is_symbolic_dim(batch) or str(batch) != "N" or not all(isinstance(size, int) for size in sizes):
      shape = f"({', '.join(map(str, aval.shape))})"
      raise UserError(
        f"the {kind} {name!r} has the shape {shape}; expected a batch N in front, and no other axis of it"
      )
    if kind == "input" and str(aval.dtype) not in INPUTS:
      raise UserError(f"the input {name!r} is of type {aval.dtype}; expected one of {', '.join(INPUTS)}")
    found[name] = ir.Tensor(name, (None, *sizes), str(aval.dtype))
  return found


def check(exported: Any) -> None:
  """Refuses a program that does more than compute on one device.

  Raises:
    UserError: says what it does; the text is without the file's name.
    Exception: its bytes are no program of this version of jax.
  """
  if exported.nr_devices != 1:
    raise UserError(f"its program is for {exported.nr_devices} devices; expected one")
  if exported.ordered_effects or exported.unordered_effects:
    raise UserError("its program has effects beside its results, such as callbacks; expected none")
  other = sorted(_calls(_module(exported)) - set(CALLS))
  if other:
    raise UserError(f"its program calls {other[0][:80]!r}, which is no operator of StableHLO; expected these alone")


def portable(exported: Any) -> Any:
  """Returns a program without the lines of its source code, in the form of some weeks ago, which older jax reads."""
  text = _module(exported).operation.get_asm(enable_debug_info=False)
  for wanted in ("WEEK_12", "WEEK_4"):  # older readers do not know the newest operators
    requirement = getattr(stablehlo.StablehloCompatibilityRequirement, wanted)
    version = stablehlo.get_version_from_compatibility_requirement(requirement)
    with contextlib.suppress(Exception):  # MLIR's errors have no base in common
      plain = mlir_ir.Module.parse(text, context=_context())
      return dataclasses.replace(exported, mlir_module_serialized=stablehlo.serialize_portable_artifact(plain, version))
  return exported


def _module(exported: Any) -> Any:
  return stablehlo.deserialize_portable_artifact(_context(), exported.mlir_module_serialized)


def _context() -> Any:
  context = mlir.make_ir_context()
  context.attach_diagnostic_handler(lambda _: True)  # errors would be printed beside the exception
  return context


def _calls(module: Any) -> set[str]:
  found = set()

  def see(op: Any) -> Any:
    if "custom_call" in op.name:
      found.add(mlir_ir.StringAttr(op.attributes["call_target_name"]).value)
    return mlir_ir.WalkResult.ADVANCE

  module.operation.walk(see)
  return found
