"""Public models, traced and edited through their jaxprs: the checks that pass, and the operations that are refused.

python -m benchmarks.other_models --sources DIR [--only NAME] [--checks lifted file int8]
  [--out benchmarks/results/other_models.json] [--page docs/models.md]

DIR holds clones of the public repositories, side by side. Every check is an equality with the unedited model; a check
that raises a `UserError` is recorded as refused, any other exception as failed.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compilation dominates the time

import jax
import jax.numpy as jnp
import numpy as np

import quant
from benchmarks import other_models_files as files
from benchmarks.other_models_files import relative
from benchmarks.other_models_table import ENTRIES, Built, Entry
from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import map_named

STEP = 2.0**-7  # of the grid in the check of quantized kernels: a power of two is exact in every float type
NEAR = 0.1  # relative error of w8a8 in the Euclidean norm; the weights are random, which is harder than trained ones
Result = dict[str, Any]


def text(fn: Callable[..., Any], *args: Any) -> str:
  def called(*args: Any) -> Any:
    return fn(*args)

  return jax.jit(called).lower(*args).as_text()


def floats(tree: Any) -> list[Any]:
  return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def both(fn: Callable[..., Any], variables: Any, inputs: tuple[Any, ...]) -> Any:
  """Returns the outputs, and the gradient of the sum of their squares with respect to the parameters."""

  def loss(params: Any, rest: Any, inputs: Any) -> Any:
    out = fn({"params": params, **rest}, *inputs)
    return sum((jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in floats(out)), jnp.zeros(())), out

  rest = {name: tree for name, tree in variables.items() if name != "params"}
  return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"], rest, inputs)


def same(found: Any, expected: Any) -> tuple[bool, str]:
  """Returns whether two trees are bitwise equal, and their largest relative difference."""
  pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
  worst = max((relative(a, b) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.number)), default=0.0)
  equal = all(np.array_equal(a, b, equal_nan=True) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.number))
  return equal, "" if equal else f"largest relative difference {worst:.1e}"


# The checks: (built, notes) -> None where it does not apply, or (passed, remark).


def check_trace(built: Built, notes: Result) -> Any:
  found = graph.trace(built.fn, built.variables, *built.inputs)
  sites = [op for op in found.sites.values() if op.kind in ("dot", "conv")]
  kernels = [op for op in sites if op.kernel_index is not None]
  unnamed = [op.name for op in kernels if op.inputs[op.kernel_index].leaf is None]
  matrices = {name for name, leaf in graph_leaves(built.variables).items() if leaf.ndim > 1}
  read = {op.inputs[op.kernel_index].leaf for op in kernels}
  notes |= {"sites": len(sites), "kernels": len(kernels), "macs": int(found.total)}
  notes["not kernels"] = sorted(matrices - read)
  notes["kinds"] = {k: sum(op.kind == k for op in found.sites.values()) for k in graph.ops.KINDS if k != "other"}
  return not unnamed, f"unnamed: {', '.join(unnamed)}" if unnamed else ""


def graph_leaves(variables: Any) -> dict[str, Any]:
  found: dict[str, Any] = {}
  map_named(lambda name, leaf: found.setdefault(name.removeprefix("params/"), leaf), variables)
  return found


def check_text(built: Built, notes: Result) -> Any:
  del notes
  for mode, fn in modes(built).items():
    again, plain = (text(mapped(built, f, mode), built.variables, *built.inputs) for f in (rewritten(fn), fn))
    if again != plain:
      return False, f"{mode} lowers to another text"
  return True, ""


def rewritten(fn: Callable[..., Any], **more: Any) -> Callable[..., Any]:
  again = graph.rewrite(fn, lambda op, xs, extras: None, **more)
  return lambda variables, *xs: again({}, variables, *xs)[0]


def modes(built: Built) -> dict[str, Callable[..., Any]]:
  return {"evaluation": built.fn} | ({} if built.train is None else {"training": built.train})


def mapped(built: Built, fn: Callable[..., Any], mode: str) -> Callable[..., Any]:
  """Returns the function inside its device axis, if it needs one in training."""
  if built.axis is None or mode == "evaluation":
    return fn
  mesh, spec = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (built.axis,)), jax.P(built.axis)
  specs = (jax.P(), *(spec for _ in built.inputs))
  return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=(spec, jax.P()))


def check_everything(built: Built, notes: Result) -> Any:
  del notes
  for mode, fn in modes(built).items():
    pair = (both(mapped(built, f, mode), built.variables, built.inputs) for f in (rewritten(fn, everything=True), fn))
    equal, remark = same(*pair)
    if not equal:
      return False, f"{mode}: {remark}"
  return True, ""


def check_kernels(built: Built, notes: Result) -> Any:
  """Compares a visitor that rounds each kernel with the function of rounded parameters.

  Skips kernels computed from parameters (standardised, concatenated) and tables that are also looked up.
  """
  found = graph.trace(built.fn, built.variables, *built.inputs)
  looked_up = {x.leaf for op in found.ops.values() if "|gather" in op.name for x in op.inputs if x.exact}
  chosen = {
    op.name: op.inputs[op.kernel_index].leaf
    for op in found.sites.values()
    if op.kernel_index is not None and op.inputs[op.kernel_index].exact and op.frozen is None
    if op.inputs[op.kernel_index].leaf not in looked_up
  }
  notes["rounded kernels"] = len(chosen)
  if not chosen:
    return None
  grid = quant.Grid(jnp.asarray(STEP), jnp.zeros((), jnp.int32), 8, True, True, None)

  def visit(op: Any, inputs: tuple[Any, ...], extras: Any) -> Any:
    if op.name not in chosen:
      return None
    k = op.kernel_index
    return op.bind(*inputs[:k], quant.fake_quant(inputs[k], grid), *inputs[k + 1 :]), {}

  leaves = set(chosen.values())

  def explicit(variables: Any, *xs: Any) -> Any:
    def rounded(name: str, leaf: Any) -> Any:
      return quant.fake_quant(leaf, grid) if name.removeprefix("params/") in leaves else leaf

    return built.fn(map_named(rounded, variables), *xs)

  again = graph.rewrite(built.fn, visit)
  found_values = both(lambda v, *xs: again({}, v, *xs)[0], built.variables, built.inputs)
  expected = both(explicit, built.variables, built.inputs)
  equal, remark = same(found_values, expected)
  pairs = zip(jax.tree.leaves(found_values), jax.tree.leaves(expected), strict=True)
  close = equal or all(relative(a, b) < 1e-5 for a, b in pairs)
  plain = jax.jit(built.fn)(built.variables, *built.inputs)
  return close and not same(found_values[0][1], plain)[0], remark


def check_names(built: Built, notes: Result) -> Any:
  """Compares the names of operations and activations in training and evaluation."""
  del notes
  if built.train is None:
    return None
  found: list[dict[str, Any]] = []

  def traced(fn: Callable[..., Any]) -> Callable[..., Any]:
    def called(variables: Any, *xs: Any) -> Any:
      found.append(named(graph.trace(fn, variables, *xs)))
      return fn(variables, *xs)

    return called

  for mode, fn in modes(built).items():  # traced where it stands, inside the device axis
    jax.eval_shape(mapped(built, traced(fn), mode), built.variables, *built.inputs)
  one, other = found
  differ = sorted(set(one.items()) ^ set(other.items()))
  return not differ, f"{len({name for name, _ in differ})} differ, such as {differ[0]}" if differ else ""


def named(found: Any) -> dict[str, tuple[str | None, ...]]:
  return {op.name: tuple(x.tensor for x in op.inputs) for op in found.sites.values() if op.kind != "output"}


def check_quantize(built: Built, notes: Result) -> Any:
  model = quant.quantize(built.fn, "w8a8")
  qparams, state = jax.jit(model.init)(built.variables, *built.inputs)
  out, state = jax.jit(model.observe)(state, built.variables, *built.inputs)
  qparams, state = model.freeze(qparams, state, built.variables)
  rounded, _ = jax.jit(model.apply)(qparams, state, built.variables, *built.inputs)
  plain = jax.jit(built.fn)(built.variables, *built.inputs)
  if max(relative(a, b) for a, b in zip(floats(out), floats(plain), strict=True)) > 1e-4:
    return False, "observing changes the outputs"
  a, b = (np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in floats(t)]) for t in (rounded, plain))
  error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
  notes |= {"quantizers": len(state), "w8a8 error": round(error, 4)}
  return 0 < error < NEAR, f"relative error {error:.3f}"


def check_fold(built: Built, notes: Result) -> Any:
  if "batch_stats" not in built.variables:
    return None
  net = graph.fold_batch_norms(graph.net(built.fn, built.variables, *built.inputs))
  norms = sum(name.endswith("var") for name in graph_leaves(built.variables))
  notes["batch norms"] = f"{len(net.edits)} of {norms} folded"
  pairs = zip(
    jax.tree.leaves(jax.jit(net.infer)(net.variables, *built.inputs)),
    jax.tree.leaves(jax.jit(built.fn)(built.variables, *built.inputs)),
    strict=True,
  )
  error = max(relative(a, b) for a, b in pairs)
  return error < 1e-5 and len(net.edits) > 0, f"{notes['batch norms']}, relative error {error:.1e}"


CHECKS = {
  "traced": check_trace,
  "same text": check_text,
  "rebuilt": check_everything,
  "names": check_names,
  "kernels": check_kernels,
  "w8a8": check_quantize,
  "folded": check_fold,
  "lifted": files.check_lift,
  "file": files.check_file,
  "int8": files.check_int8,
}
FILES = {"lifted", "file", "int8"}


def run(entry: Entry, sources: Path, checks: list[str]) -> Result:
  """Runs these checks of one model."""
  root = sources / entry.repository.split("/")[-1]
  result: Result = {"name": entry.name, "repository": entry.repository, "file": entry.file, "checks": {}}
  result["version"] = version(root) if "/" in entry.repository else installed(entry.repository)
  started, notes = time.perf_counter(), {}
  try:
    built = entry.build(root)
    jax.eval_shape(built.fn, built.variables, *built.inputs)
  except Exception as error:
    return {**result, "not built": sentence(error)}
  for name in checks:
    try:
      found = CHECKS[name](built, notes)
      status = {"status": "-"} if found is None else {"status": "pass" if found[0] else "fail", "remark": found[1]}
    except UserError as error:
      status = {"status": "refused", "remark": str(error)}
    except Exception as error:
      status = {"status": "fail", "remark": sentence(error)}
    result["checks"][name] = status
    jax.clear_caches()
  return {**result, "notes": notes, "seconds": round(time.perf_counter() - started, 1)}


def sentence(error: Exception) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def version(root: Path) -> str:
  commit = root / "COMMIT"  # for a copy without its history
  if commit.exists():
    return commit.read_text().strip()[:12]
  done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
  return done.stdout.strip()[:12] or "unknown"


def installed(package: str) -> str:
  from importlib import metadata

  return metadata.version(package)


def merged(before: Result, now: Result) -> Result:
  """Returns a model's results with those of the checks that ran now in place of earlier ones."""
  if "not built" in now or "not built" in before:
    return now
  both = {
    name: {**before["checks"], **now["checks"]}[name]
    for name in CHECKS
    if name in {**before["checks"], **now["checks"]}
  }
  return {**before, **now, "checks": both, "notes": {**before["notes"], **now["notes"]}}


