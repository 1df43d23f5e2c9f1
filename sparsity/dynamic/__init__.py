"""Masks that move while a sparse network trains, one method a file; `sparsity` exports them."""
