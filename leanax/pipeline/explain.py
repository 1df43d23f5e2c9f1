"""Tables of an experiment before training: sites of its models, their costs and settings, and layers of its files."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

import quant
from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.engine.train.parallel import AXIS
from leanax.pipeline import build, exporting, start
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Experiment, Stage
from leanax.pipeline.exporting import Prepared
from leanax.pipeline.recipe import Recipe
from leanax.pipeline.stage import check, prepare
from leanax.pipeline.tables.tables import count, size


def explain(config: Experiment) -> str:
  """Returns three kinds of tables: each model's sites with their cost, the sites' settings for each stage that
  quantizes, and the layers of each stage's files, or the sentence that says why there can be none.
  """
  check(config)
  data = build.dataset(config)
  leaves = {name: job.leaves for name, job in prepare(config, data).items()}
  parts = [sites(name, *traces(start.recipe_of(name, config, data.train))) for name in config.models]
  for name in config.run:
    given = config.stages[name]
    parts.append(stage(name, given, start.model_of(given, config, data, leaves, jax.eval_shape)))
  try:
    parts += exports(exporting.prepare(config, leaves))
  except UserError as error:  # an extra is missing; the other tables need none
    parts.append(str(error))
  return "\n\n".join(part for part in parts if part)


def exports(prepared: Mapping[str, Sequence[Prepared]]) -> list[str]:
  """Returns for each network the stages that leave it, and how each of its layers is exported: operator, types, bytes.

  Bytes are those of weights, biases and scales; a file has some more for its graph.
  """
  of: dict[tuple[str, Any], list[str]] = {}  # stages of one network have one table
  for name, each in prepared.items():
    for one in each:
      of.setdefault((one.suffix, one.failure or id(one.network)), []).append(name)
  found = {(one.suffix, one.failure or id(one.network)): one for each in prepared.values() for one in each}
  parts = []
  for (suffix, key), names in of.items():
    network = found[suffix, key].network
    if network is None:
      parts.append(f"{exporting.refusal(names, suffix, str(key))}; {exporting.advice(names)}")
      continue
    whose = f"{suffix.removeprefix('.')} file of stage{'s' if len(names) > 1 else ''} {', '.join(names)}"
    if isinstance(network, deploy.Model):
      parts.append(f"{whose}: the model's own function, {size(_bytes(network.net.variables))} of variables")
      continue
    rows: list[tuple[str, ...]] = [("layer", "operator", "output", "weights", "bytes")]
    held = found[suffix, key].held
    for layer in network.layers:
      kind, made = type(layer).__name__, network.tensors[layer.output].dtype
      constants = (held[layer.name].type, size(held[layer.name].bytes)) if layer.name in held else ("", "")
      rows.append((layer.name, kind, made, *constants))
    total = sum(one.bytes for one in held.values())
    kind = "int8" if network.quantized else "float32"
    parts.append(f"{whose}: {kind}, {size(total)} of weights\n{columns(rows)}")
  parts += [f"stage {name}: no file" for name, each in prepared.items() if not each]
  return parts


def _bytes(variables: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))


def traces(recipe: Recipe) -> tuple[graph.Graph, graph.Graph]:
  """Returns the trace of a model on one example in evaluation mode, and the one in training mode."""
  functions, x = models.functions(recipe), models.example(recipe)
  variables = jax.eval_shape(functions.model.init, jax.random.key(0), x)
  found: list[graph.Graph] = []

  def train(variables: Any, x: jax.Array) -> Any:
    return functions.net.apply(variables, x, train=True, key=jax.random.key(0))

  def with_axis(index: jax.Array) -> jax.Array:  # a model may take statistics over the devices
    found.append(graph.trace(train, variables, x))
    return index

  jax.eval_shape(jax.vmap(with_axis, axis_name=AXIS), jax.ShapeDtypeStruct((1,), "int32"))
  return graph.trace(functions.fn, variables, x), found[0]


def sites(name: str, traced: graph.Graph, trained: graph.Graph) -> str:
  """Returns the table of one model's sites: kind, shapes, costs per example; sites of training only are marked."""
  extra = graph.training_only(trained, traced)
  rows: list[tuple[str, ...]] = [
    ("site", "kind", "output", "MACs", "bit-operations", "weights", "activations", "reads")
  ]
  for row in [*traced.table(), *(row for row in trained.table() if row["name"] in extra)]:
    op = (trained if row["name"] in extra else traced).sites[row["name"]]
    if op.kind == "output":
      continue
    kind = f"{op.kind} (training only)" if op.name in extra else op.kind
    shape = "x".join(map(str, row["output_shape"]))
    costs = (count(row["macs"]), count(row["bit_operations"]), size(row["weight_bytes"]), size(row["activation_bytes"]))
    reads = ", ".join(operand.tensor or operand.leaf or "a constant" for operand in op.inputs)
    rows.append((op.name, kind, shape, *(cost if cost not in ("0", "0 B") else "" for cost in costs), reads))
  return f"model {name}: {count(traced.total)} MACs\n{columns(rows)}"


def stage(name: str, given: Stage, model: models.Trained) -> str:
  """Returns the settings of a stage's quantization, each with the rule that it came from.

  Args:
    name: the stage's.
    given: its config.
    model: the float model that it quantizes; of its variables shapes are enough.
  """
  policy = build.policy(given.quant)
  if policy is None:
    return ""
  recipe, folded = model.recipe, models.fold_shapes(model)
  fn, example = models.functions(folded.recipe).fn, models.example(recipe)
  quantized = quant.quantize(fn, policy)
  found = quantized.explain(folded.variables, example)
  traced = graph.trace(fn, folded.variables, example)
  settings = {site: (one.setting.weights, one.setting.activations) for site, one in found.items()}
  bits = {site: (w.bits if w else 32, a.bits if a else 32) for site, (w, a) in settings.items()}
  costs = {row["name"]: row for row in traced.table(bits)}
  rows = [("site", "setting", "bit-operations", "weights", "rule", "note")]
  for site, (setting, rule, note) in found.items():
    macs = count(costs[site]["bit_operations"]) if site in costs and costs[site]["macs"] else ""
    rows.append((site, str(setting), macs, size(costs[site]["weight_bytes"]) if macs else "", rule, note))
  before, after = (sum(row["bit_operations"] for row in table) for table in (traced.table(), costs.values()))
  text = f"stage {name}: {count(after)} bit-operations, {count(before)} in float\n{columns(rows)}"
  shared = [f"one grid: {', '.join(names)}" for names in quantized.plan(folded.variables, example).shared]
  return "\n".join([text, *shared, *norms(recipe, models.distinct(model.variables))])


def norms(recipe: Recipe, variables: Any) -> list[str]:
  """Returns a line for each batch norm of a model that is quantized: into which site it is folded, or why it is not."""
  if not models.folds(recipe, variables):
    return []
  found = graph.batch_norms(models.functions(recipe).fn, variables, models.example(recipe))
  return [f"{norm.name}: {_norm(norm)}" for norm in found]


def _norm(norm: graph.Norm) -> str:
  if norm.folded:
    return f"folded into {norm.site}"
  stays = "stays" if norm.kernel is None else f"a depthwise convolution with the kernel {norm.kernel}"
  return f"{stays}: {norm.reason}"


def columns(rows: Sequence[Sequence[str]]) -> str:
  """Rows as columns of equal width."""
  widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
  return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
