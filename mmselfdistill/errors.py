"""What a wrong setting is answered with: its name, what was given, what is valid."""

from __future__ import annotations

import difflib
import math
import numbers
from typing import Iterable


def nearest(given: str, choices: Iterable[str]) -> str:
    """Say which of the valid names is closest to the one that was given.

    Args:
        given (str): The name that is not valid.
        choices (Iterable[str]): The valid names, in any order.

    Returns:
        str: ``"did you mean 'logits'? Valid: 'boxes', 'logits'"``, or only
        ``"valid: 'boxes', 'logits'"`` when nothing resembles what was given.
    """
    names = sorted(set(choices))
    if not names:
        return 'there are no valid names here'
    listed = ', '.join(repr(name) for name in names)
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(given).lower(), by_lower, n=1)
    if not close:
        return f'valid: {listed}'
    return f'did you mean {by_lower[close[0]]!r}? Valid: {listed}'


def check_choice(setting: str, given: object, choices: Iterable[str]) -> str:
    """Return the given name if it is one of the valid ones.

    Args:
        setting (str): What the setting is called where the user wrote it.
        given (object): What the user wrote.
        choices (Iterable[str]): The valid names.

    Returns:
        str: The given name.

    Raises:
        ValueError: If it is none of the choices.
    """
    names = list(choices)
    if isinstance(given, str) and given in names:
        return given
    written = given if isinstance(given, str) else ''
    raise ValueError(f'{setting}: unknown {given!r}; {nearest(written, names)}')


def check_bool(setting: str, given: object) -> bool:
    """Return the given value if it is True or False: ``'False'`` is true to Python.

    Args:
        setting (str): What the setting is called where the user wrote it.
        given (object): What the user wrote.

    Returns:
        bool: The given value.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(given, bool):
        return given
    raise ValueError(f'{setting}: expected True or False, but got {given!r}')


def check_number(
    setting: str,
    given: object,
    low: float,
    high: float = math.inf,
    *,
    above_low: bool = False,
) -> float:
    """Return the given value as a float if it is a number in the range.

    Args:
        setting (str): What the setting is called where the user wrote it.
        given (object): What the user wrote.
        low (float): The smallest valid number.
        high (float): The largest valid number. Infinity and NaN are never
            valid. Defaults to infinity.
        above_low (bool): Whether ``low`` itself is not valid. Defaults to
            False.

    Returns:
        float: The given number.

    Raises:
        ValueError: If it is no number, or outside the range.
    """
    # bool is a number to Python, but `weight=True` is a slip
    if isinstance(given, numbers.Real) and not isinstance(given, bool):
        value = float(given)
        above = value > low if above_low else value >= low
        if above and value <= high and math.isfinite(value):
            return value
    if high < math.inf:
        wanted = f'in {"(" if above_low else "["}{low:g}, {high:g}]'
    else:
        wanted = f'{">" if above_low else ">="} {low:g}'
    raise ValueError(f'{setting}: expected a number {wanted}, but got {given!r}')


def check_whole(setting: str, given: object, low: int) -> int:
    """Return the given value as an int if it is an integer in the range.

    Args:
        setting (str): What the setting is called where the user wrote it.
        given (object): What the user wrote.
        low (int): The smallest valid integer.

    Returns:
        int: The given integer.

    Raises:
        ValueError: If it is no integer, or too small.
    """
    # bool is an integer to Python too
    if isinstance(given, numbers.Integral) and not isinstance(given, bool):
        value = int(given)
        if value >= low:
            return value
    raise ValueError(f'{setting}: expected an integer >= {low}, but got {given!r}')
