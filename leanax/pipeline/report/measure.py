"""A stage's row of the report: the model in JAX, the exported file in the real runtime, and how far the two agree."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leanax import deploy, graph
from leanax.core import files
from leanax.engine.data import Split
from leanax.engine.metrics import Metric, accuracy, statistics_of, value_of
from leanax.engine.metrics.kind import sums
from leanax.pipeline import exporting
from leanax.pipeline import trained as models
from leanax.pipeline.report.answers import answers, is_plain
from leanax.pipeline.report.layer_times import layer_times
from leanax.pipeline.report.layers import examples_of, layers
from leanax.pipeline.report.shared_grids import narrow
from leanax.pipeline.trained import Trained


def export(
  trained: Trained, file_format: deploy.Format, description: deploy.Description | None = None
) -> tuple[deploy.Network | deploy.Model, bytes]:
  """Returns what a file is made of, a layer network or the model whole, and the file, which holds the description.

  Both are of integers where these were simulated.
  """
  made = exporting.given(trained, file_format.takes)._replace(description=description)
  return made, file_format.write(made)


def measure_model(
  trained: Trained, split: Split, metrics: Sequence[Metric] = (accuracy(),)
) -> tuple[dict[str, Any], Any]:
  """Returns what is known of a model without a file (`figures`), and its outputs, (N, ...) or a mapping of them."""
  outputs = models.predict(trained, split.images, precise=True)  # they are compared with the file's
  parameters = jax.tree.leaves(trained.variables["params"])
  plain = models.in_float(trained)
  row = {
    "parameters": sum(leaf.size for leaf in parameters),
    "nonzero": sum(int(np.count_nonzero(leaf)) for leaf in parameters),
    "macs": graph.trace(models.functions(plain.recipe).fn, plain.variables, models.example(plain.recipe)).total,
  }
  return figures(outputs, split, metrics) | row, outputs


def figures(outputs: Any, split: Split, metrics: Sequence[Metric], prefix: str = "") -> dict[str, Any]:
  """Returns what outputs for a split are worth.

  Args:
    outputs: (N, ...), or a mapping of them by name.
    split: the examples.
    metrics: of which the first is compared.
    prefix: of the names of the metrics.

  Returns:
    The value of each metric by its name, None where it is not finite; "statistics" of the first one, by which files are
    compared; "per_class" {"metric", "values"} of the first one that has some; "decisions", the class of each example,
    where it has one.
  """
  found: dict[str, Any] = {}
  for place, metric in enumerate(metrics):
    each = statistics_of(metric, outputs, split.labels)
    value = value_of(metric, each)
    found[f"{prefix}{metric.name}"] = value if np.isfinite(value) else None
    if place == 0:
      found["statistics"] = {key: x.tolist() for key, x in each.items()}
    if metric.per_class is not None and "per_class" not in found:
      of_classes = [float(x) if np.isfinite(x) else None for x in np.ravel(metric.per_class(sums(each)))]
      found["per_class"] = {"metric": metric.described(), "values": of_classes}
  if is_plain(split.labels):
    found["decisions"] = answers(outputs, split.labels)[""].tolist()
  return found


def measure_file(
  trained: Trained,
  split: Split,
  path: Path,
  outputs: Any,
  file_format: deploy.Format | None = None,
  description: deploy.Description | None = None,
  layer_seconds: float = 0.0,
  metrics: Sequence[Metric] = (accuracy(),),
) -> tuple[dict[str, Any], deploy.Runner, Any]:
  """Exports a model to `path` and returns what that file does, the file, and its outputs.

  What is returned holds its layers under "layers" (`report.layers`), and under "layers_latency" the microseconds of
  the whole file and the sum of those of its layers (`report.layer_times`), where they are known; "narrow" has the
  tensors that have few levels of the grid that they share (`report.shared_grids`).

  Args:
    trained: the model.
    split: the examples that are predicted.
    path: where the file goes.
    outputs: the model's, with which codes are compared.
    file_format: of the file; by default that of the path's suffix.
    description: what the file says of itself.
    layer_seconds: that the times of its layers may take; 0 for none.
    metrics: of which the first is compared.

  Raises:
    UserError: what cannot be exported, or what the runtime refuses.
  """
  file_format = file_format or deploy.format_of(path)
  made, content = export(trained, file_format, description)
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write(path, content)
  file = file_format.open(path)
  inputs = models.prepared(trained.recipe, split.images)
  given = file.run(inputs)
  row = {**figures(given, split, metrics, "file_"), "file_bytes": len(content), "layers": []}
  if isinstance(made, deploy.Network):
    found = layer_times(made, file_format, layer_seconds)
    row["layers"] = layers(trained, made, file_format, inputs, file.requantize, found.layers if found else {})
    row["narrow"] = narrow(trained, inputs[: examples_of(made)]) if made.quantized else []
    row |= {"layers_latency": {"whole": found.whole, "sum": sum(found.layers.values())}} if found else {}
  if isinstance(made, deploy.Network) and made.quantized:
    pairs = deploy.parity(made, file, inputs, outputs)
    row |= {"codes_differ": pairs["simulation/reference"].count, "parity": {k: v._asdict() for k, v in pairs.items()}}
  return row, file, given
