"""Our losses and torch's on the same activations: values and gradients in float64, and our weights in torch's layers.

Activations are dicts by tap, (batch, ...) float64; the tap "logits" is what the losses on logits read.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import kd

BATCH, CLASSES = 8, 10
LABELS = np.arange(BATCH) % CLASSES
# The keywords by which torchdistill finds logits, and a pair of taps.
LOGITS = {"student_module_path": "logits", "teacher_module_path": "logits"}
LOGITS |= {"student_module_io": "output", "teacher_module_io": "output"}
TAP = {"student": {"path": "tap", "io": "output"}, "teacher": {"path": "tap", "io": "output"}}


def values(seed, *shape, scale=1.0):
  return scale * np.random.default_rng(seed).normal(size=(BATCH, *shape))


def both(*shape, teacher=None):
  """The student's and the teacher's tap; not of mean 0, as activations are not."""
  return {"tap": values(0, *shape) + 0.3}, {"tap": values(1, *(teacher or shape)) + 0.3}


def logits():
  return {"logits": values(2, CLASSES, scale=3)}, {"logits": values(3, CLASSES, scale=3)}


def random(aux, seed=4):
  """Random aux of a loss, with scales of batch normalisations around 1."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape) + (a.ndim == 1), jnp.float32), aux)


def started(loss, s, t):
  """Drawn `aux` and the first `aux_state` of a loss."""
  shapes = [
    kd.Outputs(jnp.zeros(()), jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x)) for x in (s, t)
  ]
  aux, aux_state = loss.init(jax.random.key(0), *shapes, None)
  return {"aux": random(aux), "aux_state": aux_state}


def our_mean(loss, s, t, **more):
  s, t = (kd.Outputs(x.get("logits", jnp.zeros((BATCH, CLASSES))), x) for x in (s, t))
  data = {"label": jnp.asarray(LABELS, jnp.int32), "id": jnp.arange(BATCH, dtype=jnp.int32)}
  return loss(s, t, data, **more)[0].mean()


def our_value_and_gradient(loss, s, t, **more):
  """Value, and gradient by tap of the student, in float64; `loss` may be a list of (weight, loss)."""
  terms = loss if isinstance(loss, list) else [(1.0, loss)]
  with jax.enable_x64(True):
    s, t = (jax.tree.map(jnp.asarray, x) for x in (s, t))
    total = jax.jit(jax.value_and_grad(lambda s: sum(w * our_mean(f, s, t, **more) for w, f in terms)))
    value, gradient = total(s)
    return float(value), jax.tree.map(np.asarray, gradient)


def peer_value_and_gradient(peer_loss, s, t):
  """The same of `peer_loss(student, teacher)`, which gets tensors, maps with the channels first."""
  leaves, fixed = ({k: torch.tensor(x, requires_grad=on) for k, x in v.items()} for v, on in ((s, True), (t, False)))
  student, teacher = ({k: x.permute(0, 3, 1, 2) if x.ndim == 4 else x for k, x in v.items()} for v in (leaves, fixed))
  value = peer_loss(student, teacher).sum()
  value.backward()
  return value.item(), {k: x.grad.numpy() for k, x in leaves.items()}


def agree(loss, peer_loss, s, t, rtol=1e-10, factor=1.0, **more):
  """Our value and gradient are `factor` times the peer's."""
  (value, gradient), (peer_value, peer_gradient) = (
    our_value_and_gradient(loss, s, t, **more),
    peer_value_and_gradient(peer_loss, s, t),
  )
  np.testing.assert_allclose(value, factor * peer_value, rtol=rtol)
  for name, wanted in peer_gradient.items():
    np.testing.assert_allclose(gradient[name], factor * wanted, rtol=rtol, atol=rtol * abs(factor * wanted).max())


def io(criterion, *more):
  """A loss of torchdistill as a function of taps."""
  return lambda s, t: criterion(*({k: {"output": x} for k, x in v.items()} for v in (s, t)), *more)


def filled(module, layers):
  """A torch module in float64, its convolutions and batch normalisations with our weights, in this order."""
  module = module.double().train()
  convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
  norms = iter([part for part in module.modules() if isinstance(part, nn.BatchNorm2d)])

  def put(parameter, array):
    parameter.data = torch.tensor(np.asarray(array, np.float64))

  for part, aux in zip(convolutions, layers, strict=True):
    kernel = np.asarray(aux["kernel"])
    kernel = kernel.reshape(*(1,) * (4 - kernel.ndim), *kernel.shape).transpose(3, 2, 0, 1)
    put(part.weight, kernel[:, :, 0, 0] if isinstance(part, nn.Linear) else kernel)
    if part.bias is not None:  # before a batch normalisation it has no effect, and we have none
      put(part.bias, aux.get("bias", np.zeros(len(kernel))))
    if "scale" in aux:
      norm = next(norms)
      put(norm.weight, aux["scale"])
      put(norm.bias, aux["offset"])
  return module
