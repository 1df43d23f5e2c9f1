"""One report of several seeds: means with 95 % intervals of Student's t over the seeds, and the file to ship.

The points that a file loses are taken within each seed, on the same examples, and their interval is over the seeds:
it is of another training, and not of other test examples.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from leanax.pipeline.config.experiment import resized
from leanax.pipeline.report import shipping
from leanax.pipeline.report.snippet import snippet
from leanax.pipeline.tables import measures

RULE = (
  "The loss of a file is its mean over the seeds, and of its seeds it is the one whose model is best on the validation "
  "split. Intervals are 95 % intervals of Student's t over the seeds, of differences within each seed."
)
TIMED = (
  "Times are of one example on one thread, of all files of a seed in turns: the median over the seeds. Speeds are "
  "geometric means of the ratios within each seed, which need not be the ratio of those medians; two files are within "
  "noise where the 95 % interval of that mean holds 1."
)
OTHERS = ("agreement", "answers_agree", "difference", "nonzero", "macs", "file_bytes", "codes_differ")


def rows_of(found: Mapping[str, Any]) -> list[str]:
  """Returns the figures of a stage that are put side by side: of the metrics, and others."""
  names = [measure["name"] for measure in measures.of(found)]
  return [*(key for name in names for key in (name, f"file_{name}")), *OTHERS]


def joint(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the content of the joint result.json.

  Args:
    results: of `compress`, one per seed, two at least.

  Returns:
    {"title", "command", "examples", "metrics", "config", "environment", "seeds", "rows": [{"name", figure: [per
    seed]}], "files": [{"name", "stage", "bytes", the metric, "lost", "wall_us", "cpu_us", "ratio": each per seed}],
    "against", "most_lost", "recommended", "ship": {"seed", "file", "snippet"}, "curves": means, "classes": sums,
    "layers", "layers_latency", "narrow": of the file to ship, "failures": [{"name", "export"}] of stages that lack a
    file}. Files are those that every seed has; without one "files" is empty.
  """
  first = results[0]
  kept = {key: first[key] for key in ("title", "command", "examples", "environment", "metrics") if key in first}
  kept["config"] = {key: value for key, value in first["config"].items() if key != "seed"}
  measure = measures.main(first)
  files = _files(results, measure)
  found = {
    **kept,
    "seeds": [one["config"]["seed"] for one in results],
    "rows": [
      {"name": row["name"], **{key: [one["rows"][place].get(key) for one in results] for key in rows_of(first)}}
      for place, row in enumerate(first["rows"])
    ],
    "files": files,
    "curves": _curves([one["curves"] for one in results]),
    "classes": _classes([one["classes"] for one in results]),
    **({"failures": failures} if (failures := _failures(results)) else {}),
  }
  if not files:
    return found
  most_lost = statistics.median(one["shipping"]["most_lost"] for one in results)
  best = recommended(files, most_lost, measure)
  stage = next(one["stage"] for one in files if one["name"] == best)
  place = max(range(len(results)), key=lambda place: _validation(results[place], stage, measure))
  of = results[place]
  path = f"seed{of['config']['seed']}/files/{best}"
  dtype = next(one["input"] for one in of["shipping"]["files"] if one["name"] == best)
  preprocess = {**of["config"]["preprocess"], "resize": resized(of["config"].get("data", {"kwargs": {}}))}
  program = snippet(path, dtype, preprocess) if of["shipping"].get("snippet", "...") else ""
  ship = {"seed": of["config"]["seed"], "file": path, "snippet": program}
  layers = {key: {best: of[key][best]} for key in ("layers", "layers_latency", "narrow") if best in of.get(key, {})}
  ends = {"against": first["shipping"]["against"], "most_lost": most_lost, "recommended": best, "ship": ship}
  return found | ends | layers