def used(checks: list[str]) -> dict[str, str]:
  """Returns the versions of what these checks ran with: jax and flax, and of files their runtimes and the day."""
  found = {} if set(checks) <= FILES else {"jax": jax.__version__, "flax": installed("flax")}
  if set(checks) & FILES:
    found |= {"files jax": jax.__version__, "files day": time.strftime("%Y-%m-%d")}
    found |= {name: installed(name) for name in ("ai-edge-litert", "onnxruntime")}
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sources", type=Path, required=True, help="the directory with the clones")
  parser.add_argument("--only", default="", help="the name of one model; the other results are kept")
  parser.add_argument(
    "--checks", nargs="+", choices=CHECKS, default=list(CHECKS), help="the results of others are kept"
  )
  parser.add_argument("--out", type=Path, default=Path("benchmarks/results/other_models.json"))
  parser.add_argument("--page", type=Path, default=Path("docs/models.md"))
  args = parser.parse_args()
  before = json.loads(args.out.read_text()) if args.out.exists() else {"models": [], "versions": {}}
  results = {one["name"]: one for one in before["models"]}
  for entry in ENTRIES:
    if args.only in ("", entry.name):
      one = run(entry, args.sources, args.checks)
      print(one["name"], one.get("not built") or {k: v for k, v in one["checks"].items()}, flush=True)
      results[entry.name] = merged(results.get(entry.name, one), one)
  ordered = [results[entry.name] for entry in ENTRIES if entry.name in results]
  versions = {**before["versions"], **used(args.checks)}
  args.out.write_text(json.dumps({"versions": versions, "models": ordered}, indent=1) + "\n")
  from benchmarks.other_models_page import page

  args.page.write_text(page(ordered, versions, list(CHECKS)))


if __name__ == "__main__":
  main()
