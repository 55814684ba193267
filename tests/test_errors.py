import math
import re
from typing import Any

import numpy as np
import pytest

from mmselfdistill.errors import (
    check_bool,
    check_choice,
    check_number,
    check_whole,
    nearest,
)

SITES = ['logits', 'features', 'boxes', 'masks']
LISTED = "'boxes', 'features', 'logits', 'masks'"


@pytest.mark.parametrize(
    ('given', 'meant'),
    [
        ('logit', 'logits'),
        ('Boxs', 'boxes'),
        ('MASKS', 'masks'),
        ('faetures', 'features'),
    ],
)
def test_nearest_finds_the_name_that_was_meant(given, meant):
    assert nearest(given, SITES) == f"did you mean '{meant}'? Valid: {LISTED}"


def test_nearest_guesses_nothing_when_nothing_is_near():
    assert nearest('xyzzy', iter(SITES)) == f'valid: {LISTED}'
    assert nearest('xyzzy', []) == 'there are no valid names here'


def test_check_choice():
    assert check_choice('site', 'boxes', SITES) == 'boxes'
    with pytest.raises(
        ValueError, match=r"^terms\.a\.site: unknown 'box'; did you mea"
    ):
        check_choice('terms.a.site', 'box', SITES)
    with pytest.raises(ValueError, match=r'^site: unknown 3; valid: '):
        check_choice('site', 3, SITES)


@pytest.mark.parametrize('given', [0, 1, 0.5, np.float32(0.5), np.int64(1)])
def test_check_number_returns_a_plain_float(given):
    value = check_number('weight', given, 0, 1)
    assert type(value) is float
    assert value == given


@pytest.mark.parametrize(
    'given', [-0.1, 1.1, math.nan, math.inf, '0.5', None, True, [1]]
)
def test_check_number_names_setting_value_and_range(given):
    with pytest.raises(
        ValueError, match=r'^momentum: expected a number in \[0, 1\]'
    ) as e:
        check_number('momentum', given, 0, 1)
    assert str(e.value).endswith(f'but got {given!r}')


def test_check_number_open_and_unbounded_ranges():
    with pytest.raises(ValueError, match='expected a number > 0, but got 0'):
        check_number('temperature', 0, 0, above_low=True)
    with pytest.raises(ValueError, match='expected a number >= 0, but got inf'):
        check_number('weight', math.inf, 0)
    with pytest.raises(ValueError, match=r'expected a number in \(0, 1\], but got 0'):
        check_number('rate', 0, 0, 1, above_low=True)
    assert check_number('weight', 1e9, 0) == 1e9


@pytest.mark.parametrize('given', [2, np.int64(2)])
def test_an_integer_in_the_range_is_returned(given: Any) -> None:
    found = check_whole('interval', given, 2)
    assert found == 2 and type(found) is int


@pytest.mark.parametrize('given', [1, 2.0, True, '2', None])
def test_no_integer_in_the_range_is_refused(given: Any) -> None:
    message = f'interval: expected an integer >= 2, but got {given!r}'
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        check_whole('interval', given, 2)


def test_only_true_and_false_are_flags() -> None:
    assert check_bool('draw', True) is True and check_bool('draw', False) is False
    for given in (1, 0, 'False', None, np.bool_(True)):
        message = f'draw: expected True or False, but got {given!r}'
        with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
            check_bool('draw', given)
