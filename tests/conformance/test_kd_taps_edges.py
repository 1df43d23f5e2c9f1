"""Every loss of kd that reads activations at the edges: numbers that are not finite, shapes that it is not written for,
networks with several outputs. Right numbers, or one sentence that names the loss.
"""

from collections import namedtuple
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.conformance.test_kd_taps import (
  BATCH,
  CLASSES,
  LOSSES,
  OF,
  TAPS,
  batch,
  every_loss,
  jitted,
  make,
  pair,
  start,
  value,
)

RELATIONS = ("cc", "pkt", "rkd", "sp")  # every example is compared with every other
READS_LOGITS = ("byot",)
BAD = (np.nan, np.inf, -np.inf)
FORMS = [  # beside those of the defaults
  ("at", {"paper": True}),
  ("cc", {"form": "consecutive", "width": 3}),
  ("fitnet", {"normalise": True}),
  ("fsp", {"paper": True}),
  ("ft", {"form": "attention"}),
  ("srrl", {"form": "kl"}),
]


def broken(loss, networks, network, number):
  """The two networks with one number of the third example changed, in one of the taps that are read at a time."""
  for tap in getattr(loss.taps, network):
    x = networks[network].taps[tap]
    place = (2, *(size // 2 for size in x.shape[1:]))
    taps = {**networks[network].taps, tap: x.at[place].set(number)}
    yield tap, {**networks, network: networks[network]._replace(taps=taps)}


def check_not_finite(loss, run, name, network):
  networks = dict(zip(("student", "teacher"), pair(), strict=True))
  fine, others = run(*networks.values()), np.arange(BATCH) != 2
  for number in BAD:
    for tap, changed in broken(loss, networks, network, number):
      got = run(*changed.values())
      assert jnp.isnan(got[2]) if np.isnan(number) else not jnp.isfinite(got[2]), (tap, number, got)
      if not loss.relational:
        np.testing.assert_array_equal(got[others], fine[others])
      elif name in RELATIONS and "form" not in OF[name]:
        assert not jnp.any(jnp.isfinite(got)), (tap, number, got)


@pytest.mark.sampled(3)
@every_loss
@pytest.mark.parametrize("network", ["student", "teacher"])
def test_not_finite_stays_not_finite(name, network):
  """NaN of an example makes its number NaN, an infinity NaN or infinite; a gradient of 0 would hide it.

  The others keep their bits where the loss does not relate examples, and are all NaN where it compares them.
  """
  loss, begin = make(name), start(make(name))
  check_not_finite(loss, lambda s, t: jitted(name)(s, t, batch(), begin)[0][0], name, network)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "more"), FORMS)
@pytest.mark.parametrize("network", ["student", "teacher"])
def test_not_finite_stays_not_finite_in_other_forms(name, more, network):
  loss = make(name, **more)
  check_not_finite(loss, jax.jit(partial(value, loss, **start(loss))), name, network)


def test_logits_that_are_not_finite_stay_so():
  loss = make("byot")
  student, _ = pair()
  got = value(loss, student._replace(logits=student.logits.at[2, 1].set(jnp.nan)), None, **start(loss))
  assert jnp.isnan(got[2]) and jnp.all(jnp.isfinite(got[np.arange(BATCH) != 2]))


def test_the_last_example_is_nan_too():
  loss = kd.cc("vector", "map", form="consecutive", width=3)
  student, teacher = pair()
  spoilt = student._replace(taps={**student.taps, "vector": student.taps["vector"].at[-1].set(jnp.nan)})
  got = value(loss, spoilt, teacher, **start(loss))
  np.testing.assert_array_equal(np.isnan(got), np.arange(BATCH) >= BATCH - 2)


def test_activations_too_large_for_a_norm_are_not_a_perfect_student():
  """Squares above float32's largest number: a unit vector of them is not 0."""
  student, teacher = pair()
  student, teacher = (jax.tree.map(lambda a: 1e20 * a, one) for one in (student, teacher))
  for name in ("at", "nst", "sp", "pkt", "cc", "rkd", "ickd"):
    assert not np.any(jitted(name)(student, teacher, batch(), start(make(name)))[0][0] == 0), name


