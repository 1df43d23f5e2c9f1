"""Losses of torchdistill that differ from ours of the same name, and how: theirs are not their papers'. Run by
scripts/check_peers.sh.
"""

import numpy as np
import pytest
import torch
import torchdistill.losses.mid_level as peer
from torch import nn

import kd
from tests.peers.compare import (
  BATCH,
  LABELS,
  LOGITS,
  TAP,
  agree,
  both,
  filled,
  io,
  logits,
  our_value_and_gradient,
  peer_value_and_gradient,
  started,
  values,
)

pytestmark = pytest.mark.peers


def test_torchdistill_forgets_the_square_of_the_temperature_without_labels():
  theirs = peer.KDLoss(temperature=4.0, alpha=0.0, **LOGITS)
  agree(kd.hinton(4.0), io(theirs, torch.tensor(LABELS)), *logits(), factor=16.0)


def test_torchdistill_normalises_rows_of_sp_by_their_l1_norm():
  s, t = both(6, 6, 4, teacher=(6, 6, 9))

  def gram(x, order):
    gram = x["tap"].reshape(BATCH, -1) @ x["tap"].reshape(BATCH, -1).T
    return gram / np.linalg.norm(gram, order, axis=1, keepdims=True)

  one, two = (np.mean((gram(s, order) - gram(t, order)) ** 2) for order in (1, 2))
  theirs, _ = peer_value_and_gradient(io(peer.SPKDLoss("tap", "tap", "batchmean")), s, t)
  np.testing.assert_allclose(theirs, one, rtol=1e-10)
  np.testing.assert_allclose(our_value_and_gradient(kd.sp("tap", "tap"), s, t)[0], two, rtol=1e-10)
  assert abs(one / two - 1) > 0.1


def test_torchdistill_takes_the_root_of_cc():
  """Its norm is not squared; and it does not normalise the embeddings, so it is given unit vectors."""
  s, t = ({"tap": x["tap"] / np.linalg.norm(x["tap"], axis=1, keepdims=True)} for x in both(12))
  theirs = peer.CCKDLoss("tap", "tap", {"type": "gaussian", "gamma": 0.4, "max_p": 2}, "batchmean")
  value, _ = peer_value_and_gradient(io(theirs), s, t)
  np.testing.assert_allclose(our_value_and_gradient(kd.cc("tap", "tap"), s, t)[0], (BATCH * value) ** 2, rtol=1e-10)


def test_torchdistill_sums_norms_of_columns_in_fsp():
  names = ("early", "late")
  s, t = ({"early": values(i, 8, 8, 4), "late": values(i + 1, 4, 4, 6)} for i in (5, 7))
  pair = {
    f"{who}_{place}": {"path": tap, "io": "output"}
    for who in ("student", "teacher")
    for place, tap in (("first", "early"), ("second", "late"))
  }

  def gram(x):
    first = x["early"].reshape(BATCH, 4, 2, 4, 2, 4).max((2, 4)).reshape(BATCH, 16, 4)
    return np.einsum("bpc,bpd->bcd", first, x["late"].reshape(BATCH, 16, 6)) / 16

  columns = np.sqrt(((gram(s) - gram(t)) ** 2).sum(1))
  np.testing.assert_allclose(
    peer_value_and_gradient(io(peer.FSPLoss({"pair": pair})), s, t)[0], columns.sum() / BATCH, rtol=1e-10
  )
  np.testing.assert_allclose(
    our_value_and_gradient(kd.fsp(names, names, paper=True), s, t)[0], (columns**2).sum() / BATCH, rtol=1e-10
  )


def test_torchdistill_divides_ickd_by_the_batch_twice():
  s, t = both(6, 6, 5)
  loss = kd.ickd("tap", "tap")
  more = started(loss, s, t)
  projector = filled(nn.Sequential(nn.Conv2d(5, 5, 1)), more["aux"])
  theirs = peer.ChSimLoss({"pair": TAP})

  def similarity(s, t):
    return io(theirs)({"tap": projector(s["tap"])}, {"tap": t["tap"].contiguous()})

  agree(loss, similarity, s, t, factor=BATCH, **more)
