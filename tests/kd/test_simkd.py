"""The reused teacher classifier against the paper's projector in float64, by hand, and at inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import kd
from core.errors import UserError
from tests.kd.nets import BATCH, CLASSES, batch, check, maps, outputs, value
from tests.kd.oracles import begin, layer64, pool64

HEAD = {"kernel": maps(7, (5, CLASSES))[0], "bias": maps(8, (CLASSES,))[0]}


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
  for _ in range(steps):
    given = {**given, "aux_state": loss(outputs({"tap": s}), outputs({"tap": t}), batch(), **given)[1]}
  return given


def test_at_inference_the_teachers_classifier_reads_the_projected_features():
  """After many steps on one batch the running statistics are those of the batch."""
  loss, s, t = kd.simkd("tap", "tap", momentum=0.5), maps(0, (4, 4, 4)), maps(1, (2, 2, 5))
  given = after(loss, begin(loss, s, t), s, t, 40)
  got = kd.simkd_logits(given["aux"], given["aux_state"], HEAD, jnp.asarray(s, jnp.float32), size=(2, 2))
  want = project64(given["aux"], pool64(s, 2, 2)).mean((1, 2)) @ HEAD["kernel"] + HEAD["bias"]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  # An example's logits are its own.
  alone = kd.simkd_logits(given["aux"], given["aux_state"], HEAD, jnp.asarray(s[:1], jnp.float32), size=(2, 2))
  np.testing.assert_allclose(alone, got[:1], rtol=1e-5, atol=1e-5)


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
  whole = loss(s, t, {}, **given)[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jax.jit(split)(s, t), whole)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="simkd: 2 taps of each network; expected 1"):
    kd.simkd(("a", "b"), ("a", "b"))
  with pytest.raises(UserError, match="simkd: factor is 0; expected a number above 0"):
    kd.simkd("tap", "tap", factor=0)
  with pytest.raises(UserError, match="simkd: momentum is 1; expected a number from 0 to below 1"):
    kd.simkd("tap", "tap", momentum=1)