SHAPES = [
  (6,), (6, 1), (6, 6), (6, 5), (6, 3, 5), (6, 1, 5), (6, 5, 5), (6, 4, 4, 5), (6, 2, 2, 5), (6, 1, 1, 5), (6, 4, 4, 1),
  (6, 16, 7, 7), (6, 2, 2, 2, 5), (1, 5), (1, 4, 4, 5), (0, 5), (6, 0, 5), (6, 4, 0, 5),
]  # fmt: skip


def tried(name, student, teacher, dtype=jnp.float32, logits=None, data=None, **more):
  """The shape of a loss's numbers on taps of one shape for each network, its init included; nothing is computed."""
  taps = TAPS.get(name, ("one",))[0]
  names = tuple(f"tap {index}" for index in range(1 if isinstance(taps, str) else len(taps)))
  given = {**TAPS.get(name, (None, None, {}))[2], **more}
  loss = LOSSES[name](**{whose: names for whose in ("student", "teacher") if whose in OF[name]}, **given)
  logits = jax.ShapeDtypeStruct((*student[:1], CLASSES), jnp.float32) if name in READS_LOGITS else logits
  s, t = (
    kd.Outputs(logits, {name: jax.ShapeDtypeStruct(shape, dtype) for name in names}) for shape in (student, teacher)
  )
  head = {"kernel": np.ones((teacher[-1], CLASSES), np.float32), "bias": np.zeros(CLASSES, np.float32)}
  index = np.arange(student[0], dtype=np.int32)
  data = {"label": index % CLASSES, "id": index, **(data or {})}

  def run(s, t):
    aux, aux_state = (
      (None, None) if loss.init is None else loss.init(jax.random.key(0), s, t, {"params": {"head": head}})
    )
    return loss(s, t, data, aux=aux, aux_state=aux_state, key=jax.random.key(1))[0]

  return jax.eval_shape(run, s, t).shape