def _files(results: Sequence[Mapping[str, Any]], measure: measures.Measure) -> list[dict[str, Any]]:
  """Returns the figures per seed of each file that every seed has."""
  each = [{one["name"]: one for one in result["shipping"].get("files", [])} for result in results]
  if not all(each):
    return []
  firsts = [next(iter(files.values())) for files in each]
  rows = []
  for name, one in each[0].items():
    if not all(name in files for files in each):
      continue
    same = [files[name] for files in each]
    rows.append(
      {
        "name": name,
        "stage": one["stage"],
        "bytes": [file["bytes"] for file in same],
        measure["name"]: [file[measure["name"]] for file in same],
        "lost": [file["lost"]["points"] for file in same],
        "wall_us": [file["latency"]["wall_median"] for file in same if file.get("latency")],
        "cpu_us": [file["latency"]["cpu_min"] for file in same if file.get("latency")],
        "ratio": [ratio for pair in zip(same, firsts, strict=True) if (ratio := shipping.ratio(*pair))],
      }
    )
  return rows


def _failures(results: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
  """Returns why stages lack a file, once for all seeds with the same reason."""
  seeds: dict[tuple[str, str], list[int]] = {}
  for one in results:
    for row in one["rows"]:
      if row.get("export"):
        seeds.setdefault((row["name"], row["export"]), []).append(one["config"]["seed"])
  every = len(results)
  return [
    {"name": name, "export": why if len(of) == every else f"{why} (seed {', '.join(map(str, of))})"}
    for (name, why), of in seeds.items()
  ]


def _validation(result: Mapping[str, Any], stage: str, measure: measures.Measure) -> float:
  """Returns the last value on the validation split, negative where lower is better."""
  curve = result["curves"].get(stage, {}).get(f"validation_{measure['name']}", [])
  return measures.sign(measure) * curve[-1][1] if curve else 0.0


def _curves(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the mean of each series over the seeds, at the steps that all have."""

  def mean(series: Sequence[Sequence[Any]]) -> list[Any]:
    values = [{step: value for step, value in points if value is not None} for points in series]
    shared = [step for step in values[0] if all(step in one for one in values)]
    return [[step, statistics.fmean(one[step] for one in values)] for step in shared]

  return {
    stage: {key: mean([one.get(stage, {}).get(key, []) for one in each]) for key in metrics}
    for stage, metrics in each[0].items()
  }


def _classes(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the counts of all seeds together; of a metric per class the means, where every seed has a value."""
  if not all(each):
    return {}
  if "values" in each[0]:
    return {
      **each[0],
      "values": {name: _means([one["values"].get(name) for one in each]) for name in each[0]["values"]},
    }
  of = {}
  for name in each[0]["of"]:
    same = [one["of"][name] for one in each if name in one["of"]]
    cells = Counter[tuple[int, int]]()
    for one in same:
      cells.update({(label, other): number for label, other, number in one["taken_for"]})
    if len(same) == len(each):
      right = [sum(counts) for counts in zip(*(one["right"] for one in same), strict=True)]
      of[name] = {"right": right, "taken_for": [[*pair, number] for pair, number in sorted(cells.items())]}
  return {"names": each[0]["names"], "examples": [len(each) * number for number in each[0]["examples"]], "of": of}


def _means(each: Sequence[Sequence[float | None] | None]) -> list[float | None]:
  known = [one for one in each if one is not None]
  return [None if None in values else statistics.fmean(values) for values in zip(*known, strict=True)]


def recommended(
  files: Sequence[Mapping[str, Any]], most_lost: float, measure: measures.Measure = measures.ACCURACY
) -> str:
  """Returns the name of the file to ship, by `shipping.rule` of means over the seeds."""
  name = measure["name"]
  means = [{key: statistics.fmean(one[key]) for key in ("bytes", "lost", name)} for one in files]
  pairs = list(zip(files, means, strict=True))
  good = [(one, mean) for one, mean in pairs if mean["lost"] <= most_lost]
  if good:
    return min(good, key=lambda pair: pair[1]["bytes"])[0]["name"]
  return max(pairs, key=lambda pair: (measures.sign(measure) * pair[1][name], -pair[1]["bytes"]))[0]["name"]
