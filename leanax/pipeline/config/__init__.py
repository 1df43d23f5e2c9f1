"""The config of an experiment: its keys as frozen dataclasses, its file, the command line. Nothing here imports jax."""
