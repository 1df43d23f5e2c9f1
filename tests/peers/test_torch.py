"""Against torch's own code, on the same numbers: grids, learned steps, distillation. Run by scripts/check_peers.sh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import kd
import quant
from quant.estimators.lsq import lsq_values

pytestmark = pytest.mark.peers

BITS = (2, 4, 8)


def values(seed=0, shape=(32, 8), scale=1.0):
  return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero_point", [0, 1])
def test_fake_quant_per_tensor(bits, zero_point):
  x, scale = values(), 2.0**-5  # a power of two: both divide exactly
  low, high = quant.limits(bits)
  grid = quant.Grid(jnp.float32(scale), jnp.int32(zero_point), bits)
  ours, pull = jax.vjp(lambda x: quant.fake_quant(x, grid), jnp.asarray(x))
  theirs_x = torch.tensor(x, requires_grad=True)
  theirs = torch.fake_quantize_per_tensor_affine(theirs_x, scale, zero_point, low, high)
  theirs.sum().backward()
  np.testing.assert_array_equal(ours, theirs.detach().numpy())
  np.testing.assert_array_equal(pull(jnp.ones_like(ours))[0], theirs_x.grad.numpy())


@pytest.mark.parametrize("bits", BITS)
def test_fake_quant_per_channel(bits):
  x, scale = values(), (2.0 ** -np.arange(1, 9)).astype(np.float32)
  low, high = quant.limits(bits)
  grid = quant.Grid(jnp.asarray(scale), jnp.zeros(8, jnp.int32), bits, axis=1)
  zeros = torch.zeros(8, dtype=torch.int32)
  theirs = torch.fake_quantize_per_channel_affine(torch.tensor(x), torch.tensor(scale), zeros, 1, low, high)
  np.testing.assert_array_equal(quant.fake_quant(jnp.asarray(x), grid), theirs.numpy())


@pytest.mark.parametrize("bits", BITS)
def test_lsq_against_autograd(bits):
  """The paper's published pseudocode (gradient scaling and rounding by detach), differentiated by torch in float64."""
  x, cotangent = values(1).astype(np.float64), values(2).astype(np.float64)
  low, high = quant.limits(bits)
  g = 1 / np.sqrt(x.size * high)
  v, s = torch.tensor(x, requires_grad=True), torch.tensor(0.21, dtype=torch.float64, requires_grad=True)
  scaled = (s - s * g).detach() + s * g
  ratio = torch.clamp(v / scaled, low, high)
  out = ((ratio.round() - ratio).detach() + ratio) * scaled
  out.backward(torch.tensor(cotangent))
  with jax.enable_x64(True):
    ours, pull = jax.vjp(lambda x, s: lsq_values(x, s, low, high, g), jnp.asarray(x), jnp.asarray(0.21, jnp.float64))
    dx, ds = pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(ours, out.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(dx, v.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(ds, s.grad.numpy(), rtol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_hinton_against_kl_div(temperature):
  student, teacher = values(3, (6, 10), 3.0), values(4, (6, 10), 3.0)
  s = torch.tensor(student, requires_grad=True)
  log_q = torch.log_softmax(s / temperature, -1)
  log_p = torch.log_softmax(torch.tensor(teacher) / temperature, -1)
  theirs = temperature**2 * torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
  theirs.sum().backward()
  loss = kd.hinton(temperature)
  ours, pull = jax.vjp(lambda s: loss(s, jnp.asarray(teacher))[0], jnp.asarray(student))
  np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-4, atol=1e-5)
  np.testing.assert_allclose(pull(jnp.ones_like(ours))[0], s.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_hard_labels_against_cross_entropy():
  logits, labels = values(5, (6, 10), 3.0), np.arange(6)
  theirs = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none")
  ours = kd.hard_labels()(jnp.asarray(logits), None, {"label": jnp.asarray(labels, jnp.int32)})[0]
  np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
