"""Sparsity: masks as optax transformations, and of trained nets; criteria, patterns, allocations, schedules.

>>> import jax
>>> import jax.numpy as jnp
>>> import optax
>>> import sparsity
>>> params = {"dense": {"kernel": jnp.array([[0.1, -3.0], [2.0, -0.2]]), "bias": jnp.ones(2)}}
>>> print(sparsity.mask(params, density=0.5)["dense"]["kernel"])  # of trained parameters, or of a graph.Net
[[ 0. -3.]
 [ 2.  0.]]
>>> tx = sparsity.magnitude(optax.sgd(0.1), density=0.5)  # in training; wraps any optimizer
>>> state = tx.init(params)
>>> updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
>>> print(optax.apply_updates(params, updates)["dense"]["kernel"])
[[ 0.  -3.1]
 [ 1.9  0. ]]

With another criterion, in another pattern, on a schedule, or with masks that move:

>>> gradual = sparsity.magnitude(optax.sgd(0.1), density=0.1, schedule=sparsity.cubic(1000, 9000, every=100))
>>> two_of_four = sparsity.prune(optax.sgd(0.1), sparsity.criteria.taylor(decay=0.9), sparsity.patterns.n_m(2, 4))
>>> moving = sparsity.set(optax.sgd(0.1), density=0.1, schedule=sparsity.schedules.periodic(every=100, end=7500))
"""

from sparsity import allocations, criteria, patterns, reparam, schedules
from sparsity.allocations import Densities, count, erk, uniform
from sparsity.criteria import Score
from sparsity.dynamic.base import dynamic
from sparsity.dynamic.rigl import rigl
from sparsity.dynamic.set import set
from sparsity.hold import hold
from sparsity.magnitude import magnitude
from sparsity.mask import mask
from sparsity.packed import Packed, pack, unpack
from sparsity.patterns import Pattern
from sparsity.prune import prune
from sparsity.schedules import Schedule, cubic, one_shot
from sparsity.slots import map_slots
from sparsity.state import Leaf, SparsityState, apply_masks, check, masks, summary
from sparsity.threshold import kth_magnitude, topk_mask, topk_masks
from sparsity.wrapper import wrap

__all__ = [
  "Densities",
  "Leaf",
  "Packed",
  "Pattern",
  "Schedule",
  "Score",
  "SparsityState",
  "allocations",
  "apply_masks",
  "check",
  "count",
  "criteria",
  "cubic",
  "dynamic",
  "erk",
  "hold",
  "kth_magnitude",
  "magnitude",
  "map_slots",
  "mask",
  "masks",
  "one_shot",
  "pack",
  "patterns",
  "prune",
  "reparam",
  "rigl",
  "schedules",
  "set",
  "summary",
  "topk_mask",
  "topk_masks",
  "uniform",
  "unpack",
  "wrap",
]
