"""Drills of the readers of files with mutated ones; `python -m scripts.drills.fuzz` runs them.

A module for each format has `seeds() -> list of true files`, `mutant(draw, files) -> bytes`, and
`case(content) -> str`, which is a few words on what became of it, or raises AssertionError. LIMIT is how many MiB a
process may grow by.
"""
