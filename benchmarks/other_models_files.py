"""The checks of public models as files: lifted, written in float, and in int8 with codes compared."""

from typing import Any

import jax
import numpy as np

import quant
from benchmarks.other_models_table import Built
from leanax import deploy, graph

Result = dict[str, Any]
LIFTED = 1e-4  # of the largest number of an output
AGREE = 0.99  # of the codes of simulation and file, within one step


def relative(found: Any, expected: Any) -> float:
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  return float(np.abs(found - expected).max(initial=0.0) / max(np.abs(expected).max(initial=0.0), 1e-30))


def check_lift(built: Built, notes: Result) -> Any:
  """Compares the reference interpreter on the lifted network with the function."""
  fn, variables, example = _prepared(built)
  network = deploy.lift(fn, variables, example)
  notes["layers"] = len(network.layers)
  error = _apart(network, deploy.reference.run(network, _given(built)), _outputs(fn(variables, *built.inputs)))
  return error < LIFTED, f"{len(network.layers)} layers, relative error {error:.1e}"


def check_file(built: Built, notes: Result) -> Any:
  """Compares the float files in their runtimes with the function."""
  del notes
  fn, variables, example = _prepared(built)
  network, expected = deploy.lift(fn, variables, example), _outputs(fn(variables, *built.inputs))
  errors = {}
  for name, kind in (("LiteRT", deploy.litert()), ("ONNX", deploy.onnx())):
    errors[name] = _apart(network, kind.open(kind.write(network)).run(_given(built)), expected)
  remark = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
  return max(errors.values()) < LIFTED, f"relative error {remark}"


def check_int8(built: Built, notes: Result) -> Any:
  """Compares the codes of the int8 LiteRT file with those of the simulation, and with the integer reference's.

  An output that no grid rounds is compared in steps of 1/255 of its range. It passes where 99% of the codes of
  simulation and file agree within one step; or, where a code on a tie has spread through the network, if file and
  reference agree so, and simulation and file have their largest number in each row at the same place.
  """
  fn, variables, example = _prepared(built)
  fn = graph.unrolled(fn)
  rules = [("*", "w8a8")] if built.float_paths is None else [(built.float_paths, "float"), ("*", "w8a8")]
  model = quant.quantize(fn, rules)
  qparams, state = jax.jit(model.init)(variables, *built.inputs)
  _, state = jax.jit(model.observe)(state, variables, *built.inputs)
  qparams, state = model.freeze(qparams, state, variables)
  simulated = _outputs(jax.jit(model.apply)(qparams, state, variables, *built.inputs)[0])
  network = deploy.lift(fn, variables, example, model.grids(qparams, state, variables, *built.inputs))
  ends = [network.tensors[name] for name in network.outputs.values()]
  runner = deploy.litert().open(deploy.litert().write(network))
  made = deploy.ir.arranged(network.outputs, runner.run(_given(built)), "the file")
  judged = deploy.ir.arranged(network.outputs, deploy.reference.run(network, _given(built)), "the reference")
  judged = [deploy.ir.dequantize(x, end) if end.dtype == "int8" else x for x, end in zip(judged, ends, strict=True)]
  apart, judge = (
    np.concatenate([_steps(*one) for one in zip(made, other, ends, strict=True)]) for other in (simulated, judged)
  )
  moves = deploy.ir.Quantize | deploy.ir.Dequantize
  layers = [one for one in network.layers if not isinstance(one, moves)]
  notes["int8 layers"] = sum(network.tensors[one.output].dtype == "int8" for one in layers)
  notes["float layers"] = len(layers) - notes["int8 layers"]
  top = all(np.array_equal(a.argmax(-1), b.argmax(-1)) for a, b in zip(made, simulated, strict=True))
  near, sure = float(np.mean(apart < 1.5)), float(np.mean(judge < 1.5))
  remark = f"simulation and file: {_counted(apart)}, {near:.1%} agree within one step; "
  if near < AGREE:
    remark += f"reference and file: {_counted(judge)}; the largest are {'' if top else 'not '}at the same places; "
  islands = f"{notes['int8 layers']} layers of integers, {notes['float layers']} in float"
  islands += "" if built.float_paths is None else f"; the policy leaves {built.float_paths} in float"
  return near >= AGREE or (top and sure >= AGREE), remark + islands


def _counted(steps: np.ndarray) -> str:
  return f"{np.count_nonzero(steps >= 0.5)} of {steps.size} codes differ, by {np.rint(steps.max()):.0f} at most"


def _prepared(built: Built) -> tuple[Any, Any, Any]:
  """Returns the function and its variables with batch norms folded, and the inputs as `deploy.lift` takes them."""
  fn, variables = built.fn, built.variables
  if "batch_stats" in variables:
    net = graph.fold_batch_norms(graph.net(fn, variables, *built.inputs))
    fn, variables = net.infer, net.variables
  return jax.jit(fn), variables, built.inputs if len(built.inputs) > 1 else built.inputs[0]


def _given(built: Built) -> tuple[np.ndarray, ...]:
  """Returns the inputs as a file takes them."""
  return tuple(np.asarray(leaf) for leaf in jax.tree.leaves(built.inputs))


def _outputs(tree: Any) -> tuple[np.ndarray, ...]:
  return tuple(np.asarray(leaf) for leaf in jax.tree.leaves(tree))


def _apart(network: Any, made: Any, expected: tuple[np.ndarray, ...]) -> float:
  return max(map(relative, deploy.ir.arranged(network.outputs, made, "the network"), expected))


def _steps(made: np.ndarray, simulated: np.ndarray, tensor: Any) -> np.ndarray:
  """Returns by how many steps the numbers of an output differ."""
  size = tensor.scale if tensor.dtype == "int8" else max(float(np.ptp(simulated)), 1e-30) / 255
  return np.ravel(np.abs(made.astype(np.float64) - simulated) / size)
