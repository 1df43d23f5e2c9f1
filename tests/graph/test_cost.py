"""Costs of operations, by hand."""

import json

import jax
import jax.numpy as jnp

from leanax import graph
from tests.graph import models


def test_rows_by_hand():
  case = models.conv_net()
  rows = {r["name"]: r for r in graph.trace(case.fn, case.variables, case.x[:1]).table()}
  conv = rows["Conv_1/kernel"]
  assert conv["kernel_shape"] == (3, 3, 2, 4) and conv["output_shape"] == (1, 8, 8, 4)
  assert conv["macs"] == 64 * 4 * 9 * 2
  assert conv["weight_bytes"] == 72 * 4
  assert conv["activation_bytes"] == 64 * 4 * 4
  assert conv["bit_operations"] == conv["macs"] * 32 * 32
  assert rows["Conv_1/bias"]["weight_bytes"] == 16
  assert rows["output"]["macs"] == rows["output"]["activation_bytes"] == 0
  json.dumps(list(rows.values()))


def test_widths_and_types():
  variables = {"w": jnp.ones((3, 5), jnp.bfloat16)}
  found = graph.trace(lambda v, x: x @ v["w"], variables, jnp.ones((2, 3), jnp.bfloat16))
  (plain, _), (narrow, _) = found.table(), found.table({"w": (3, 8)})
  assert (plain["weight_bytes"], plain["bit_operations"]) == (30, 30 * 16 * 16)
  assert (narrow["weight_bytes"], narrow["activation_bytes"]) == (6, 10)  # 45 bits, 80 bits
  assert narrow["bit_operations"] == 30 * 3 * 8


def test_a_scan_counts_every_run():
  def fn(variables, x):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, variables["w"])[0]

  first = graph.trace(fn, {"w": jnp.ones((3, 4, 4))}, jnp.ones((2, 4))).table()[0]
  assert (first["macs"], first["weight_bytes"], first["activation_bytes"]) == (96, 3 * 64, 3 * 32)
