"""The reused teacher classifier against the paper's projector in float64, by hand, and at inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import kd
from kd.maps import pool_to
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, CLASSES, batch, check, maps, outputs, value
from tests.kd.oracles import begin, layer64, pool64

HEAD = {"kernel": jnp.asarray(maps(7, (5, 7))[0], jnp.float32), "bias": jnp.asarray(maps(8, (7,))[0], jnp.float32)}
FIRST = {"kernel": jnp.ones((9, 5)), "bias": jnp.ones(5)}
TEACHER = {"params": {"net": {"first": FIRST, "last": HEAD}}}


def project64(aux, x):
  for part in aux:
    x = np.maximum(layer64(part, x), 0)
  return x


@pytest.mark.parametrize("shape", [(3, 3), ()])
def test_value_and_gradient_are_the_papers(shape):
  loss, s, t = kd.simkd("tap", "tap"), maps(0, (*shape, 4)), maps(1, (*shape, 5))
  given = begin(loss, s, t)
  assert [part["kernel"].ndim for part in given["aux"]] == ([2, 4, 2] if shape else [2, 2, 2])
  assert [part["offset"].shape[0] for part in given["aux"]] == [2, 2, 5]

  def oracle(s, t):
    return ((project64(given["aux"], s) - t) ** 2).reshape(BATCH, -1).mean(-1)

  check(loss, oracle, s, t, **given)


def test_by_hand():
  # The last offset is 2 and its scale 0: (2 - 5)^2.
  loss, s, t = kd.simkd("tap", "tap"), maps(0, (4,)), np.full((BATCH, 3), 5.0)
  given = begin(loss, s, t)
  given["aux"][2] |= {"scale": np.zeros(3), "offset": np.full(3, 2.0)}
  np.testing.assert_allclose(value(loss, s, t, **given), 9.0, rtol=1e-6)


def after(loss, given, s, t, steps):
  step = jax.jit(lambda given: loss(outputs({"tap": s}), outputs({"tap": t}), batch(), **given)[1])
  for _ in range(steps):
    given = {**given, "aux_state": step(given)}
  return given


def test_at_inference_the_teachers_classifier_reads_the_projected_features():
  """After many steps on one batch the running statistics are those of the batch."""
  loss, s, t = kd.simkd("tap", "tap", momentum=0.5), maps(0, (4, 4, 4)), maps(1, (2, 2, 5))
  given = after(loss, begin(loss, s, t), s, t, 40)
  head = loss.head(given["aux"], given["aux_state"], TEACHER, 7)
  got = kd.simkd_logits(head, jnp.asarray(s, jnp.float32), size=(2, 2))
  want = project64(given["aux"], pool64(s, 2, 2)).mean((1, 2)) @ HEAD["kernel"] + HEAD["bias"]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  # An example's logits are its own.
  alone = kd.simkd_logits(head, jnp.asarray(s[:1], jnp.float32), size=(2, 2))
  np.testing.assert_allclose(alone, got[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (5, 4), (3,), ()], ids=["map", "uneven", "tokens", "vector"])
def test_folded_statistics_give_the_logits_of_equation_4(shape):
  rng = np.random.default_rng(3)
  size = (2, 2) if len(shape) == 2 else None
  loss, s, t = kd.simkd("tap", "tap"), maps(0, (*shape, 4)), maps(1, (*(size or shape), 5))
  given = begin(loss, s, t)
  kept = [
    {"mean": rng.normal(size=a["mean"].shape), "variance": rng.uniform(0.1, 3, a["mean"].shape)}
    for a in given["aux_state"]
  ]
  x = s if size is None else np.asarray(pool_to(jnp.asarray(s, jnp.float32), size), np.float64)
  for part, seen in zip(given["aux"], kept, strict=True):
    y = layer64({"kernel": part["kernel"], "bias": 0.0}, x)
    x = np.maximum((y - seen["mean"]) / np.sqrt(seen["variance"] + 1e-5) * part["scale"] + part["offset"], 0)
  want = x.reshape(BATCH, -1, 5).mean(1) @ np.float64(HEAD["kernel"]) + np.float64(HEAD["bias"])
  aux, kept = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (given["aux"], kept))
  head = kd.simkd_head(aux, kept, TEACHER, "net/last")
  np.testing.assert_allclose(kd.simkd_logits(head, jnp.asarray(s, jnp.float32), size), want, rtol=1e-5, atol=1e-5)
  some = kd.simkd_head(aux, kept, TEACHER, "net/last", (4, 0))
  np.testing.assert_allclose(
    kd.simkd_logits(some, jnp.asarray(s, jnp.float32), size), want[:, [4, 0]], rtol=1e-5, atol=1e-5
  )


def test_the_teachers_classifier_is_found_or_named():
  loss, s, t = kd.simkd("tap", "tap"), maps(0, (4,)), maps(1, (5,))
  given = begin(loss, s, t)
  trained = given["aux"], given["aux_state"]
  np.testing.assert_array_equal(loss.head(*trained, TEACHER, 7)["classifier"]["kernel"], HEAD["kernel"])
  chosen = loss.head(*trained, TEACHER, 2, (6, 1))["classifier"]["bias"]
  np.testing.assert_array_equal(chosen, HEAD["bias"][jnp.asarray([6, 1])])
  with pytest.raises(UserError, match=r"reads 5 features, .* gives 6 classes; it has net/first \(9 to 5\), net/last"):
    loss.head(*trained, TEACHER, 6)
  two = {"params": {"a": HEAD, "b": HEAD}}
  with pytest.raises(
    UserError, match="simkd: a and b read 5 features, .* name the teacher's with the key 'classifier'"
  ):
    loss.head(*trained, two, 7)
  named = kd.simkd("tap", "tap", classifier="b")
  np.testing.assert_array_equal(named.head(*trained, two, 7)["classifier"]["kernel"], HEAD["kernel"])
  with pytest.raises(
    UserError, match="the classifier 'net/first' maps 9 features to 5 classes; the teacher's tap has 5"
  ):
    kd.simkd("tap", "tap", classifier="net/first").head(*trained, TEACHER, 7)


def test_running_statistics_move_by_the_momentum():
  loss, s, t = kd.simkd("tap", "tap", momentum=0.75), maps(0, (4,)), maps(1, (5,))
  given = begin(loss, s, t)
  first = s @ given["aux"][0]["kernel"]
  kept = after(loss, given, s, t, 1)["aux_state"][0]
  np.testing.assert_allclose(kept["mean"], 0.25 * first.mean(0), rtol=1e-5)
  np.testing.assert_allclose(kept["variance"], 0.75 + 0.25 * first.var(0), rtol=1e-5)


def test_running_statistics_are_those_of_all_devices():
  loss, s, t = kd.simkd("tap", "tap"), maps(0, (4,))[:4], maps(1, (5,))[:4]
  given = begin(loss, s, t)
  s, t = (outputs({"tap": x})._replace(logits=jnp.zeros((4, CLASSES))) for x in (s, t))
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))
  split = jax.shard_map(
    lambda s, t: loss(s, t, {}, axis_name="devices", **given)[1], mesh=mesh, in_specs=P("devices"), out_specs=P()
  )
  whole = jax.jit(lambda s, t: loss(s, t, {}, **given)[1])(s, t)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jax.jit(split)(s, t), whole)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="simkd: 2 taps of each network; expected 1"):
    kd.simkd(("a", "b"), ("a", "b"))
  with pytest.raises(UserError, match="simkd: factor is 0; expected a number above 0"):
    kd.simkd("tap", "tap", factor=0)
  with pytest.raises(UserError, match="simkd: momentum is 1; expected a number from 0 to below 1"):
    kd.simkd("tap", "tap", momentum=1)
