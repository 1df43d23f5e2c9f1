"""What every room needs: user errors, path rules, tree names, reductions over a device axis, keys."""
