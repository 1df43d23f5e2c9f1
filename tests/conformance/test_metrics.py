"""Every metric of engine, found by walking the package, through one battery. Oracles are numpy written from the
definition of each, example by example; scikit-learn has the same definitions.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.core.methods import methods
from leanax.engine import metrics
from leanax.engine.metrics import kind

N = 24


def of_classes(rng, positions=(), classes=4, ignored=None):
  labels = rng.integers(0, classes, (N, *positions))
  outputs = 2.0 * np.eye(classes)[labels] + rng.normal(size=(N, *positions, classes))
  if ignored is not None:
    labels = np.where(rng.random(labels.shape) < 0.2, ignored, labels)
  return outputs.astype(np.float32), labels.astype(np.int32)


def of_switches(rng, outputs=3):
  labels = rng.integers(0, 2, (N, outputs)).astype(np.uint8)
  return (2.0 * labels - 1 + rng.normal(size=labels.shape)).astype(np.float32), labels


def of_numbers(rng, shape=(2,)):
  labels = rng.normal(size=(N, *shape)).astype(np.float32)
  return labels + 0.3 * rng.normal(size=labels.shape).astype(np.float32), labels


def share(right, known=None):
  every = [bool(r) for r in np.ravel(right)] if known is None else [bool(r) for r in np.asarray(right)[known]]
  return sum(every) / len(every)


def iou(outputs, labels, ignored=None):
  found = []
  pairs = [(int(a), int(b)) for a, b in zip(outputs.argmax(-1).ravel(), labels.ravel()) if b != ignored]
  for c in range(outputs.shape[-1]):
    either = sum(a == c or b == c for a, b in pairs)
    found += [sum(a == c and b == c for a, b in pairs) / either] if either else []
  return sum(found) / len(found)


def rank(outputs, labels, k):
  return share([label in np.argsort(-x, kind="stable")[:k] for x, label in zip(outputs, labels)])


def f1_of(yes, wanted):
  both, found, there = (sum(map(bool, x)) for x in ((yes & wanted).ravel(), yes.ravel(), wanted.ravel()))
  precision, recall = both / max(found, 1), both / max(there, 1)
  return 2 * precision * recall / (precision + recall) if both else 0.0


def wide(fn):
  return lambda x, y: fn(x.astype(np.float64), y.astype(np.float64))


# method: for each of several arguments (the metric, its oracle, the data)
CASES = {
  "accuracy": [
    (metrics.accuracy(), lambda x, y: share(x.argmax(-1) == y), of_classes),
    (metrics.accuracy(255), lambda x, y: share(x.argmax(-1) == y, y != 255), lambda r: of_classes(r, (3, 5), 4, 255)),
    (metrics.accuracy(), lambda x, y: share((x > 0) == (y > 0)), of_switches),
  ],
  "top_k": [
    (metrics.top_k(2), lambda x, y: rank(x, y, 2), of_classes),
    (metrics.top_k(1), lambda x, y: share(x.argmax(-1) == y), of_classes),
  ],
  "mean_iou": [
    (metrics.mean_iou(), iou, lambda r: of_classes(r, (3, 5))),
    (metrics.mean_iou(255), lambda x, y: iou(x, y, 255), lambda r: of_classes(r, (3, 5), 4, 255)),
  ],
  "mae": [
    (metrics.mae("m"), wide(lambda x, y: np.mean([abs(a - b) for a, b in zip(x.ravel(), y.ravel())])), of_numbers),
  ],
  "rmse": [
    (metrics.rmse(), wide(lambda x, y: np.mean([np.sqrt(np.mean((x - y)[:, k] ** 2)) for k in (0, 1)])), of_numbers),
    (metrics.rmse(), wide(lambda x, y: np.sqrt(np.mean((x - y) ** 2))), lambda r: of_numbers(r, (4, 3, 1))),
  ],
  "r2": [
    (metrics.r2(), wide(lambda x, y: np.mean(1 - np.mean((x - y) ** 2, 0) / np.var(y, 0))), of_numbers),
  ],
  "f1": [
    (metrics.f1("micro"), lambda x, y: f1_of(x > 0, y > 0), of_switches),
    (metrics.f1(), lambda x, y: np.mean([f1_of(x[:, k] > 0, y[:, k] > 0) for k in range(3)]), of_switches),
  ],
}  # fmt: skip
EVERY = [pytest.param(*case, id=f"{name}-{i}") for name, cases in CASES.items() for i, case in enumerate(cases)]
every = pytest.mark.parametrize(("metric", "oracle", "data"), EVERY)


def test_every_metric_is_here():
  assert set(methods(metrics)) == set(CASES)


@every
def test_the_value_is_that_of_the_definition(metric, oracle, data):
  outputs, labels = data(np.random.default_rng(0))
  assert metrics.measured(metric, outputs, labels) == pytest.approx(oracle(outputs, labels), rel=1e-12)
  assert metrics.measured(metric, jnp.asarray(outputs), labels) == metrics.measured(metric, outputs, labels)


@every
def test_it_is_the_same_over_batches_in_any_order(metric, oracle, data):
  outputs, labels = data(np.random.default_rng(1))
  order = np.random.default_rng(2).permutation(N)
  parts = [metrics.statistics_of(metric, outputs[rows], labels[rows]) for rows in np.split(order, [1, 7, 8])]
  together = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
  assert metrics.value_of(metric, together) == pytest.approx(metrics.measured(metric, outputs, labels), rel=1e-12)
  added = {key: sum(np.sum(part[key], 0, dtype=np.float64) for part in parts) for key in parts[0]}
  assert metric.value(added) == pytest.approx(oracle(outputs, labels), rel=1e-12)


@every
def test_the_direction_is_that_of_better_outputs(metric, oracle, data):
  del oracle
  outputs, labels = data(np.random.default_rng(3))
  noise = np.random.default_rng(4).normal(size=outputs.shape).astype(np.float32)
  good, bad = (metrics.measured(metric, outputs + size * noise, labels) for size in (0.0, 5.0))
  assert good > bad if metric.better == "higher" else good < bad


@every
def test_the_errors_are_those_of_leaving_out_each_example(metric, oracle, data):
  """The jackknife, written with the oracle over the examples that are left, and the factor (n - 1) / n."""
  outputs, labels = data(np.random.default_rng(5))
  others = outputs + np.random.default_rng(6).normal(size=outputs.shape).astype(np.float32)

  def error(values):
    values = np.array(values)
    return np.sqrt((N - 1) / N * np.sum((values - values.mean()) ** 2) * (N - 1) / N)

  without = [np.arange(N) != k for k in range(N)]
  of_first = [oracle(outputs[rows], labels[rows]) for rows in without]
  of_other = [oracle(others[rows], labels[rows]) for rows in without]
  first, other = (metrics.statistics_of(metric, x, labels) for x in (outputs, others))
  assert metrics.standard_error(metric, first) == pytest.approx(error(of_first), rel=1e-9)
  lost, found = metrics.paired(metric, first, other)
  sign = 1 if metric.better == "higher" else -1
  assert lost == pytest.approx(sign * (oracle(outputs, labels) - oracle(others, labels)), rel=1e-9, abs=1e-12)
  if not (metric.share and labels.ndim == 1):  # those have half an example in each cell
    assert found == pytest.approx(error(np.subtract(of_first, of_other)), rel=1e-9)
    assert metrics.paired(metric, first, first)[1] < 1e-12


@every
def test_what_cannot_be_compared_is_refused_in_a_sentence(metric, oracle, data):
  del oracle
  outputs, labels = data(np.random.default_rng(7))
  wrong_labels = labels.astype(np.float32) if np.issubdtype(labels.dtype, np.integer) else labels > 0
  for given in ((outputs, labels[:, None]), (outputs[..., None], labels), (outputs, wrong_labels)):
    with pytest.raises(UserError, match=f"the metric '{metric.name.split('_k')[0]}|the metric 'top_k'"):
      metrics.measured(metric, *given)
  with pytest.raises(UserError, match="there are several outputs, 'a', 'b'; expected one of them as its 'output'"):
    metrics.measured(metric, {"a": outputs, "b": outputs}, {"a": labels, "b": labels})


def test_a_share_of_examples_has_the_error_of_the_two_by_two_table():
  """McNemar's, with half an example in each cell: the formula in the counts of the table."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 400)
  first, other = (np.where(rng.random(400) < p, labels, (labels + 1) % 3) for p in (0.95, 0.9))
  one, two = (metrics.statistics_of(metrics.accuracy(), np.eye(3)[x], labels) for x in (first, other))
  lost, won = (np.sum((a == labels) & (b != labels)) for a, b in ((first, other), (other, first)))
  expected = np.sqrt(lost + won + 1 - (lost - won) ** 2 / 402) / 402
  found = metrics.paired(metrics.accuracy(), one, two)
  assert found == pytest.approx(((lost - won) / 400, expected), rel=1e-12)
  p = np.mean(first == labels)
  assert metrics.standard_error(metrics.accuracy(), one) == pytest.approx(np.sqrt(p * (1 - p) / 400), rel=1e-12)
  assert metrics.value_of(metrics.accuracy(), one) == float(np.mean(first == labels))  # to the last bit
  assert 0 < metrics.paired(metrics.accuracy(), one, one)[1] < 0.003


