"""A stage's row of the report: the model in JAX, the exported file in the real runtime, and how far the two agree."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from leanax import deploy, graph
from leanax.core import files
from leanax.engine.data import Preprocess, Split, normalise
from leanax.pipeline import exporting
from leanax.pipeline import trained as models
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


def measure_model(trained: Trained, split: Split) -> tuple[dict[str, Any], np.ndarray]:
  """Returns what is known of a model without a file, with the classes that it predicts, and its (N, classes) logits."""
  logits = models.predict(trained, split.images, precise=True)  # they are compared with the file's
  parameters = jax.tree.leaves(trained.variables["params"])
  plain = models.in_float(trained)
  row = {
    "accuracy": float(np.mean(logits.argmax(-1) == split.labels)),
    "parameters": sum(leaf.size for leaf in parameters),
    "nonzero": sum(int(np.count_nonzero(leaf)) for leaf in parameters),
    "macs": graph.trace(models.functions(plain.recipe).fn, plain.variables, models.example(plain.recipe)).total,
    "decisions": logits.argmax(-1).tolist(),
  }
  return row, logits


def measure_file(
  trained: Trained,
  split: Split,
  path: Path,
  logits: np.ndarray,
  file_format: deploy.Format | None = None,
  description: deploy.Description | None = None,
  layer_seconds: float = 0.0,
) -> tuple[dict[str, Any], deploy.Runner]:
  """Exports a model to `path` and returns what that file does, and the file.

  What is returned holds its layers under "layers" (`report.layers`), and under "layers_latency" the microseconds of
  the whole file and the sum of those of its layers (`report.layer_times`), where they are known; "narrow" has the
  tensors that have few levels of the grid that they share (`report.shared_grids`).

  Args:
    trained: the model.
    split: the examples that are predicted.
    path: where the file goes.
    logits: (N, classes) the model's, with which codes are compared.
    file_format: of the file; by default that of the path's suffix.
    description: what the file says of itself.
    layer_seconds: that the times of its layers may take; 0 for none.

  Raises:
    UserError: what cannot be exported, or what the runtime refuses.
  """
  file_format = file_format or deploy.format_of(path)
  made, content = export(trained, file_format, description)
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write(path, content)
  file = file_format.open(path)
  spec = Preprocess(**trained.recipe.preprocess)
  inputs = np.asarray(jax.jit(lambda images: normalise(images, spec))(split.images))
  decisions = file.run(inputs).argmax(-1)
  row = {
    "file_accuracy": float(np.mean(decisions == split.labels)),
    "file_bytes": len(content),
    "decisions": decisions.tolist(),
    "layers": [],
  }
  if isinstance(made, deploy.Network):
    found = layer_times(made, file_format, layer_seconds)
    row["layers"] = layers(trained, made, file_format, inputs, file.requantize, found.layers if found else {})
    row["narrow"] = narrow(trained, inputs[: examples_of(made)]) if made.quantized else []
    row |= {"layers_latency": {"whole": found.whole, "sum": sum(found.layers.values())}} if found else {}
  if isinstance(made, deploy.Network) and made.quantized:
    pairs = deploy.parity(made, file, inputs, logits)
    row |= {"codes_differ": pairs["simulation/reference"].count, "parity": {k: v._asdict() for k, v in pairs.items()}}
  return row, file


def agrees(row: dict[str, Any], reference: np.ndarray | None) -> dict[str, float]:
  """Returns the share of examples on which a row predicts the reference's classes; the reference itself has 1."""
  return {"agreement": 1.0 if reference is None else float(np.mean(np.array(row["decisions"]) == reference))}
