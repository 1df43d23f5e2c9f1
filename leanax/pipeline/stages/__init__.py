"""Kinds of stages, one file each: `kind: "train"` in a config is the file train.py.

A kind is two functions, both called for every stage of an experiment before the first one runs:

- `check(name, config)` refuses what the config alone shows, before any data is read;
- `prepare(name, config, data, before) -> Job` (`leanax.pipeline.job`) makes on shapes what then runs, and raises a
  UserError for whatever would not run.
"""
