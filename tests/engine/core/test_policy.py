"""Retry, limits and what an error means, as values."""

import math
import re

import pytest

from engine.core.policy import Decision, Limits, Policy, Resources, Retry, Verdict, check_limit, class_names, decide, lineage
from engine.errors import WorkerLost


class Mine(ConnectionError):
    pass


NAMES = lineage(Mine())


# retry


def test_attempts_count_the_first():
    policy = Policy(retry=Retry(attempts=2))
    assert decide(policy, 1, NAMES).verdict is Verdict.RETRY
    assert decide(policy, 2, NAMES).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("backoff", "pauses"),
    [("fixed", [2, 2, 2, 2]), ("linear", [2, 4, 6, 8]), ("exponential", [2, 4, 8, 16])],
)
def test_a_pause_grows_by_its_backoff(backoff, pauses):
    retry = Retry(9, backoff, delay=2)
    assert [retry.pause(n) for n in (1, 2, 3, 4)] == pauses


def test_no_pause_is_longer_than_its_cap_jitter_included():
    retry = Retry(9, "fixed", delay=10, max_delay=12, jitter=0.5)
    assert retry.pause(1) == 10
    assert retry.pause(1, chance=0.1) == 10.5
    assert retry.pause(1, chance=1.0) == 12


def test_a_pause_of_a_late_attempt_is_the_cap():
    assert Retry(10_000).pause(9_999) == 60.0


@pytest.mark.parametrize("attempts", [0, -1])
def test_less_than_one_attempt_is_refused(attempts):
    with pytest.raises(ValueError, match="at least 1, since the first try counts"):
        Retry(attempts)


def test_an_unknown_backoff_is_refused():
    with pytest.raises(ValueError, match="one of 'fixed', 'linear', 'exponential'"):
        Retry(2, "quadratic")


@pytest.mark.parametrize("option", ["delay", "max_delay", "jitter"])
@pytest.mark.parametrize("value", [-1, math.nan])
def test_a_negative_or_nan_number_of_a_retry_is_refused(option, value):
    with pytest.raises(ValueError, match=f"Retry\\({option}"):
        Retry(**{option: value})


@pytest.mark.parametrize("option", ["delay", "max_delay", "jitter"])
def test_a_retry_without_a_number_is_refused(option):
    with pytest.raises(ValueError, match=f"Retry\\({option}=None\\): a number"):
        Retry(**{option: None})


def test_retry_on_covers_a_class_and_what_derives_from_it():
    assert Retry(retry_on=OSError).covers(NAMES)
    assert Retry(retry_on=(ValueError, ConnectionError)).covers(NAMES)
    assert Retry(retry_on="ConnectionError").covers(NAMES)
    assert Retry(retry_on="builtins.OSError").covers(NAMES)
    assert not Retry(retry_on=ValueError).covers(NAMES)


def test_an_empty_retry_on_covers_everything():
    assert Retry().covers(NAMES)


def test_give_up_on_goes_before_retry_on():
    assert not Retry(retry_on=OSError, give_up_on=ConnectionError).covers(NAMES)
    assert Retry(retry_on=OSError, give_up_on=TimeoutError).covers(NAMES)


def test_an_error_that_retry_does_not_cover_is_not_tried_again():
    assert decide(Policy(retry=Retry(retry_on=ValueError)), 1, NAMES) == Decision(Verdict.FAIL)


def test_classes_are_kept_as_names():
    assert Retry(retry_on=(OSError, "Mine")).retry_on == ("builtins.OSError", "Mine")
    assert class_names([KeyError]) == ("builtins.KeyError",)


@pytest.mark.parametrize("wrong", [5, int, (OSError, None)])
def test_what_is_no_exception_class_is_refused(wrong):
    with pytest.raises(TypeError, match="exception classes or their names"):
        Retry(retry_on=wrong)


def test_lineage_is_the_mro_nearest_first():
    assert [n.rpartition(".")[2] for n in NAMES] == ["Mine", "ConnectionError", "OSError", "Exception", "BaseException"]


# what an error means


@pytest.mark.parametrize(
    ("policy", "verdict"),
    [
        (Policy(), Verdict.FAIL),
        (Policy(on_error="skip"), Verdict.SKIP),
        (Policy(on_error="fallback", fallback="spare"), Verdict.FALLBACK),
    ],
)
def test_after_its_attempts_a_step_ends_as_its_policy_says(policy, verdict):
    assert decide(policy, 1, NAMES) == Decision(verdict)


def test_retries_go_before_skip_and_fallback():
    for policy in (Policy(retry=Retry(2), on_error="skip"), Policy(retry=Retry(2), on_error="fallback", fallback="x")):
        assert decide(policy, 1, NAMES) == Decision(Verdict.RETRY, 1.0)


