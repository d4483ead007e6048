"""Config files written as Python (`model = dict(type="MaskRCNN", ...)`), read as data: parsed, never run."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_DEPTH = 40  # of nested expressions; real configs have about ten


@dataclass(frozen=True)
class Settings:
    """A value of a config, with ways to ask for parts of it that may not be there."""

    value: Any

    def first(self, *paths: tuple[str, ...]) -> "Settings":
        """What lies at the first path that exists; empty settings where none does."""
        for path in paths:
            value = self.value
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                return Settings(value)
        return Settings({})

    def get(self, key: str, default: Any = None) -> Any:
        return self.value.get(key, default) if isinstance(self.value, dict) else default

    @property
    def fields(self) -> dict[str, Any]:
        """The parts by name; none where it has no parts."""
        return self.value if isinstance(self.value, dict) else {}

    def whole(self, key: str, default: int) -> int:
        value = self.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default

    def real(self, key: str, default: float) -> float:
        value = self.get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default

    def numbers(self, key: str, count: int | None = None) -> tuple[float, ...]:
        """A list of numbers, or () where there is none or its length is not `count`."""
        value = self.get(key)
        if not isinstance(value, list | tuple) or (count is not None and len(value) != count):
            return ()
        return tuple(float(v) for v in value) if all(isinstance(v, int | float) for v in value) else ()

    def steps(self) -> Iterator["Settings"]:
        """Every dict in here, outermost first, through lists and dicts."""
        if isinstance(self.value, dict):
            yield self
        inside = (
            self.value.values() if isinstance(self.value, dict) else self.value if isinstance(self.value, list | tuple) else ()
        )
        for item in inside:
            yield from Settings(item).steps()


def parse_settings(text: str) -> Settings | None:
    """The names assigned in a config text, with their literal values; what is no literal becomes None. None: it is no Python."""
    # configs of older versions are several files one after the other, each under its path
    lines = [line for line in text.splitlines() if not (line.rstrip().endswith(".py") and "=" not in line)]
    try:
        statements = ast.parse("\n".join(lines)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
            names[statement.targets[0].id] = _literal(statement.value, names, _DEPTH)
    return Settings(names)


def _literal(node: ast.expr, names: dict[str, Any], depth: int) -> Any:
    if depth == 0:
        return None
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return names.get(name)
        case ast.List(items) | ast.Tuple(items):
            return [_literal(item, names, depth - 1) for item in items]
        case ast.Dict(keys, values):
            found = zip(keys, values, strict=True)
            return {
                key.value: _literal(value, names, depth - 1)
                for key, value in found
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
        case ast.Call(ast.Name("dict"), [], keywords):
            return {word.arg: _literal(word.value, names, depth - 1) for word in keywords if word.arg is not None}
        case ast.UnaryOp(ast.USub(), operand):
            value = _literal(operand, names, depth - 1)
            return -value if isinstance(value, int | float) else None
    return None
