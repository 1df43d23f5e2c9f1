import jax
import pytest

from leanax.core.errors import UserError
from quant.policy import explain, policy
from quant.spec import Setting, Spec, int8, parse, weights

SITES = ["a/kernel", "b/kernel", "b/kernel:add", "c/kernel", "head/kernel", "output"]
KERNELS = [name for name in SITES if name.endswith("kernel")]


def test_texts_dicts_and_settings_mean_the_same():
  expected = Setting(Spec(4, "lsq", per_channel=False), Spec(8, "lsq", observer="ema", options=(("rate", 0.1),)))
  assert parse("w4a8 learned per_tensor ema(rate=0.1)") == expected
  spec = {
    "weights": 4,
    "activations": 8,
    "learned": True,
    "per_channel": False,
    "observer": "ema",
    "options": {"rate": 0.1},
  }
  assert parse(spec) == expected
  assert parse(expected) is expected
  assert parse("float") == Setting() and parse("w3") == weights(3) and parse("w8a8") == int8()
  expected = Setting(Spec(2, "lsq", narrow=False, start="lsq"), Spec(2, "lsq", start="lsq"))
  assert parse("w2a2 learned full start=lsq") == expected


@pytest.mark.parametrize(
  "text", ["w4a8", "float", "a8", "w2a2 learned full start=lsq", "w8a8 per_tensor ema(rate=0.1)"]
)
def test_a_setting_prints_as_it_is_read(text):
  assert str(parse(text)) == text


@pytest.mark.parametrize(
  "spec, sentence",
  [
    ("", "does not begin with widths"),
    ("learned", "does not begin with widths"),
    ("w9a8", "a grid of 9 bits"),
    ("w4a8 lerned", "did you mean 'learned'"),
    ("w4a8 ema(rat=0.1)", "does not take"),
    ("w4a8 ema(rate=fast)", "does not read like"),
    ("w4a8 percentile(q=99.9", "does not read like"),
    ("w4a8 ewgs(delta=0.1)", r"'ewgs' takes no options here; expected ewgs"),
    ("w4a4 learned stochastic", "gives the estimator twice, the second time as 'stochastic'; expected one"),
    ("w4a4 learned static", "gives the estimator twice, the second time as 'static'"),
    ("w4a8 percentile min_max", "gives the observer twice, the second time as 'min_max'"),
    ("w4a8 percentile(q=99) percentile(q=98)", "gives the options twice"),
    ("w4a8 per_tensor per_channel", "gives the per_channel twice"),
    ("w4a8 start=mean", "unknown start of a learned scale 'mean'"),
    ({"weight": 4}, "did you mean 'weights'"),
    ({"weights": 4, "observer": "minmax"}, "did you mean 'min_max'"),
    ({"weights": "8"}, "a grid of '8' bits"),
    ({"weights": 8, "learned": "no"}, "'learned' of a quantization setting is 'no'; expected True or False"),
    (None, "a quantization setting is None"),
    (8, "a quantization setting is 8"),
  ],
)
def test_mistakes_are_named(spec, sentence):
  with pytest.raises(UserError) as raised:
    parse(spec)
  assert sentence in str(raised.value)


def test_the_ends_get_eight_bits_and_explain_shows_it():
  found = explain(policy("w4a4 learned"), SITES, KERNELS)
  assert {k: (v.setting.weights.bits, v.setting.activations.bits) for k, v in found.items()} == {
    "a/kernel": (8, 8),
    "b/kernel": (4, 4),
    "b/kernel:add": (4, 4),
    "c/kernel": (4, 4),
    "head/kernel": (8, 8),
    "output": (8, 8),
  }
  assert found["a/kernel"].rule == "* (ends)" and found["b/kernel"].rule == "*"
  assert all(spec.estimator == "lsq" for v in found.values() for spec in v.setting.specs)


def test_the_ends_can_be_given_or_omitted():
  assert explain(policy("w4a4", ends=None), SITES, KERNELS)["a/kernel"].setting == parse("w4a4")
  assert explain(policy("w2a2", ends="w4"), SITES, KERNELS)["a/kernel"].setting == parse("w4a2")
  assert explain(policy("w8a16"), SITES, KERNELS)["a/kernel"].setting == parse("w8a16")
  assert explain(policy("w4"), SITES, KERNELS)["head/kernel"].setting == parse("w8")


def test_the_first_rule_wins_and_sites_without_one_stay_float():
  found = explain(policy({"b/*": "float", "?/kernel": "w4a8"}, ends=None), SITES, KERNELS)
  assert {k: (str(v.setting), v.rule) for k, v in found.items()} == {
    "a/kernel": ("w4a8", "?/kernel"),
    "b/kernel": ("float", "b/*"),
    "b/kernel:add": ("float", "b/*"),
    "c/kernel": ("w4a8", "?/kernel"),
  }
  found = explain(policy([("a/kernel", "float"), ("*", "w4a4")]), SITES, KERNELS)
  assert found["a/kernel"].setting == parse("float") and found["a/kernel"].rule == "a/kernel"


def test_a_rule_without_a_site_is_an_error():
  with pytest.raises(UserError, match="quantization rule 'haed/\\*' matches nothing"):
    explain(policy({"haed/*": "w8a8", "*": "w4a4"}), SITES, KERNELS)
  with pytest.raises(UserError, match="never applies"):
    explain(policy([("*", "w4a4"), ("a/*", "w8a8")]), SITES, KERNELS)
  for rules in (["w4"], [8], [("*", "w4", 3)]):
    with pytest.raises(UserError, match="is not a pair"):
      policy(rules)
  for rules in (None, 8):
    with pytest.raises(UserError, match=f"a quantization policy is {rules}"):
      policy(rules)


def test_a_policy_of_a_policy_is_itself():
  one = policy("w4a4")
  assert policy(one) is one
  assert jax.tree.leaves(one) == [one]