def test_classes_that_do_not_occur_do_not_count():
  outputs, labels = np.eye(5)[[[0, 0, 1, 1]]], np.array([[0, 1, 1, 1]])
  metric = metrics.mean_iou()
  assert metrics.measured(metric, outputs, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)
  found = metric.per_class(kind.sums(metrics.statistics_of(metric, outputs, labels)))
  np.testing.assert_allclose(found, [1 / 2, 2 / 3, np.nan, np.nan, np.nan])
  assert metrics.measured(metrics.f1(), np.full((2, 2), -1.0), np.array([[0, 1], [0, 0]])) == 0


def test_mistakes_are_one_sentence():
  constant = np.ones((4, 1), np.float32)
  for call, message in [
    (lambda: metrics.measured(metrics.r2(), constant, constant), "'r2' needs labels that vary, and those of output 0"),
    (lambda: metrics.measured(metrics.top_k(3), np.eye(2), np.arange(2)), "k is 3 for 2 classes; expected at most 2"),
    (lambda: metrics.top_k(0), "top_k: k is 0; expected a whole number, 1 or more"),
    (lambda: metrics.f1("weighted"), "unknown average of f1 'weighted'; expected one of macro, micro"),
    (lambda: metrics.mean_iou("255"), "mean_iou: ignore_label is '255'; expected a whole number"),
    (lambda: metrics.measured(metrics.mean_iou(), np.eye(2), np.array([0, 7])), "'mean_iou' got the label 7 of 2 cla"),
    (lambda: metrics.measured(metrics.f1(), np.eye(2), np.array([[0, 1], [2, 0]])), "expected labels 0 and 1"),
    (lambda: metrics.Metric("m", lambda x, y: {}, float, better="more"), "'better' of the metric 'm' 'more'"),
    (lambda: metrics.Metric("a b", lambda x, y: {}, float), "a metric is called 'a b'; expected letters"),
    (lambda: metrics.Metric("m", None, float), "'statistics' of the metric 'm' is None; expected a function"),
    (lambda: own(lambda x, y: x), "statistics of the metric 'm' are a ndarray; expected {key"),
    (lambda: own(lambda x, y: {"s": np.sum(x)}), r"'s' of the metric 'm' are float64 of shape \(\) for 2 examples"),
    (lambda: own(lambda x, y: {"s": np.zeros((2, 70_000))}), "hold 70,000 numbers of each example; expected at most"),
    (lambda: own(lambda x, y: {"s": x}, lambda sums: "high"), "the value of the metric 'm' is a str; expected a n"),
    (
      lambda: metrics.measured(metrics.Metric("m", dict, float, output="bx"), {"box": np.eye(2)}, {"box": np.eye(2)}),
      "of which there are outputs, 'bx'; did you mean 'box'",
    ),
  ]:
    with pytest.raises(UserError, match=message):
      call()


