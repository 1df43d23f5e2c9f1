"""The small trained parts of losses once more, in float64 numpy with loops, and how a loss that trains is started."""

import jax
import numpy as np

import kd


def begin(loss, s, t, variables=None, seed=0):
  """{"aux", "aux_state"} for taps called "tap", in float64 numpy; random enough that no leaf is 0 or 1 throughout."""
  s, t = ({"tap": x} if isinstance(x, np.ndarray) else x for x in (s, t))
  shapes = [kd.Outputs(x["tap"], x) if "tap" in x else kd.Outputs(np.zeros(()), x) for x in (s, t)]
  aux, aux_state = jax.jit(lambda key: loss.init(key, *shapes, variables))(jax.random.key(seed))
  rng = np.random.default_rng(seed)
  return {"aux": jax.tree.map(lambda a: np.float64(a) + 0.2 * rng.normal(size=a.shape), aux), "aux_state": aux_state}


def normal64(x, eps=1e-5):
  axes = tuple(range(x.ndim - 1))
  return (x - x.mean(axes)) / np.sqrt(x.var(axes) + eps)


def layer64(aux, x):
  kernel = aux["kernel"]
  if kernel.ndim == 2:
    out = np.einsum("...i,io->...o", x, kernel)
  else:
    r = kernel.shape[0] // 2
    wide = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i in range(x.shape[1]):
      for j in range(x.shape[2]):
        out[:, i, j] = np.einsum("bhwi,hwio->bo", wide[:, i : i + 2 * r + 1, j : j + 2 * r + 1], kernel)
  return out + aux["bias"] if "bias" in aux else normal64(out) * aux["scale"] + aux["offset"]


def pool64(x, height, width):
  """Average pooling to a divisor of the size."""
  b, h, w, c = x.shape
  return x.reshape(b, height, h // height, width, w // width, c).mean((2, 4))
