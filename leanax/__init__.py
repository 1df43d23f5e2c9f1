"""The infrastructure of `kd`, `quant` and `sparsity`: traced models, training, files and whole experiments."""
