"""Sparsity: masks as optax transformations, and of trained nets; criteria, patterns, allocations, schedules.

tx = sparsity.magnitude(optax.adamw(1e-3), density=0.1, schedule=sparsity.cubic(1000, 9000, every=100))
tx = sparsity.prune(optax.adamw(1e-3), sparsity.criteria.taylor(decay=0.9), sparsity.patterns.n_m(2, 4))
tx = sparsity.set(optax.adamw(1e-3), density=0.1, schedule=sparsity.schedules.periodic(every=100, end=7500))
net = sparsity.mask(net, density=0.1)
"""

from sparsity import allocations, criteria, patterns, reparam, schedules
from sparsity.allocations import Densities, count, erk, uniform
from sparsity.criteria import Score
from sparsity.dynamic import dynamic, set
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
  "schedules",
  "set",
  "summary",
  "topk_mask",
  "topk_masks",
  "uniform",
  "unpack",
  "wrap",
]
