"""Sparsity: masks as optax transformations, thresholds without sorting, allocations and schedules.

tx = sparsity.magnitude(optax.adamw(1e-3), density=0.1, schedule=sparsity.cubic(1000, 9000, every=100))
"""

from sparsity import schedules
from sparsity.allocation import count, erk, uniform
from sparsity.hold import hold
from sparsity.magnitude import magnitude
from sparsity.packed import Packed, pack, unpack
from sparsity.schedules import Schedule, cubic, one_shot
from sparsity.slots import map_slots
from sparsity.state import Leaf, SparsityState, apply_masks, check, masks, summary
from sparsity.threshold import kth_magnitude, topk_mask, topk_masks
from sparsity.wrapper import wrap

__all__ = [
  "Leaf",
  "Packed",
  "Schedule",
  "SparsityState",
  "apply_masks",
  "check",
  "count",
  "cubic",
  "erk",
  "hold",
  "kth_magnitude",
  "magnitude",
  "map_slots",
  "masks",
  "one_shot",
  "pack",
  "schedules",
  "summary",
  "topk_mask",
  "topk_masks",
  "uniform",
  "unpack",
  "wrap",
]
