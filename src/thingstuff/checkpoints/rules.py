"""From another library's parameter names to ours: a table of rules applied at once, and an exact fit demanded of the result."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from thingstuff.errors import CheckpointError

_SHOWN = 8  # misfits spelled out in one error; the rest are counted


class Fate(Enum):
    """What may happen to a foreign array besides a new name."""

    DROP = "drop"


DROP = Fate.DROP


@dataclass(frozen=True)
class Rule:
    r"""Foreign names that match `pattern` as a whole get the name `replacement`, and their arrays go through `transform`.

    The replacement is a template (`r"neck.lateral.\1.conv.\2"`), or a function of the match where a template can't count,
    or `DROP` for what the network here computes itself. Several arrays may become one: `part=(1, 3)` is the second of three that
    follow each other along the first axis.
    """

    pattern: str
    replacement: str | Callable[[re.Match[str]], str] | Fate
    transform: Callable[[Tensor], Tensor] | None = None
    part: tuple[int, int] | None = None  # (number from 0, of how many)


def recounted(template: str, *by: int) -> Callable[[re.Match[str]], str]:
    """A replacement for numbers that are counted from elsewhere: res2 is layer1, `recounted("layer{}.{}", -1)`.

    The groups of a match fill the template one after the other, each raised by its number in `by`, or as it is where that ends.
    """

    def replacement(match: re.Match[str]) -> str:
        groups = match.groups()
        return template.format(*(int(group) + step for group, step in zip(groups, by, strict=False)), *groups[len(by) :])

    return replacement


@dataclass(frozen=True)
class Renamed:
    """Arrays under our names, and what went wrong on the way."""

    tensors: dict[str, Tensor]
    sources: dict[str, str]  # our name -> the foreign name it came from
    misfits: list[str]


def rename(foreign: Mapping[str, Tensor], rules: Sequence[Rule]) -> Renamed:
    """Apply the rules to every array; each foreign name must match exactly one of them, and no two may end at one name."""
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    misfits: list[str] = []
    parts: dict[str, dict[tuple[int, int], tuple[str, Tensor]]] = {}
    for name, tensor in foreign.items():
        matches = [(match, rule) for pattern, rule in compiled if (match := pattern.fullmatch(name))]
        if len(matches) != 1:
            misfits.append(f"{name}: no rule knows it" if not matches else f"{name}: {len(matches)} rules claim it")
            continue
        match, rule = matches[0]
        if isinstance(rule.replacement, Fate):
            continue
        target = match.expand(rule.replacement) if isinstance(rule.replacement, str) else rule.replacement(match)
        known = parts.get(target, {}) if rule.part else {}
        if target in tensors or rule.part in known:
            other = known[rule.part][0] if rule.part in known else sources[target]
            misfits.append(f"{name} and {other} both become {target}")
            continue
        value = rule.transform(tensor) if rule.transform else tensor
        if rule.part:
            parts.setdefault(target, {})[rule.part] = (name, value)
            continue
        sources[target] = name
        tensors[target] = value
    for target, found in parts.items():
        names = [name for _, (name, _) in sorted(found.items())]
        values = [value for _, (_, value) in sorted(found.items())]
        count = max(count for _, count in found)
        if target in tensors or len(found) != count or not _stack(values):
            misfits.append(f"{' and '.join(names)}: not the {count} parts that make {target}")
            continue
        sources[target] = names[0]
        tensors[target] = torch.cat(values)
    return Renamed(tensors, sources, misfits)


def _stack(values: Sequence[Tensor]) -> bool:
    """Whether they can follow each other along the first axis."""
    return all(value.ndim > 0 and value.shape[1:] == values[0].shape[1:] for value in values)


def convert(
    foreign: Mapping[str, Tensor], rules: Sequence[Rule], shapes: Mapping[str, Sequence[int]], name: str
) -> dict[str, Tensor]:
    """The arrays of a foreign file under the names of our model, which they must fit exactly.

    Args:
        foreign: the file's arrays by their own names.
        rules: the table of the file's layout.
        shapes: our model's parameters and buffers.
        name: of the file, for the error.

    Raises:
        CheckpointError: one or more misfits; the message counts all of them and shows the first few.
    """
    renamed = rename(foreign, rules)
    tensors = renamed.tensors
    for key, shape in shapes.items():
        # frozen norms are stored without the counter that no evaluation reads
        if key.endswith(".num_batches_tracked") and key not in tensors:
            tensors[key] = torch.zeros(tuple(shape), dtype=torch.int64)
    demand_fit(tensors, shapes, name, renamed.misfits, renamed.sources)
    return tensors


def demand_fit(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    name: str,
    misfits: Sequence[str] = (),
    sources: Mapping[str, str] | None = None,
) -> None:
    """Raise one CheckpointError that names what is too many, missing or of another shape; `misfits` were found before."""

    def called(key: str) -> str:
        source = (sources or {}).get(key, key)
        return key if source == key else f"{source} (here {key})"

    problems = list(misfits)
    for key, tensor in tensors.items():
        if key not in shapes:
            problems.append(f"{called(key)}: the model has no such parameter")
        elif tuple(tensor.shape) != tuple(shapes[key]):
            problems.append(f"{called(key)}: shape {tuple(tensor.shape)}, the model needs {tuple(shapes[key])}")
    problems += [f"{key}: missing from the file" for key in shapes if key not in tensors]
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        count = f"{len(problems)} parameter{'s' if len(problems) > 1 else ''}"
        raise CheckpointError(f"{name}: {count} of the file and of the model it describes do not fit:{shown}{more}")


# Transforms


def background_to_the_end(rows: Tensor) -> Tensor:
    """Class logits with background first (torchvision) to background last, as our networks have it."""
    return torch.cat([rows[1:], rows[:1]])


def without_background(rows: Tensor) -> Tensor:
    """Mask logits less those of the background class, which no result reads."""
    return rows[1:]


def without_background_box(rows: Tensor) -> Tensor:
    """Box deltas (4 rows a class) less those of the background class."""
    return rows[4:]


def bgr_to_rgb(kernel: Tensor) -> Tensor:
    """First-convolution weights of a network that read B, G, R, for input in the order R, G, B."""
    return kernel.flip(1)