def own(statistics, value=lambda sums: 0.0):
  return metrics.measured(metrics.Metric("m", statistics, value), np.eye(2), np.arange(2))


@pytest.mark.slow  # importing it takes seconds
def test_scikit_learn_has_the_same_definitions():
  score = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(8)
  outputs, labels = of_switches(rng)
  for average in ("micro", "macro"):
    expected = score.f1_score(labels, outputs > 0, average=average, zero_division=0)
    assert metrics.measured(metrics.f1(average), outputs, labels) == pytest.approx(expected, rel=1e-12)
  outputs, labels = of_numbers(rng)
  x, y = outputs.astype(np.float64), labels.astype(np.float64)
  for metric, fn in [
    (metrics.mae(), score.mean_absolute_error),
    (metrics.rmse(), score.root_mean_squared_error),
    (metrics.r2(), score.r2_score),
  ]:
    assert metrics.measured(metric, x, y) == pytest.approx(fn(y, x), rel=1e-12)
  outputs, labels = of_classes(rng, (3, 5))
  expected = score.jaccard_score(labels.ravel(), outputs.argmax(-1).ravel(), average="macro")
  assert metrics.measured(metrics.mean_iou(), outputs, labels) == pytest.approx(expected, rel=1e-12)
  outputs, labels = of_classes(rng)
  assert metrics.measured(metrics.top_k(2), outputs, labels) == score.top_k_accuracy_score(labels, outputs, k=2)
