"""Frozen dataclasses to plain JSON values and back, strictly: what is written is what is read, or an error says where.

A field that a file lacks takes its default: it was added after the file was written, and its default is what was done before.
Fields that files of every version hold, and a value without any field, are no such case: there something was lost.
A field that this version does not know is an error, since nobody knows what it changes.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

from thingstuff.errors import CheckpointError

T = TypeVar("T")


def to_plain(value: object) -> Any:
    """A dataclass, enum, tuple or number as JSON has it; fields keep their names, enums become their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return to_plain(value.value)
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"a {type(value).__name__} can't be written into a weights file")


def from_plain(kind: type[T], value: object, where: str, held: Sequence[str] = ()) -> T:
    """Rebuild a value of type `kind`; `where` starts the message of an error.

    Args:
        held: fields that files of every version hold, whatever their defaults.

    Raises:
        CheckpointError: a field is unknown, or missing without a default or though it is `held`; all of them are missing; or a
            value is of another type than the field says.
    """
    if isinstance(value, Mapping) and (lost := [name for name in held if name not in value]):
        raise CheckpointError(f"{where}: has no {', '.join(lost)}, which every file holds: it is damaged; take a whole one")
    return _read(kind, value, where)


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise CheckpointError(f"{where}: {value!r} is none of {[member.value for member in kind]}") from None
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, value, where)
    if origin is typing.Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise CheckpointError(f"{where}: {value!r} is none of {list(arguments)}")
        return value
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if kind is object or kind is Any:
        return _frozen(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, bool, str, types.NoneType) and type(value) is kind:
        return value
    raise CheckpointError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{where}: expected the fields of {kind.__name__}, got {value!r}")
    kinds = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    names = [field.name for field in fields]
    if names and not value:
        raise CheckpointError(f"{where}: holds none of the fields of {kind.__name__}: it is damaged; take a whole one")
    unknown = [name for name in value if name not in names]
    missing = [field.name for field in fields if field.name not in value and _has_no_default(field)]
    if unknown or missing:
        raise CheckpointError(
            f"{where}: fields of {kind.__name__} unknown to this version: {unknown or 'none'}, missing: {missing or 'none'}; "
            "read the file with the version of thingstuff that wrote it"
        )
    return kind(**{name: _read(kinds[name], value[name], f"{where}.{name}") for name in names if name in value})


def _has_no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for kind in kinds:
        try:
            return _read(kind, value, where)
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(problems[0])


def _read_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise CheckpointError(f"{where}: expected a list, got {value!r}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise CheckpointError(f"{where}: expected {len(kinds)} values, got {len(value)}")
    return tuple(_read(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _frozen(value: Any) -> Any:
    """A JSON value with tuples for lists, as frozen dataclasses hold them."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"{value!r} can't be part of a configuration")