@pytest.mark.sampled(3)
@every_loss
@pytest.mark.parametrize("each", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_any_shape_is_served_or_refused_in_a_sentence(name, each):
  """Nothing else is raised, and nothing is broadcast: what is served gives one number per example."""
  served = 0
  for student in SHAPES:
    for teacher in dict.fromkeys([student, *SHAPES[::each]]) if "teacher" in OF[name] else [student]:
      try:
        assert tried(name, student, teacher) == student[:1] == teacher[:1]
        served += 1
      except UserError as error:
        message = str(error)
        assert name in message and "\n" not in message and "expected" in message
  assert served


MAP, WIDE, TOKENS, VECTOR = (6, 4, 4, 5), (6, 8, 8, 3), (6, 7, 5), (6, 5)
REFUSED = [
  # Activations that a loss would be constant of, whatever the student does.
  *((name, VECTOR, VECTOR, r"reads 'tap 0' of the student, of shape \(6, 5\); expected \(batch, height") for name in (
    "at", "nst", "cwd", "ickd", "kdsvd", "fsp", "ft", "mgd"
  )),
  *((name, (6, 1, 5), (6, 1, 5), "compares places and got 1; expected 2 or more") for name in ("at", "nst", "cwd")),
  *((name, (6, 4, 4, 5), (6, 1, 1, 5), "compares places and got 1; expected 2 or more") for name in ("at", "cwd")),
  *((name, (6, 1), (6, 1), "compares directions of embeddings whose numbers and got 1") for name in ("cc", "pkt")),
  *((name, (1, 5), (1, 5), "compares examples of a batch and got 1") for name in ("cc", "pkt", "sp")),
  *((name, (1, 5), (1, 5), "compares values of a channel in its batch normalisation and got 1") for name in (
    "ab", "ofd", "review", "simkd", "srrl"
  )),
  ("rkd", (2, 5), (2, 5), "compares examples of a batch and got 2; expected 3 or more"),
  ("ickd", MAP, (6, 4, 4, 1), "compares channels of the teacher and got 1"),
  ("kdsvd", (6, 4, 4, 1), (6, 4, 4, 1), "compares channels and got 1"),
  # Axes that mean other things in the two networks, of equal length or not.
  *((name, (6, 7, 5), (6, 8, 5), r"a tap of shape \(6, 7, 5\) of the student cannot be compared with") for name in (
    "at", "nst", "cwd", "fitnet", "vid", "ab", "ofd", "srrl", "simkd"
  )),
  *((name, (6, 1, 5), (6, 7, 5), r"a tap of shape \(6, 1, 5\) of the student cannot be compared") for name in (
    "at", "nst", "fitnet", "vid"
  )),
  *((name, (6, 16, 5), MAP, r"\(6, 16, 5\) of the student cannot be compared with one of \(6, 4, 4, 5\)") for name in (
    "at", "nst", "fitnet", "vid", "ab", "ofd"
  )),
  *((name, (5, 1), (1, 5), r"of shape \(5, 1\), and 'tap 0' of the teacher, of shape \(1, 5\); expected") for name in (
    "fitnet", "rkd", "cc", "crd", "vid"
  )),
  *((name, (6,), (6,), r"'tap 0' of the student, of shape \(6,\); expected \(batch, ..., channels\)") for name in (
    "fitnet", "ab", "vid", "ofd", "simkd", "srrl"
  )),
  *((name, (6, 64, 7, 7), (6, 128, 7, 7), r"\(6, 64, 7, 7\), where the channels seem to come first") for name in (
    "at", "fitnet", "ab", "nst", "cwd", "fsp", "ft", "mgd", "ofd", "review", "simkd", "srrl", "vid", "ickd", "kdsvd"
  )),
  *((name, (6, 64, 7, 7), (6, 7, 7, 9), r"\(6, 64, 7, 7\), where the channels seem to come first") for name in (
    "at", "fitnet", "review", "ft"
  )),
  ("crd", (6, 0), (6, 5), r"'tap 0' of the student, of shape \(6, 0\); expected \(batch, ...\), not empty"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "student", "teacher", "message"), REFUSED)
def test_wrong_shapes_are_refused(name, student, teacher, message):
  with pytest.raises(UserError, match=message) as caught:
    tried(name, student, teacher)
  assert name in str(caught.value)


def test_maps_that_are_not_square_are_served():
  """As many channels as the map is wide, by chance: another map of its proportions says where the channels are."""
  for name in ("at", "fitnet", "vid", "nst", "review"):
    assert tried(name, (6, 8, 4, 4), (6, 4, 2, 9)) == (6,)
    assert tried(name, (6, 1, 4, 4), (6, 1, 4, 4)) == (6,)


@every_loss
@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8", "complex64"])
def test_activations_are_floats(name, dtype):
  shape = VECTOR if name == "crd" else MAP
  with pytest.raises(
    UserError, match=f"the loss '{name}' reads 'tap 0' of the student, of dtype {dtype}; expected floats"
  ):
    tried(name, shape, shape, jnp.dtype(dtype))


def test_an_activation_is_an_array():
  for given in (None, "map", [1.0], {"a": jnp.ones((2, 3))}):
    with pytest.raises(
      UserError, match=r"reads 'tap' of the student, which is a \w+; expected one array \(batch, \.\.\.\)"
    ):
      kd.rkd("tap", "tap")(kd.Outputs(None, {"tap": given}), kd.Outputs(None, {"tap": jnp.ones((2, 3))}))


@every_loss
@pytest.mark.parametrize(
  "valid",
  [np.ones(BATCH), np.ones(BATCH, np.int32), np.ones((BATCH, 4), bool), np.ones((BATCH, 1), bool), np.ones(3, bool)],
  ids=lambda x: f"{x.dtype}{x.shape}",
)
def test_a_mask_of_examples_is_bools_one_for_each(name, valid):
  loss = make(name)
  with pytest.raises(UserError, match=rf"the loss '{name}' expects batch\['valid'\] to be bools \({BATCH},\); got "):
    jax.eval_shape(lambda: value(loss, *pair(), {**batch(), "valid": valid}, **start(loss)))


@pytest.mark.parametrize("name", ["crd", "mgd"])
@pytest.mark.parametrize("ids", [np.arange(8.0), np.arange(3), np.arange(8)[:, None], np.ones(8, bool)])
def test_ids_are_integers_one_for_each(name, ids):
  loss = make(name)
  with pytest.raises(UserError, match=rf"the loss '{name}' expects batch\['id'\] to be integers \(8,\); got "):
    value(loss, *pair(), {**batch(), "id": ids}, **start(loss))


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_ids_of_any_integers_are_the_same(dtype):
  """Those of 8 bits too, which 300 examples do not fit in."""
  loss, ids = (
    kd.crd("vector", "vector", examples=300, negatives=8, width=3),
    jnp.arange(100, 100 + BATCH, dtype=jnp.int32),
  )
  run = jax.jit(lambda data: value(loss, *pair(), data, **start(loss)))
  got = run({"id": ids.astype(dtype)})
  np.testing.assert_array_equal(got, run({"id": ids}))
  assert np.isfinite(got).all()


@pytest.mark.parametrize("name", ["byot", "srrl"])
@pytest.mark.parametrize("mask", [np.ones(CLASSES), np.ones(CLASSES - 1, bool), np.ones((3, CLASSES), bool)])
def test_a_mask_of_classes_is_bools(name, mask):
  loss = make(name)
  with pytest.raises(UserError, match=rf"the loss '{name}' expects class_mask to be bools \({CLASSES},\) or "):
    value(loss, *pair(), class_mask=jnp.asarray(mask), **start(loss))


Several = namedtuple("Several", ("boxes", "classes"))
CONTAINERS = [
  {"boxes": np.ones((BATCH, 4), np.float32), "classes": np.ones((BATCH, 5, CLASSES), np.float32)},
  (np.ones((BATCH, 4), np.float32), np.ones((BATCH,), np.int32)),
  Several(np.ones((BATCH, 4), np.float32), None),
  None,
]


@pytest.mark.sampled(3)
@every_loss
@pytest.mark.parametrize("given", CONTAINERS, ids=lambda x: type(x).__name__)
def test_outputs_that_it_does_not_read_may_be_anything(name, given):
  """A network may have several outputs: activations are all that most losses read, when they begin too."""
  student, teacher = (one._replace(logits=given) for one in pair())
  loss = make(name)
  if name in READS_LOGITS:
    with pytest.raises(UserError, match=f"the loss '{name}' reads .*logits"):
      loss.init(jax.random.key(0), student, teacher, None)
    with pytest.raises(UserError, match=f"the loss '{name}' reads .*logits"):
      value(loss, student, teacher, batch(), **start(loss))
    return
  shape = jax.eval_shape(lambda s, t: value(loss, s, t, batch(), **start(loss)), student, teacher).shape
  assert shape == (BATCH,)
  gradient = jax.eval_shape(
    jax.grad(lambda taps: value(loss, student._replace(taps=taps), teacher, batch(), **start(loss)).sum()), student.taps
  )
  assert set(gradient) == set(student.taps)


@every_loss
def test_init_refuses_the_same_as_a_call(name):
  loss = make(name)
  if loss.init is None:
    pytest.skip("it trains and remembers nothing")
  student, teacher = pair()
  with pytest.raises(UserError, match=f"the loss '{name}' reads .* of the student, whose outputs have no such tap"):
    loss.init(jax.random.key(0), student._replace(taps={}), teacher, None)
  if loss.needs_teacher:
    with pytest.raises(UserError, match=f"the loss '{name}' needs a teacher"):
      loss.init(jax.random.key(0), student, None, None)


def test_aux_of_other_taps_is_refused():
  given = start(kd.fitnet("map", "map"))
  with pytest.raises(
    UserError, match=r"a layer of a loss reads 6 channels and got an activation of shape \(8, 4, 4, 10\)"
  ):
    value(kd.fitnet("twin", "twin"), *pair(), **given)


def test_a_loss_of_ones_own_gives_one_number_per_example():
  near = lambda s, t, aux, context: jnp.mean((s - t) ** 2, -1)
  loss = kd.on_pairs("near", near, "twin", "twin")
  with pytest.raises(
    UserError, match=r"the loss 'near' gives an array of shape \(8, 4, 4\); expected one number per exa"
  ):
    value(loss, *pair())
  fn = lambda s, t, context: kd.LossOut(s.taps["vector"][:, 0], logs={"size": jnp.ones(())})
  noted = kd.Loss("noted", fn, taps=kd.Taps(("vector",)))
  with pytest.raises(
    UserError, match=r"'noted' gives an array of shape \(\) as its log 'size'; expected one number per"
  ):
    value(noted, *pair())


def test_the_number_of_an_example_that_does_not_count_is_0():
  loss = kd.on_pairs("apart", lambda s, t, aux, context: 1 + jnp.sum((s - t) ** 2, (1, 2, 3)), "twin", "twin")
  left = jnp.arange(BATCH) < 3
  student, teacher = (jax.tree.map(lambda a: a.at[3:].set(jnp.nan), one) for one in pair())
  got, fine = (value(loss, *both, data) for both, data in (((student, teacher), {"valid": left}), (pair(), {})))
  np.testing.assert_array_equal(got, jnp.where(left, fine, 0.0))
