"""Parser functions of MediaWiki that stand inside sentences: {{#expr:}}, {{#if:}}, {{formatnum:}}, {{lc:}}.

Each takes its arguments as text and returns text, or None if the result depends on the wiki or on today's date.
"""

from __future__ import annotations

import ast
import datetime
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from preprocess.wiki.marks import literal, plain

Function = Callable[[list[str]], str | None]
# MediaWiki's operators as Python's, whose precedence is the same: `round` binds less than plus, more than a comparison
_WORDS = {
    "mod": "%",
    "div": "/",
    "round": "|",
    "and": "and",
    "or": "or",
    "not": "not",
    "^": "**",
    "=": "==",
    "<>": "!=",
}
_TOKEN = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+|<>|!=|<=|>=|[-+*/^()=<>]|[a-z]+)", re.I)
_CALLS: dict[str, Callable[[float], float]] = {
    "abs": abs, "ceil": math.ceil, "floor": math.floor, "trunc": math.trunc, "sqrt": math.sqrt, "ln": math.log,
    "exp": math.exp, "sin": math.sin, "cos": math.cos, "tan": math.tan,
}  # fmt: skip
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Mod: lambda a, b: math.fmod(int(a), int(b)), ast.Pow: lambda a, b: math.pow(a, b),
    ast.BitOr: lambda value, digits: math.floor(value * 10 ** int(digits) + 0.5) / 10 ** int(digits),
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.Gt: operator.gt, ast.LtE: operator.le,
    ast.GtE: operator.ge,
}  # fmt: skip


def calculate(text: str) -> float | None:
    """The value of an expression of {{#expr:}}; None if it is not one."""
    text, at, words = plain(text).replace("−", "-").replace("×", "*").strip(), 0, []
    if len(text) > 300:
        return None
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            return None
        word = found[1].lower()
        words.append(_WORDS.get(word, word if not word.isalpha() or word in ("pi", "e") else f" {word} "))
        at = found.end()
    source = re.sub(r"\b(" + "|".join(_CALLS) + r")\b\s*(\d[\d.]*)", r"\1(\2)", " ".join(words))
    try:
        return _value(ast.parse(re.sub(r"\b0+(?=\d)", "", source.strip()), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, KeyError, TypeError, MemoryError):
        return None


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id="pi"):
            return math.pi
        case ast.Name(id="e"):
            return math.e
        case ast.UnaryOp(op=ast.Not()):
            return int(not _value(node.operand))
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand)
        case ast.UnaryOp(op=ast.UAdd()):
            return _value(node.operand)
        case ast.BinOp():
            return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
        case ast.Compare(ops=[single], comparators=[right]):
            return int(_OPERATORS[type(single)](_value(node.left), _value(right)))
        case ast.BoolOp(op=ast.And()):
            return int(all(_value(value) for value in node.values))
        case ast.BoolOp():
            return int(any(_value(value) for value in node.values))
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return _CALLS[name](_value(argument))
    raise ValueError("not an expression")


def number(value: float) -> str:
    """A number as MediaWiki prints it: no more than 14 digits, no trailing zeros."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.14g}"


def expression(arguments: list[str]) -> str | None:
    value = calculate(arguments[0])
    return None if value is None else number(value)


def group_thousands(text: str) -> str | None:
    """1234567.89 -> 1,234,567.89; None if it is not a number."""
    found = re.fullmatch(r"([-+−]?)(\d+)(\.\d*)?", plain(text).replace(",", "").replace("\u00a0", "").strip())
    return f"{found[1]}{int(found[2]):,}{found[3] or ''}" if found else None


def _format_number(arguments: list[str]) -> str | None:
    if not arguments[0]:
        return None
    if len(arguments) > 1 and arguments[1].upper() in ("R", "NOSEP"):
        return arguments[0].replace(",", "")
    return group_thousands(arguments[0]) or arguments[0]


def _get(arguments: list[str], place: int) -> str:
    return arguments[place] if place < len(arguments) else ""


def _equal(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def _switch(arguments: list[str]) -> str | None:
    default, falls_through = "", False
    for case in arguments[1:]:
        name, equals, value = case.partition("=")
        name, value = name.strip(), value.strip()
        if not equals:
            falls_through = falls_through or _equal(name, arguments[0])
            default = case  # the last case without a value is the default
        elif falls_through or _equal(name, arguments[0]):
            return value
        elif name == "#default":
            default = value
    return default


def _if_expression(arguments: list[str]) -> str | None:
    value = calculate(arguments[0]) if arguments[0] else 0
    return None if value is None else _get(arguments, 1 if value else 2)


def _time(arguments: list[str]) -> str | None:
    """{{#time:Y年n月j日|2020-05-01}}: only for a date that is given; None for today."""
    try:
        day = datetime.date.fromisoformat(plain(_get(arguments, 1)))
    except ValueError:
        return None
    known = {"Y": f"{day.year}", "n": f"{day.month}", "j": f"{day.day}", "m": f"{day.month:02}", "d": f"{day.day:02}"}
    asked = plain(arguments[0]).replace('"', "")
    return None if re.search(r"[A-Za-z]", re.sub("[Ynjmd]", "", asked)) else "".join(known.get(c, c) for c in asked)


def _tag(arguments: list[str]) -> str | None:
    name = arguments[0].lower()
    if name in ("ref", "references", "templatestyles", "indicator"):
        return ""
    if name in ("math", "chem", "ce"):
        return formula(_get(arguments, 1), name)
    return _get(arguments, 1) if name in ("nowiki", "poem", "span", "small", "code") else None


def formula(source: str, tag: str) -> str:
    """A formula of <math> or <chem> as LaTeX between dollar signs."""
    source = " ".join(plain(source).split())
    if not source:
        return ""
    return literal(f"${source}$" if tag == "math" else f"$\\ce{{{source}}}$")


def nothing(arguments: list[str]) -> str:
    return ""


FUNCTIONS: dict[str, Function] = {
    "#expr": expression,
    "formatnum": _format_number,
    "#if": lambda a: _get(a, 1 if a[0] else 2),
    "#ifeq": lambda a: _get(a, 2 if _equal(a[0], _get(a, 1)) else 3),
    "#ifexpr": _if_expression,
    "#iferror": lambda a: a[0] if len(a) < 3 else a[2],
    "#switch": _switch,
    "#time": _time,
    "#timel": _time,
    "#tag": _tag,
    "#dateformat": lambda a: a[0] or None,
    "#formatdate": lambda a: a[0] or None,
    "lc": lambda a: a[0].lower(),
    "uc": lambda a: a[0].upper(),
    "lcfirst": lambda a: a[0][:1].lower() + a[0][1:],
    "ucfirst": lambda a: a[0][:1].upper() + a[0][1:],
    "padleft": lambda a: a[0].rjust(int(_get(a, 1)), (_get(a, 2) or "0")[0]) if _get(a, 1).isdigit() else None,
    "padright": lambda a: a[0].ljust(int(_get(a, 1)), (_get(a, 2) or "0")[0]) if _get(a, 1).isdigit() else None,
    "#len": lambda a: str(len(a[0])),
    "#sub": lambda a: a[0][int(_get(a, 1) or 0) :][: int(_get(a, 2))] if _get(a, 2).isdigit() else None,
    "#replace": lambda a: a[0].replace(a[1], _get(a, 2)) if _get(a, 1) else None,
    "#ifexist": lambda a: _get(a, 1),
    "displaytitle": nothing,
    "defaultsort": nothing,
    "#coordinates": nothing,
    "#related": nothing,
    "#lst": nothing,
    "#section": nothing,
}