def test_a_final_error_is_neither_tried_again_nor_handed_to_a_fallback():
    assert decide(Policy(retry=Retry(2)), 1, NAMES, final=True).verdict is Verdict.FAIL
    assert decide(Policy(on_error="fallback", fallback="x"), 1, NAMES, final=True).verdict is Verdict.FAIL
    assert decide(Policy(on_error="skip"), 1, NAMES, final=True).verdict is Verdict.SKIP


def test_a_pause_that_the_nodes_limit_does_not_leave_time_for_is_no_retry():
    policy = Policy(retry=Retry(3, "fixed", delay=5))
    assert decide(policy, 1, NAMES, left=5.1) == Decision(Verdict.RETRY, 5.0)
    assert decide(policy, 1, NAMES, left=5.0) == Decision(Verdict.FAIL)


def test_the_jitter_of_a_decision_comes_from_its_caller():
    policy = Policy(retry=Retry(3, "fixed", delay=10, jitter=0.2))
    assert decide(policy, 1, NAMES, chance=0.5).delay == 11.0


GONE = lineage(WorkerLost())


@pytest.mark.parametrize("retry", [None, Retry(9, retry_on=ValueError)])
def test_a_lost_worker_is_tried_again_where_the_nodes_retry_says_nothing_of_it(retry):
    policy = Policy(retry=retry)
    assert [decide(policy, n, GONE) for n in (1, 2)] == [Decision(Verdict.RETRY, 0.05)] * 2
    assert decide(policy, 3, GONE).verdict is Verdict.FAIL


def test_a_retry_that_speaks_of_lost_workers_decides_about_them():
    assert decide(Policy(retry=Retry(9, "fixed", delay=7, retry_on=WorkerLost)), 5, GONE) == Decision(Verdict.RETRY, 7.0)
    assert decide(Policy(retry=Retry(9, retry_on=ValueError, give_up_on=WorkerLost)), 1, GONE).verdict is Verdict.FAIL


# limits and resources


def test_a_limit_of_none_is_none_and_zero_is_a_limit():
    assert check_limit(None, "x") is None
    assert check_limit(0, "x") == 0.0
    assert check_limit(3, "x") == 3.0


@pytest.mark.parametrize("value", [-1, -0.001, math.nan])
def test_a_negative_or_nan_limit_is_a_value_error(value):
    with pytest.raises(ValueError, match="timeout must be a number of seconds"):
        check_limit(value, "timeout")
    for name in ("attempt", "node"):
        with pytest.raises(ValueError, match=f"Limits\\({name}"):
            Limits(**{name: value})


def test_a_policy_is_plain_when_a_step_is_just_a_call():
    assert Policy(priority=5).plain
    assert not Policy(retry=Retry(2)).plain
    assert not Policy(limits=Limits(attempt=0)).plain
    assert not Policy(limits=Limits(node=1)).plain
    assert not Policy(on_error="skip").plain


def test_resources_say_whether_anything_is_asked_for():
    assert not Resources()
    assert Resources(num_cpus=0)
    assert Resources(num_gpus=1)
    assert Resources(memory=1)
    assert Resources(custom={"tpu": 1})


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"num_cpus": -1}, "num_cpus must be a number, 0 or more, not -1"),
        ({"num_cpus": math.nan}, "num_cpus must be a number, 0 or more, not nan"),
        ({"num_gpus": "two"}, "num_gpus must be a number, 0 or more, not 'two'"),
        ({"num_gpus": 1.5}, "num_gpus must be a whole number where it is above 1, not 1.5"),
        ({"num_cpus": 0.00001}, "num_cpus must be 0 or at least 0.0001, the smallest share, not 1e-05"),
        ({"memory": 0}, "memory must be a whole number of bytes, 1 or more, not 0"),
        ({"custom": ["tpu"]}, "resources must be a mapping of names to numbers, not ['tpu']"),
        ({"custom": {"tpu": True}}, "resources['tpu'] must be a number, 0 or more, not True"),
        ({"custom": {"": 1}}, "resources must have names that are text, not ''"),
        ({"custom": {"GPU": 1}}, "resources must not name 'GPU', which is Ray's own: num_gpus=... says it"),
        ({"custom": {"node:1": 1}}, "resources must not name 'node:1', which is Ray's own"),
    ],
)
def test_resources_that_ray_would_refuse_are_refused(asked, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        Resources(**asked)


def test_a_limit_beyond_any_float_is_refused():
    assert check_limit(math.inf, "timeout") == math.inf
    with pytest.raises(ValueError, match=r"^timeout must be a number of seconds, 0 or more, not 1000"):
        check_limit(10**400, "timeout")


def test_a_retry_says_the_promised_where_nobody_says_anything():
    assert Retry() == Retry(attempts=3, backoff="exponential", delay=1.0, max_delay=60.0, jitter=0.0, retry_on=(), give_up_on=())
