"""What an experiment will do to each site of its models, and by which rule, before anything trains."""

from collections.abc import Sequence
from typing import Any

import jax

import graph
from engine import data as rooms
from pipeline import build, check
from pipeline import trained as models
from pipeline.stage import begin_recipe
from pipeline.tables import count


def explain(config: Any) -> str:
  """Two kinds of tables: each model's sites with their cost, and for each stage that quantizes the sites' settings."""
  build.check(config)
  data = build.dataset(config)
  check.check(config, data)
  split = data.train
  parts = []
  for name in config.models:
    recipe = begin_recipe(name, config, split)
    functions = models.functions(recipe)
    variables = jax.eval_shape(functions.model.init, jax.random.key(0), models.example(recipe))
    parts.append(sites(name, graph.trace(functions.fn, variables, models.example(recipe))))
  for name in config.run:
    parts.append(stage(name, config, split))
  return "\n\n".join(part for part in parts if part)


def sites(name: str, traced: graph.Graph) -> str:
  """One model's sites: kind, shapes and multiply-accumulates of one example."""
  rows = [("site", "kind", "output", "MACs", "reads")]
  for op in traced.sites.values():
    if op.kind == "output":
      continue
    shape = "x".join(map(str, op.outputs[0].shape))
    reads = ", ".join(operand.tensor or operand.leaf or "a constant" for operand in op.inputs)
    rows.append((op.name, op.kind, shape, count(op.macs) if op.macs else "", reads))
  return f"model {name}: {count(traced.total)} MACs\n{columns(rows)}"


def stage(name: str, config: Any, split: rooms.Split) -> str:
  """The settings of a stage's quantization, each with the rule that it came from."""
  policy = build.policy(name, config.stages[name])
  if policy is None:
    return ""
  recipe = begin_recipe(config.stages[name].model, config, split)
  init = models.functions(recipe).model.init
  variables = jax.jit(init)(jax.random.key(0), models.example(recipe))
  folded = models.fold(models.Trained(recipe, variables, {}, {}))
  quantized = models.functions(folded.recipe._replace(rules=policy.rules, ends=policy.ends)).quantized
  assert quantized is not None
  found = quantized.explain(folded.variables, models.example(recipe))
  rows = [("site", "setting", "rule"), *((site, str(setting), rule) for site, (setting, rule) in found.items())]
  return f"stage {name}\n{columns(rows)}"


def columns(rows: Sequence[Sequence[str]]) -> str:
  """Rows as columns of equal width."""
  widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
  return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
