"""Models by import path: linen, nnx and plain functions give the same two functions; mistakes are one sentence."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.models import model

HERE = __name__
KEY = jax.random.key(0)
X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)


class Plain(nn.Module):
  hidden: int = 5

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(self.hidden)(x))
    return nn.Dense(2)(x)


class Normed(nn.Module):
  classes: int
  rate: float = 0.5

  @nn.compact
  def __call__(self, x, train):
    x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
    return nn.Dense(self.classes)(nn.Dropout(self.rate, deterministic=not train)(x))


class Deterministic(nn.Module):
  @nn.compact
  def __call__(self, x, *, deterministic: bool = True):
    return nn.Dropout(0.5)(nn.Dense(64)(x), deterministic=deterministic)


class ModeField(nn.Module):
  train: bool

  @nn.compact
  def __call__(self, x):
    return nn.Dropout(0.5, deterministic=not self.train)(nn.Dense(64)(x))


class OtherStream(nn.Module):
  @nn.compact
  def __call__(self, x, training: bool):
    x = nn.Dense(4)(x)
    return x + jax.random.normal(self.make_rng("noise"), x.shape) if training else x


class Partitioned(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(2, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "m")))(x)


class Sower(nn.Module):
  @nn.compact
  def __call__(self, x):
    self.sow("losses", "norm", jnp.sum(x))
    return nn.Dense(2)(x)


class TwoInputs(nn.Module):
  @nn.compact
  def __call__(self, x, mask):
    return nn.Dense(2)(x * mask)


Small = functools.partial(Plain, hidden=3)
Shell = functools.partial(functools.partial(os.system), "false")
NotCallable = 3


class Factory:
  def __call__(self):
    return Plain()


def medium(hidden: int = 4):
  return Plain(hidden)


@functools.lru_cache
def cached(hidden: int = 6):
  return Plain(hidden)


class Family:
  @classmethod
  def large(cls, hidden: int = 9):
    return Plain(hidden)


large = Family.large


def functions(width: int = 4):
  def init(key, x):
    return {"params": {"w": jax.random.normal(key, (x.shape[-1], width))}, "count": {"n": jnp.zeros((), jnp.int32)}}

  def apply(variables, x, *, train, key=None):
    noise = 0.0 if key is None else jax.random.normal(key, ())
    logits = x @ variables["params"]["w"] + noise
    return logits, {"count": {"n": variables["count"]["n"] + 1}}

  return init, apply


def bare_functions():
  return (lambda key, x: {"params": {"w": jnp.ones((x.shape[-1], 2))}}), (lambda v, x: x @ v["params"]["w"])


def bad_init():
  return (lambda key, x: [1.0]), (lambda v, x: x)


def not_a_pair():
  return 3


def load(name, **kwargs):
  return model.load(f"{HERE}:{name}", kwargs)


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_linen_is_the_module_itself():
  ours = load("Plain", hidden=7)
  variables = ours.init(KEY, X)
  assert list(named_leaves(variables)) == [f"params/Dense_{i}/{n}" for i in (0, 1) for n in ("bias", "kernel")]
  logits, state = ours.apply(variables, X)
  equal(logits, Plain(7).apply(variables, X))
  assert state == {}
  equal(ours.apply(variables, X, train=True, key=KEY)[0], logits)
  assert load("medium").init(KEY, X)["params"]["Dense_0"]["kernel"].shape == (3, 4)
  for name, width in (("cached", 6), ("large", 9)):
    assert load(name).init(KEY, X)["params"]["Dense_0"]["kernel"].shape == (3, width)
  assert load("Small").init(KEY, X)["params"]["Dense_0"]["kernel"].shape == (3, 3)


def test_linen_batch_norm_and_dropout():
  ours = load("Normed", classes=3)
  variables = jax.jit(ours.init)(KEY, X)
  state = ours.apply(variables, X)[1]
  equal(state, {"batch_stats": variables["batch_stats"]})
  apply = jax.jit(ours.apply, static_argnames="train")
  noisy, moved = apply(variables, X, train=True, key=jax.random.key(1))
  again, _ = apply(variables, X, train=True, key=jax.random.key(1))
  other, _ = apply(variables, X, train=True, key=jax.random.key(2))
  equal(noisy, again)
  assert not np.array_equal(noisy, other)
  hidden = X @ np.asarray(variables["params"]["Dense_0"]["kernel"])
  mean = moved["batch_stats"]["BatchNorm_0"]["mean"]
  np.testing.assert_allclose(mean, 0.01 * hidden.mean(0), rtol=1e-5)  # flax's momentum is 0.99, the start value 0
  equal(ours.apply({**variables, **moved}, X)[1], moved)


@pytest.mark.parametrize("name", ["Deterministic", "ModeField", "OtherStream"])
def test_mode_is_spelled_in_many_ways(name):
  ours = load(name)
  variables = ours.init(KEY, X)
  equal(ours.apply(variables, X)[0], ours.apply(variables, X)[0])
  noisy = [ours.apply(variables, X, train=True, key=jax.random.key(i))[0] for i in (1, 1, 2)]
  equal(noisy[0], noisy[1])
  assert not np.array_equal(noisy[0], noisy[2])
  assert not np.array_equal(noisy[0], ours.apply(variables, X)[0])


def test_a_mode_the_user_fixed_stays_fixed():
  ours = load("ModeField", train=False)
  variables = ours.init(KEY, X)
  equal(ours.apply(variables, X, train=True, key=KEY)[0], ours.apply(variables, X)[0])


def test_partitioned_parameters_are_plain_arrays():
  ours = load("Partitioned")
  variables = ours.init(KEY, X)
  assert set(named_leaves(variables)) == {"params/Dense_0/bias", "params/Dense_0/kernel"}
  np.testing.assert_allclose(ours.apply(variables, X)[0][:, 0], X.sum(1), rtol=1e-5, atol=1e-6)


def test_functions():
  ours = load("functions", width=5)
  variables = ours.init(KEY, X)
  logits, state = ours.apply(variables, X)
  equal(logits, X @ variables["params"]["w"])
  assert state["count"]["n"] == 0
  noisy, state = ours.apply(variables, X, train=True, key=KEY)
  assert state["count"]["n"] == 1
  assert not np.array_equal(noisy, logits)
  bare = load("bare_functions")
  np.testing.assert_allclose(bare.apply(bare.init(KEY, X), X, train=True, key=KEY)[0][:, 0], X.sum(1), rtol=1e-5)


def test_a_users_own_zoo_is_found(tmp_path, monkeypatch):
  """A name "zoo.FILE" is short for a file of leanax.zoo; every other file is one of the user's package of that name."""
  package = tmp_path / "zoo"
  package.mkdir()
  (package / "__init__.py").write_text("")
  for name in ("mlp", "nets"):
    (package / f"{name}.py").write_text("import flax.linen as nn\n\n\nclass MLP(nn.Dense):\n  pass\n")
  monkeypatch.syspath_prepend(tmp_path)
  zoo_model, users_model = (
    model.load("zoo.mlp:MLP", {"widths": (3,), "classes": 4}),
    model.load("zoo.nets:MLP", {"features": 4}),
  )
  assert len(jax.tree.leaves(zoo_model.init(KEY, X))) == 4 and len(jax.tree.leaves(users_model.init(KEY, X))) == 2
  for name in ("zoo", "zoo.nets"):
    sys.modules.pop(name)


