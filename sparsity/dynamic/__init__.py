"""Masks that move while a sparse network trains, one method per file; `sparsity` exports them."""
