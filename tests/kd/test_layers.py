"""The small trained parts of losses against loops in float64, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd.kinds import Context
from kd.layers import classifier_of, layer, layer_init, module_of
from kd.maps import align
from leanax.core.errors import UserError
from tests.kd.nets import maps
from tests.kd.oracles import layer64

PARAMS = {
  "params": {"body": {"head": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}, "conv": {"kernel": jnp.ones(1)}}
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_layer_is_the_loops(size, normalise):
  aux = jax.tree.map(lambda a: np.float64(a) + 0.3, layer_init(jax.random.key(0), 3, 5, size, normalise))
  x = maps(0, (4, 3, 3))
  with jax.enable_x64(True):
    np.testing.assert_allclose(layer(aux, jnp.asarray(x), Context({})), layer64(aux, x), rtol=1e-12, atol=1e-12)


def test_the_kernel_is_drawn_as_he_et_al():
  kernel = layer_init(jax.random.key(0), 64, 64, 3)["kernel"]
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)


def test_another_normalisation_may_be_given():
  aux = layer_init(jax.random.key(0), 3, 5, normalise=True)
  x = jnp.asarray(maps(0, (3,)), jnp.float32)
  np.testing.assert_allclose(layer(aux, x, lambda y: 2 * y), 2 * x @ aux["kernel"], rtol=1e-6)


def test_a_module_is_copied_with_its_path():
  head = classifier_of("loss", PARAMS, "body/head")
  assert set(head) == {"kernel", "bias"} and head["kernel"] is not PARAMS["params"]["body"]["head"]["kernel"]
  without = {"params": {"head": {"kernel": jnp.ones((3, 2))}}}
  np.testing.assert_array_equal(classifier_of("loss", without, "head")["bias"], [0, 0])


def test_mistakes_are_named():
  with pytest.raises(UserError, match="unknown classifier of the loss 'a' 'head'; did you mean 'body/head'"):
    classifier_of("a", PARAMS, "head")
  with pytest.raises(UserError, match="a: classifier 'conv' has a kernel of shape"):
    classifier_of("a", PARAMS, "conv")
  with pytest.raises(UserError, match="the teacher has no module with scale"):
    module_of("a", "batch_norm", PARAMS, "conv", ("scale",))
  with pytest.raises(UserError, match="the loss 'a' copies 'head' of the teacher's parameters"):
    classifier_of("a", None, "head")
  with pytest.raises(UserError, match=r"a: a tap of shape \(2, 3, 5\) of the student cannot be compared with one of "):
    align("a", jnp.zeros((2, 3, 5)), jnp.zeros((2, 4, 5)))