@pytest.mark.parametrize(
  ("spec", "kwargs", "says"),
  [
    ("zoo.lenet", {}, "model 'zoo.lenet' is no import path; expected 'package.module:Name'"),
    ("no_such_package.nets:Net", {}, "there is no module 'no_such_package' on the Python path"),
    ("leanax.engine.no_such:Net", {}, "there is no module 'leanax.engine.no_such' on the Python path"),
    (f"{HERE}:Normd", {}, f"unknown name in module '{HERE}' 'Normd'; did you mean 'Normed'?"),
    (f"{HERE}:NotCallable", {}, "is a int; expected a linen or nnx Module class, a partial of one or a function"),
    ("os:system", {"command": "false"}, "'os:system' is a builtin_function_or_method; expected a linen or nnx Module"),
    ("subprocess:Popen", {"args": "false"}, "'subprocess:Popen' is a class that is no Module; expected a linen or nnx"),
    (f"{HERE}:Shell", {}, "is a partial; expected a linen or nnx Module class, a partial of one or a function"),
    (f"{HERE}:Factory", {}, "is a class that is no Module; expected"),
    (f"{HERE}:Normed", {"classes": 2, "width": 3}, "does not take the keyword 'width'; it takes: classes, rate"),
    (f"{HERE}:Normed", {}, "needs the keyword 'classes', which is missing"),
    (f"{HERE}:functions", {"depth": 3}, "does not take the keyword 'depth'; it takes: width"),
    (f"{HERE}:not_a_pair", {}, "builds a int; expected a linen Module, an nnx Module, or (init, apply)"),
    (f"{HERE}:TwoInputs", {}, "__call__ needs the argument 'mask'"),
  ],
)
def test_mistakes_are_one_sentence(spec, kwargs, says):
  with pytest.raises(UserError) as caught:
    model.load(spec, kwargs)
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch):
  (tmp_path / "broken_nets.py").write_text("def f(:\n")
  (tmp_path / "needy_nets.py").write_text("import no_such_dependency\n")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match="importing 'broken_nets' failed: invalid syntax"):
    model.load("broken_nets:Net")
  with pytest.raises(UserError, match="module 'needy_nets' needs 'no_such_dependency', which is not installed"):
    model.load("needy_nets:Net")


def test_state_of_changing_structure_is_refused():
  ours = load("Sower")
  variables = ours.init(KEY, X)
  with pytest.raises(UserError, match="collection 'losses' changes its structure"):
    ours.apply(variables, X, train=True, key=KEY)
  bad = load("bad_init")
  with pytest.raises(UserError, match=r"init must return \{'params': tree, ...\}, not a list"):
    bad.init(KEY, X)


def test_linen_users_do_not_pay_for_nnx():
  code = (
    "import sys; from leanax.engine.models import model; model.load('tests.engine.linen_only:Net'); "
    "print('flax.nnx' in sys.modules)"
  )
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == "False"
