"""Each message that the pages quote is one that the code can raise."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path
from typing import Iterator

import pytest
from test_docs import blocks, headings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/troubleshooting.md').read_text()
ALL = PAGE + (ROOT / 'docs/settings.md').read_text()
FIELD = '\0'


def strings(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a file, each value that is put in as one character."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [getattr(each, 'value', None) for each in node.values]
            yield ''.join(x if isinstance(x, str) else FIELD for x in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def templates() -> list[str]:
    files = [*(ROOT / 'mmselfdistill').rglob('*.py'), *(ROOT / 'tools').glob('*.py')]
    trees = [ast.parse(path.read_text()) for path in files if '.mim' not in path.parts]
    return [each for tree in trees for each in strings(tree)]


CODE = templates()


def pattern(quote: str) -> str:
    """Write a quote, in which … stands for what is put in, as a regular expression."""
    # the list of choices or the cause that ends a message is no part of its string
    words = ' '.join(quote.split()).rstrip('… ')
    return '.*'.join(re.escape(part) for part in words.split('…'))


def is_raised(quote: str) -> bool:
    # a quote may also write out what is put in at its end
    found = pattern(quote)
    return any(re.match(found, each, re.DOTALL) for each in CODE)


def quotes() -> list[str]:
    tables = re.findall(
        r'^\| message[^|]* \|.*\n\|-.*\n((?:\|.*\n)+)', ALL, re.MULTILINE
    )
    cells = [re.findall(r'^\| `(.+?)` \| ', table, re.MULTILINE) for table in tables]
    assert [len(found) for found in cells] == [table.count('\n') for table in tables]
    return [*itertools.chain(*cells), *blocks(PAGE, 'text')]


def test_the_page_quotes_messages_of_each_kind() -> None:
    assert len(quotes()) > 30
    assert not headings(PAGE, 2)


@pytest.mark.parametrize('quote', quotes())
def test_a_quoted_message_is_one_of_the_code(quote: str) -> None:
    assert is_raised(quote)


def test_a_message_that_nobody_raises_is_noticed() -> None:
    assert not is_raised('unlabeled.data: there is no such place …')
    assert not is_raised('resume: the run in the checkpoint was the same')
