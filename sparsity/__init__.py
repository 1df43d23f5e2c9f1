from sparsity.packed import Packed, pack, unpack
from sparsity.threshold import kth_magnitude, topk_mask

__all__ = ["Packed", "kth_magnitude", "pack", "topk_mask", "unpack"]
