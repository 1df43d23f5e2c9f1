from core.errors import UserError, nearest, unknown


def test_unknown_name_offers_the_nearest():
  error = unknown("loss", "hintn", ["hinton", "logit_l2"])
  assert isinstance(error, UserError)
  assert str(error) == "unknown loss 'hintn'; did you mean 'hinton'?"


def test_unknown_name_without_a_near_one_lists_all():
  assert str(unknown("loss", "zzz", ["b", "a"])) == "unknown loss 'zzz'; expected one of a, b"


def test_nearest_falls_back_to_the_last_segment():
  assert nearest("optimiser.learnin_rate", ["stages.teacher.optimizer.learning_rate", "data.name"])[0].endswith(
    "learning_rate"
  )
