"""Generates docs/models.md from the results of `benchmarks.other_models`."""

from collections.abc import Sequence
from typing import Any

HEAD = """# Models by others

These {count} models from public repositories test that leanax traces and edits any Flax model through its jaxpr. They
were chosen before any of them was tried, and all are listed, including failures. They are built at small sizes with
random weights (kernels, biases and norms away from 0 and 1) and checked on the CPU with jax {jax} and flax {flax}.

Clone the repositories side by side into one directory, `pip install transformers jraph ml_collections einops
tensorflow tensorflow_datasets tensorboard h5py jaxtyping` beside leanax's own requirements, and run

    python -m benchmarks.other_models --sources DIR

| check | what is compared |
| --- | --- |
| traced | `graph.trace` names every kernel by the parameter that it comes from |
| same text | `graph.rewrite` with nothing visited lowers to the identical StableHLO, evaluation and training |
| rebuilt | every equation built anew (`everything=True`): outputs and gradients bitwise equal, in both modes |
| names | operations and activations have the same names in training as in evaluation |
| kernels | a visitor that rounds kernels equals the function of rounded parameters, outputs and gradients |
| w8a8 | `quant.quantize(fn, "w8a8")`: init, observe, freeze, apply; outputs within 10% of the float ones |
| folded | `graph.fold_batch_norms`: outputs equal to 1e-5 |
| lifted | `deploy.lift` (after folding) and the reference interpreter: outputs equal to 1e-4 |
| file | the float LiteRT and ONNX files in their runtimes: outputs equal to 1e-4 |
| int8 | the int8 LiteRT file (w8a8, calibrated on the inputs, scans written out): codes equal to the simulation's |

"-" means that the check does not apply: no batch norm, no training mode. The check "kernels" skips kernels computed
from parameters (standardised, concatenated) and tables that are also looked up.

int8 passes where 99% of the output codes of simulation and file agree within one step (an output that stays float is
compared in steps of 1/255 of its range). Where fewer do, one code on a tie has spread through random weights; then it
passes if the file's codes are the integer reference's, by the same measure, and the largest number in each row of each
output is at the same place. The remarks give the counts.

The last three columns were made on {files day} with jax {files jax}, ai-edge-litert {ai-edge-litert} and onnxruntime
{onnxruntime}, by

    python -m benchmarks.other_models --sources DIR --checks lifted file int8

where empty modules stood in for TensorFlow and TensorBoard, which some of the files import but no model here uses.

Known limits:

- `everything=True` inlines jitted helpers (`jnp.std` and others, in BiT, the hybrid and the diffusion model). The
  outputs are bitwise equal, but gradients at such a call are added in another order and differ in the last bit (1e-7);
  without inlining the gradients are bitwise equal.
- A kernel concatenated from several parameters (the gates of flax's LSTM) has the name of one of them, and one grid.
- Under `jax.vmap` over groups of a batch, a batch norm's statistics in training look like means over positions, so the
  names differ from those in evaluation; inside a device axis (`shard_map`) they are equal.
- Refused as files, each by a sentence that the remarks give: what loops or rolls by lengths that are data (the LSTM), a
  graph whose nodes of all examples lie along one axis (the graph convolutions), and what draws random numbers (VAE).
- Scans of up to 64 turns, such as stacks of layers, are written out. For int8, quantize `graph.unrolled(fn)`.
- A kernel for each head, such as a query that is a parameter, has no integers in any format: int8 refuses it by a
  sentence until a rule of the policy leaves it in float, as is done for big_vision's ViT.
- Norms, the weighted sums of attention and functions without an exact integer kernel stay float between layers of
  integers in int8 files; the remarks count both.
- The diffusion U-Net fails "int8" for one pair of codes: the first sum of its attention blocks makes 3.500003 steps of
  it, and LiteRT's sums, which are in whole numbers, round that down. The pair stands in 11 of 4,096 places, and random
  weights and norms spread it. Calibrated on inputs that are 1% larger, 9 of 10 images have no code that differs.
"""


def page(results: Sequence[dict[str, Any]], versions: dict[str, str], checks: Sequence[str]) -> str:
  lines = [
    HEAD.format_map({"count": len(results), **versions}),
    "| model | sites | MACs | " + " | ".join(checks) + " |",
  ]
  lines.append("| --- | ---: | ---: |" + " --- |" * len(checks))
  for one in results:
    if "not built" in one:
      lines.append(f"| {one['name']} | not built |" + " |" * (len(checks) + 1))
      continue
    notes, statuses = one["notes"], [one["checks"][name]["status"] for name in checks]
    marks = [f"**{status}**" if status == "fail" else status for status in statuses]
    lines.append(f"| {one['name']} | {notes.get('sites', '')} | {notes.get('macs', 0):,} | " + " | ".join(marks) + " |")
  lines += ["", "## Remarks", ""]
  for one in results:
    lines.append(f"**{one['name']}**: {one['repository']}, `{one['file']}`, {one['version']}.")
    lines += [f"- {line}" for line in _remarks(one)] + [""]
  return "\n".join(lines)


def _remarks(one: dict[str, Any]) -> list[str]:
  if "not built" in one:
    return [f"not built: `{one['not built']}`"]
  notes = one["notes"]
  found = [f"{notes.get('rounded kernels', 0)} of {notes.get('kernels', 0)} kernels rounded in the check of kernels"]
  if notes.get("not kernels"):
    names, most = notes["not kernels"], 4
    more = f" and {len(names) - most} more" if len(names) > most else ""
    first = ", ".join(f"`{name}`" for name in names[:most])
    found.append(f"leaves of two or more axes that give no kernel its name: {first}{more}")
  if "quantizers" in notes:
    found.append(f"{notes['quantizers']} quantizers, relative error {notes['w8a8 error']}")
  for name, check in one["checks"].items():
    if check.get("remark") and not (name == "w8a8" and check["status"] == "pass"):
      found.append(f"{name}, {check['status']}: {check['remark']}")
  return found
