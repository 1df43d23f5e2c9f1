"""Losses, one a file; `kd` exports them."""
