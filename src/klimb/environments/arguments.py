"""Arguments in names: `module:Wrapper(argument=value)` and `playground:NAME(option=value)`. Nothing is evaluated."""

from __future__ import annotations

import ast
from typing import Any

Arguments = tuple[tuple[str, Any], ...]


def read_arguments(text: str, *, words: bool = False) -> Arguments | None:
    """Arguments by keyword, each once, with literals as values; None for a text that is none.

    text: what stands between the parentheses. words: whether a bare word is a text, so that it needs no quotes.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        assert not call.args
        assert isinstance(call.func, ast.Name)
        found = tuple((str(one.arg), _value(one.value, words)) for one in call.keywords if one.arg)
        assert len(dict(found)) == len(call.keywords)
    except (AssertionError, SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return None
    return found


def _value(node: ast.expr, words: bool) -> Any:
    return node.id if words and isinstance(node, ast.Name) else ast.literal_eval(node)
