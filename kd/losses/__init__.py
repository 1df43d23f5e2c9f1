"""Losses, one file per loss; `kd` exports them."""
