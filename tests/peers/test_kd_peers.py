"""Distillation losses against other people's own code: value and gradient in float64. Run by scripts/check_peers.sh.

torchdistill and mmrazor are the packages with such losses that pip installs; what they lack is compared with torch's
own functions and layers, and with optax. `nkd`, `mlkd`, `nst`, `cc` (form="consecutive"), `kdsvd`, `srrl`, `simkd` and
`mgd` have no such peer. `test_kd_differences.py` has the losses that differ.
"""

import importlib
import importlib.metadata
import importlib.util
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
import torchdistill.losses.mid_level as peer
from torch import nn

import kd
from kd.losses.crd import draw, log_mean
from tests.peers.compare import BATCH, CLASSES, LABELS, LOGITS, TAP, agree, both, filled, io, logits, started, values

pytestmark = pytest.mark.peers


@pytest.fixture
def wrapper(monkeypatch):
  """torchdistill's trained parts, without its models, which want a torchvision that is built for this very torch."""
  package = types.ModuleType("torchdistill.models")
  package.__path__ = importlib.util.find_spec("torchdistill.models").submodule_search_locations
  monkeypatch.setitem(sys.modules, "torchdistill.models", package)
  return importlib.import_module("torchdistill.models.wrapper")


@pytest.fixture
def mmrazor(monkeypatch):
  """A loss class of mmrazor by file and name. The files need torch and a decorator; the package itself wants mmcv."""

  def find(file, name):
    registry = types.ModuleType("mmrazor.registry")
    registry.MODELS = types.SimpleNamespace(register_module=lambda: lambda cls: cls)
    monkeypatch.setitem(sys.modules, "mmrazor.registry", registry)
    path = importlib.metadata.distribution("mmrazor").locate_file(f"mmrazor/models/losses/{file}.py")
    spec = importlib.util.spec_from_file_location(f"mmrazor_{file}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)

  return find


# On logits: our loss (or weighted losses) and theirs.
def soften(x, temperature):
  return torch.log_softmax(x["logits"] / temperature, -1)


def divergence(log_p, log_q):
  return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def mixture_divergence(s, t, share=0.3):
  log_p, log_q = soften(t, 1), soften(s, 1)
  log_m = torch.log(share * log_p.exp() + (1 - share) * log_q.exp())
  return share * divergence(log_p, log_m) + (1 - share) * divergence(log_q, log_m)


TARGET = torch.tensor(LABELS)
ON_LOGITS = {
  "hinton, torch": (kd.hinton(4.0), lambda s, t: 16 * divergence(soften(t, 4), soften(s, 4))),
  "hinton, torchdistill": (
    [(0.1, kd.hard_labels()), (0.9, kd.hinton(4.0))],
    io(peer.KDLoss(temperature=4.0, alpha=0.1, **LOGITS), TARGET),
  ),
  "reverse_kl": (kd.reverse_kl(2.0), lambda s, t: 4 * divergence(soften(s, 2), soften(t, 2))),
  "jsd": (kd.jsd(0.3), mixture_divergence),
  "soft_labels": (
    kd.soft_labels(2.0),
    lambda s, t: 4 * F.cross_entropy(s["logits"] / 2, torch.softmax(t["logits"] / 2, -1)),
  ),
  "hard_labels": (kd.hard_labels(), lambda s, t: F.cross_entropy(s["logits"], TARGET)),
  "label_smoothing": (
    kd.label_smoothing(0.1),
    lambda s, t: F.cross_entropy(s["logits"], TARGET, label_smoothing=0.1),
  ),
  "logit_l2": (kd.logit_l2("mean"), lambda s, t: F.mse_loss(s["logits"], t["logits"]) / 2),
  "total_variation": (
    kd.total_variation(),
    lambda s, t: F.l1_loss(soften(s, 1).exp(), soften(t, 1).exp(), reduction="sum") / 2 / BATCH,
  ),
  "logit_standardisation": (
    [(0.1, kd.hard_labels()), (9.0, kd.logit_standardisation(2.0))],
    io(peer.LogitStdKDLoss(temperature=2.0, alpha=0.1, beta=9.0, **LOGITS), TARGET),
  ),
  "dist": (kd.dist(2.0, 0.5, 4.0), io(peer.DISTLoss(beta=2.0, gamma=0.5, tau=4.0, eps=1e-30, **LOGITS))),
}


@pytest.mark.parametrize("name", ON_LOGITS)
def test_on_logits(name):
  agree(*ON_LOGITS[name], *logits())


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize("beta", [2.0, 8.0])
def test_dkd(mmrazor, beta):
  theirs = mmrazor("decoupled_kd", "DKDLoss")(tau=4.0, alpha=1.0, beta=beta)
  agree(kd.dkd(1.0, beta, 4.0), lambda s, t: theirs(s["logits"], t["logits"], TARGET), *logits())


def test_wsld(mmrazor):
  theirs = mmrazor("weighted_soft_label_distillation", "WSLD")(tau=2.0, num_classes=CLASSES)
  agree(kd.wsld(2.0), lambda s, t: theirs(s["logits"], t["logits"], TARGET), *logits())


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_dist_of_mmrazor(mmrazor, tau):
  """It adds 1e-8 to a product of norms."""
  theirs = mmrazor("dist_loss", "DISTLoss")(tau=tau)
  agree(kd.dist(tau=tau), lambda s, t: theirs(s["logits"], t["logits"]), *logits(), rtol=1e-6)


def test_optax():
  s, t = (x["logits"].astype(np.float32) for x in logits())
  log_q, log_p = jax.nn.log_softmax(s), jax.nn.log_softmax(t)
  want = {
    "kl_divergence": (kd.hinton(1.0), optax.kl_divergence(log_q, jnp.exp(log_p))),
    "log_targets": (kd.hinton(1.0), optax.losses.kl_divergence_with_log_targets(log_q, log_p)),
    "soft": (kd.soft_labels(), optax.softmax_cross_entropy(s, jnp.exp(log_p))),
    "hard": (kd.hard_labels(), optax.softmax_cross_entropy_with_integer_labels(s, jnp.asarray(LABELS))),
    "l2": (kd.logit_l2(), optax.l2_loss(s, t).sum(-1)),
  }
  for loss, theirs in want.values():
    np.testing.assert_allclose(loss(s, t, {"label": jnp.asarray(LABELS)})[0], theirs, rtol=1e-4, atol=1e-5)


# On activations.
@pytest.mark.parametrize("mode", ["code", "paper"])
def test_at(mode):
  s, t = both(6, 6, 4, teacher=(6, 6, 9))
  agree(kd.at("tap", "tap", paper=mode == "paper"), io(peer.ATLoss({"pair": TAP}, mode)), s, t)


@pytest.mark.parametrize("normalise", [False, True])
def test_fitnet(normalise):
  loss, (s, t) = kd.fitnet("tap", "tap", normalise), both(6, 6, 4, teacher=(6, 6, 9))
  more = started(loss, s, t)
  regressor = filled(
    nn.Sequential(nn.Conv2d(4, 9, 1), *((nn.BatchNorm2d(9), nn.ReLU()) if normalise else ())), more["aux"]
  )
  agree(loss, lambda s, t: F.mse_loss(regressor(s["tap"]), t["tap"]), s, t, **more)


def test_pkt():
  theirs = peer.PKTLoss("tap", "output", "tap", "output", eps=0.0)
  agree(kd.pkt("tap", "tap"), io(theirs), *both(12, teacher=(16,)))


def test_rkd():
  theirs = peer.RKDLoss("tap", "tap", 25.0, 50.0, "mean")
  agree(kd.rkd("tap", "tap"), io(theirs), *both(12, teacher=(16,)), rtol=1e-9)


def test_sp():
  def gram(x):
    return F.normalize(x["tap"].flatten(1) @ x["tap"].flatten(1).T, p=2, dim=1)

  agree(kd.sp("tap", "tap"), lambda s, t: F.mse_loss(gram(s), gram(t)), *both(6, 6, 4, teacher=(6, 6, 9)))


def test_ab(wrapper):
  loss, (s, t) = kd.ab("tap", "tap", margin=1.5), both(6, 6, 4, teacher=(6, 6, 9))
  more = started(loss, s, t)
  shapes = {"in_channels": 4, "out_channels": 9, "kernel_size": 1, "bias": False}, {"num_features": 9}
  connector = filled(wrapper.Connector4DAB.build_connector(*shapes), more["aux"])
  theirs = peer.AltActTransferLoss({"pair": TAP}, 1.5, "mean")
  agree(loss, lambda s, t: io(theirs)({"tap": connector(s["tap"])}, t), s, t, **more)


def test_ft(wrapper):
  loss, (s, t) = kd.ft("tap", "tap"), both(6, 6, 4, teacher=(6, 6, 8))
  more = started(loss, s, t)
  translator = filled(wrapper.Translator4FactorTransfer(4, 4), more["aux"][0]["translator"])
  paraphraser = wrapper.Paraphraser4FactorTransfer(0.5, 8, uses_bn=False, uses_decoder=False)
  paraphraser = filled(paraphraser, more["aux"][0]["encoder"])

  def transfer(student, teacher, batch, **kwargs):  # without the paraphraser's own loss, which the student never sees
    total, state, logs = loss(student, teacher, batch, **kwargs)
    return total - logs["reconstruction"], state, logs

  def theirs(s, t):
    factors = {"translator": translator(s["tap"])}, {"paraphraser": paraphraser(t["tap"]).detach()}
    return io(peer.FTLoss())(*factors)

  agree(transfer, theirs, s, t, rtol=1e-9, **more)


def test_vid(wrapper):
  loss, (s, t) = kd.vid("tap", "tap"), both(6, 6, 4, teacher=(6, 6, 9))
  more = started(loss, s, t)
  for part in more["aux"][0]["mean"]:  # theirs have no bias
    part["bias"] = jnp.zeros_like(part["bias"])
  regressor = filled(wrapper.Regressor4VID(4, 9, 9, 1e-5, 5.0), more["aux"][0]["mean"])
  regressor.soft_plus_param.data = torch.tensor(np.float64(more["aux"][0]["variance"]))
  theirs = peer.VIDLoss({"pair": TAP})
  agree(loss, lambda s, t: io(theirs)({"tap": regressor(s["tap"])}, t), s, t, **more)


def test_review(wrapper):
  names = ("early", "middle", "late")
  s = {
    n: values(5 + i, *shape) for i, (n, shape) in enumerate(zip(names, ((8, 8, 4), (4, 4, 6), (2, 2, 8)), strict=True))
  }
  t = {
    n: values(8 + i, *shape) for i, (n, shape) in enumerate(zip(names, ((8, 8, 5), (4, 4, 7), (2, 2, 9)), strict=True))
  }
  loss = kd.review(names, names)
  more = started(loss, s, t)

  def fusion(name, aux):
    parts = wrapper.AttentionBasedFusion(s[name].shape[-1], 8, t[name].shape[-1], "gates" in aux)
    return filled(parts, [aux[key] for key in ("reduce", "out", "gates") if key in aux])

  modules = {name: fusion(name, aux) for name, aux in zip(names, more["aux"], strict=True)}
  context = peer.HierarchicalContextLoss("tap", "output", "tap", "output")

  def theirs(s, t):
    carried, total = None, torch.zeros(())
    for name in reversed(names):
      out, carried = modules[name](s[name], carried, s[name].shape[-1])
      total = total + io(context)({"tap": (out, carried)}, {"tap": t[name]})
    return total

  agree(loss, theirs, s, t, rtol=1e-9, **more)


def test_crd_of_a_first_batch(wrapper):
  """On our negatives, with our constant Z and no 1e-7, and the banks after it."""
  examples, negatives, width, tau = 16, 6, 5, 0.3  # their table of draws is made without an error for powers of two
  loss, (s, t) = kd.crd("tap", "tap", examples, negatives, width, tau), both(12, teacher=(16,))
  more = started(loss, s, t)
  rng = np.random.default_rng(6)
  banks = {n: rng.normal(size=(examples, width)) for n in ("student", "teacher")}
  banks = {n: b / np.linalg.norm(b, axis=1, keepdims=True) for n, b in banks.items()}
  index = np.concatenate(
    [np.arange(BATCH)[:, None], draw(jax.random.key(5), jnp.arange(BATCH), negatives, examples)], 1
  )
  theirs = peer.CRDLoss("tap", "empty", "tap", width, examples, negatives, examples, tau, eps=0.0)
  z = examples * math.exp(log_mean(width, tau))
  theirs.params = torch.tensor([negatives, tau, z, z, 0.5], dtype=torch.float64)
  theirs.memory_v1, theirs.memory_v2 = (torch.tensor(banks[name]) for name in ("student", "teacher"))
  embed = {
    name: filled(wrapper.Normalizer4CRD(nn.Linear(inputs, width)), [more["aux"][name]])
    for name, inputs in (("student", 12), ("teacher", 16))
  }

  def contrast(s, t):
    supplied = {"pos_idx": torch.arange(BATCH), "contrast_idx": torch.tensor(index, dtype=torch.int64)}
    student = {"tap": {"output": embed["student"](s["tap"])}, "empty": {"input": supplied}}
    return theirs(student, {"tap": {"output": embed["teacher"](t["tap"])}})

  with jax.enable_x64(True):
    more["aux_state"] = jax.tree.map(jnp.asarray, banks)
  agree(loss, contrast, s, t, key=jax.random.key(5), **more)
  with jax.enable_x64(True):
    outputs = [kd.Outputs(jnp.zeros((BATCH, CLASSES)), jax.tree.map(jnp.asarray, x)) for x in (s, t)]
    kept = loss(*outputs, {"id": jnp.arange(BATCH, dtype=jnp.int32)}, key=jax.random.key(5), **more)[1]
  np.testing.assert_allclose(kept["student"], theirs.memory_v1.numpy(), rtol=1e-10)
  np.testing.assert_allclose(kept["teacher"], theirs.memory_v2.numpy(), rtol=1e-10)


def test_cwd(mmrazor):
  theirs = mmrazor("cwd", "ChannelWiseDivergence")(tau=4.0)
  loss, (s, t) = kd.cwd("tap", "tap"), both(6, 6, 4)
  agree(loss, lambda s, t: theirs(s["tap"].contiguous(), t["tap"].contiguous()), s, t, **started(loss, s, t))


def test_ofd(mmrazor):
  """The partial distance, of a map and a teacher's map that is cut at its margins already."""
  theirs = mmrazor("ofd_loss", "OFDLoss")(mul_factor=1.0)
  loss, (s, t) = kd.ofd("tap", "tap"), both(6, 6, 4, teacher=(6, 6, 9))
  more = started(loss, s, t)
  connector = filled(nn.Sequential(nn.Conv2d(4, 9, 1, bias=False), nn.BatchNorm2d(9)), more["aux"])
  margin = np.array([c[c < 0].mean() for c in t["tap"].reshape(-1, 9).T])
  cut = torch.tensor(np.maximum(t["tap"], margin)).permute(0, 3, 1, 2)
  agree(loss, lambda s, t: theirs(connector(s["tap"]), cut), s, t, **more)


def test_fsp():
  names = ("early", "late")
  s, t = ({"early": values(i, 8, 8, 4), "late": values(i + 1, 4, 4, 6)} for i in (5, 7))

  def theirs(s, t):
    student, teacher = (peer.FSPLoss.compute_fsp_matrix(x["early"], x["late"]) for x in (s, t))
    return ((student - teacher) ** 2).sum() / BATCH

  agree(kd.fsp(names, names, paper=True), theirs, s, t)
