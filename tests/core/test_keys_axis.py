import functools

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import axis, keys


def data(key):
  return np.asarray(jax.random.key_data(key))


def test_keys_differ_by_seed_step_and_stream_and_nothing_else():
  base = data(keys.step_key(0, 5, "dropout"))
  assert (base == data(keys.step_key(0, 5, "dropout"))).all()
  for other in [(1, 5, "dropout"), (0, 6, "dropout"), (0, 5, "augment")]:
    assert (base != data(keys.step_key(*other))).any()


def test_example_keys_do_not_depend_on_their_place_in_the_batch():
  key = keys.step_key(0, 0, "augment")
  whole = data(keys.example_keys(key, jnp.arange(8)))
  half = data(keys.example_keys(key, jnp.arange(4, 8)))
  np.testing.assert_array_equal(whole[4:], half)


def test_reductions_without_an_axis_are_the_identity():
  tree = {"a": jnp.arange(3.0)}
  for reduce in (axis.psum, axis.pmean, axis.pmax, axis.pmin):
    assert reduce(tree, None) is tree
  assert axis.size(None) == 1


def test_reductions_over_an_axis():
  x = jnp.arange(float(jax.local_device_count()))

  @functools.partial(jax.vmap, axis_name="d")
  def reduced(v):
    return tuple(f(v, "d") for f in (axis.psum, axis.pmean, axis.pmax, axis.pmin)) + (axis.size("d"),)

  total, mean, largest, smallest, size = reduced(x)
  assert float(total[0]) == float(x.sum()) and float(mean[0]) == float(x.mean())
  assert float(largest[0]) == float(x.max()) and float(smallest[0]) == 0.0 and int(size[0]) == x.shape[0]


def test_shared_rows_are_those_of_all_devices_and_known_to_be_the_same():
  devices = jax.sharding.Mesh(np.asarray(jax.devices()), ("d",))
  split, same = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()
  count = 2 * len(jax.devices())
  tree = {"x": jnp.arange(3.0 * count).reshape(count, 3), "valid": jnp.arange(count) % 3 > 0}
  shared = jax.jit(jax.shard_map(lambda t: axis.share(t, "d"), mesh=devices, in_specs=split, out_specs=same))(tree)
  jax.tree.map(np.testing.assert_array_equal, shared, tree)
  assert shared["valid"].dtype == bool and axis.share(tree, None) is tree
