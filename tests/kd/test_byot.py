"""Self distillation against the paper's three terms in float64, by hand, and what is a constant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, CLASSES, batch, labels, logits, maps
from tests.kd.oracles import layer64

TAPS = {"early": (4, 4, 3), "middle": (2, 2, 4), "deep": (2, 2, 5)}


def student(dtype=np.float32):
  taps = {name: jnp.asarray(maps(seed, shape), dtype) for seed, (name, shape) in enumerate(TAPS.items())}
  return kd.Outputs(jnp.asarray(logits(7), dtype), taps)


def start(loss, seed=0):
  shapes = kd.Outputs(np.zeros((BATCH, CLASSES)), {name: np.zeros((BATCH, *shape)) for name, shape in TAPS.items()})
  aux, aux_state = loss.init(jax.random.key(seed), shapes, None, None)
  rng = np.random.default_rng(seed)
  return {"aux": jax.tree.map(lambda a: np.float64(a) + 0.2 * rng.normal(size=a.shape), aux), "aux_state": aux_state}


def softmax64(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def terms64(aux, own, tap, goal, temperature):
  """(labels, divergence, hint) of one branch, one example at a time."""
  out = []
  for i in range(len(tap)):
    places = np.maximum(layer64(aux["bottleneck"], tap[i].reshape(-1, tap.shape[-1])), 0)
    features = places.mean(0)
    logits = layer64(aux["classifier"], features)
    p, q = softmax64(own[i] / temperature), softmax64(logits / temperature)
    hint = ((features - goal[i].reshape(-1, goal.shape[-1]).mean(0)) ** 2).sum()
    out.append((-np.log(softmax64(logits)[labels()[i]]), (p * np.log(p / q)).sum(), hint))
  return np.array(out).T


@pytest.mark.parametrize("alpha, lam, temperature", [(0.3, 0.03, 3.0), (0.0, 0.5, 1.0), (1.0, 0.0, 2.0)])
def test_value_and_gradient_are_the_papers(alpha, lam, temperature):
  loss = kd.byot(tuple(TAPS), alpha, lam, temperature)
  given = start(loss)
  own, taps = np.asarray(logits(7)), {name: maps(seed, shape) for seed, (name, shape) in enumerate(TAPS.items())}

  def oracle(early):
    each = [
      terms64(aux, own, tap, taps["deep"], temperature)
      for aux, tap in zip(given["aux"], (early, taps["middle"]), strict=True)
    ]
    return sum((1 - alpha) * a + alpha * temperature**2 * b + lam * c for a, b, c in each)

  want = oracle(taps["early"])
  np.testing.assert_allclose(loss(student(), None, batch(), **given)[0], want, rtol=1e-5)
  with jax.enable_x64(True):
    s = student(np.float64)

    def value(early):
      return loss(s._replace(taps={**s.taps, "early": early}), None, batch(), **given)[0]

    np.testing.assert_allclose(value(s.taps["early"]), want, rtol=1e-12)
    gradient = np.asarray(jax.grad(lambda early: value(early).sum())(s.taps["early"]))
  direction, h = maps(9, TAPS["early"]), 1e-6
  slope = (oracle(taps["early"] + h * direction) - oracle(taps["early"] - h * direction)).sum() / (2 * h)
  np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6)


def test_by_hand():
  # One place, one channel: features relu(2 * 3) = 6 against 4; logits (6, 0) of the branch, (0, 0) its own.
  aux = [
    {
      "bottleneck": {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.zeros(1)},
      "classifier": {"kernel": jnp.array([[1.0, 0.0]]), "bias": jnp.zeros(2)},
    }
  ]
  s = kd.Outputs(jnp.zeros((1, 2)), {"a": jnp.full((1, 1), 3.0), "b": jnp.full((1, 1), 4.0)})
  found = kd.byot(("a", "b"), 0.25, 0.5, 2.0)(s, None, {"label": jnp.zeros(1, jnp.int32)}, aux=aux)[0]
  hard = np.log1p(np.exp(-6))
  soft = np.log(0.5) + 0.5 * (np.log1p(np.exp(-3)) + 3 + np.log1p(np.exp(-3)))
  np.testing.assert_allclose(found, [0.75 * hard + 0.25 * 4 * soft + 0.5 * 4], rtol=1e-6)


def test_the_teaching_branch_is_a_constant():
  loss = kd.byot(tuple(TAPS))
  given = start(loss)
  gradient = jax.grad(lambda s: loss(s, None, batch(), **given)[0].sum())(student())
  assert not jnp.any(gradient.logits) and not jnp.any(gradient.taps["deep"])
  assert jnp.any(gradient.taps["early"]) and jnp.any(gradient.taps["middle"])


def test_an_example_without_classes_has_the_loss_of_its_features_alone():
  loss, whole = kd.byot(tuple(TAPS), lam=0.0), jnp.ones((BATCH, CLASSES), bool)
  given = start(loss)
  got, want = (loss(student(), None, batch(), class_mask=w, **given)[0] for w in (whole.at[2].set(False), whole))
  np.testing.assert_allclose(got, np.where(np.arange(BATCH) == 2, 0.0, want), rtol=1e-5)


def test_at_the_deepest_classifiers_opinion_the_divergence_is_zero():
  s = student()._replace(taps={"a": jnp.ones((BATCH, 2)), "b": jnp.ones((BATCH, 2))})
  same = {"bottleneck": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
  s = s._replace(logits=jnp.broadcast_to(s.logits[:1], s.logits.shape))
  aux = [{**same, "classifier": {"kernel": jnp.zeros((2, CLASSES)), "bias": s.logits[0]}}]
  np.testing.assert_allclose(kd.byot(("a", "b"), alpha=1.0)(s, None, batch(), aux=aux)[0], 0.0, atol=1e-6)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="byot: 1 taps; expected two or more, from shallow to deep"):
    kd.byot("tap")
  with pytest.raises(UserError, match=r"byot: alpha is 1\.5; expected a number from 0 to 1"):
    kd.byot(("a", "b"), alpha=1.5)
  with pytest.raises(UserError, match="byot: lam is -1; expected a number, 0 or more"):
    kd.byot(("a", "b"), lam=-1)
  with pytest.raises(UserError, match="byot: temperature is 0; expected a number from 0.001 to 10000"):
    kd.byot(("a", "b"), temperature=0)
