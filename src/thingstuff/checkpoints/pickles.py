"""Pickled weights without running them: an unpickler that knows numpy arrays and nothing else, and a survey of torch archives.

A pickle is a program that may import and call anything. Both readers here replace the step that imports: a name outside a short
table ends the reading with an error before anything is looked up, let alone called.
"""

import _compat_pickle
import codecs
import io
import math
import pickle
import re
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from thingstuff.errors import CheckpointError

REFUSED = "thingstuff never runs code from a weights file"


class _NoCode(Exception):
    """A pickle asks for something outside the table."""


# The interpreter's own unpickler in Python: it keeps its memo in a dict and reads in pieces that the data really holds, where the
# one in C reserves memory for whatever number the file names.
class _Unpickler(pickle._Unpickler, ABC):  # type: ignore[name-defined, misc]
    def find_class(self, module: str, name: str) -> Any:
        # files written by Python 2 and by torch.save use Python 2's module names
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name))
        return self.known(module, name)

    @abstractmethod
    def known(self, module: str, name: str) -> Any:
        """The stand-in for a name of the table, or an error."""

    def get_extension(self, code: int) -> NoReturn:
        raise _NoCode(f"copyreg extension {code}")


# Numpy arrays and nothing else


class _DType:
    """Stands in for `numpy.dtype`: plain numbers of a byte order, nothing with fields or objects."""

    def __init__(self, code: Any, *flags: Any):
        if isinstance(code, bytes):
            code = code.decode("ascii")
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iuf][1248]", code) or code == "f1":
            raise _NoCode(f"an array of {code!r}")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise _NoCode(f"byte order {order!r}")
        self.value = self.value.newbyteorder(order)


class _Array:
    """Stands in for `numpy.ndarray` while it is being restored."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        if isinstance(data, str):  # bytes of Python 2, read as latin-1
            data = data.encode("latin-1")
        self._fill(shape, dtype, data, "F" if fortran else "C")

    def _fill(self, shape: Any, dtype: Any, data: bytes, order: Literal["C", "F"]) -> None:
        if not isinstance(dtype, _DType):
            raise _NoCode(f"an array of type {dtype!r}")
        shape = tuple(int(side) for side in shape)
        if any(side < 0 for side in shape) or len(data) != math.prod(shape) * dtype.value.itemsize:
            raise ValueError(f"an array of shape {shape} can't have {len(data)} bytes of data")
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order=order)


class _Plain:
    """A function of the table, in a shell that a pickle can call but not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Any):
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _NoCode(f"a change of {name}")

    def __setstate__(self, state: Any) -> NoReturn:
        raise _NoCode("a change of a function")


def _new_array(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()  # its shape and data follow as its state


def _array_of_bytes(data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
    if order not in ("C", "F"):
        raise _NoCode(f"an array of axis order {axis_order or order!r}")
    array = _Array()
    array._fill(shape, dtype, bytes(data), order)
    return array


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, _DType):
        raise _NoCode(f"a number of type {dtype!r}")
    data = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.value, count=1)[0]


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _NoCode(f"the encoding {encoding!r}")
    return codecs.latin_1_encode(text)[0]


class _NumpyUnpickler(_Unpickler):
    def known(self, module: str, name: str) -> Any:
        match (module, name):
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return _Plain(_new_array)
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar"):
                return _Plain(_scalar)
            case ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer"):  # pickle protocol 5
                return _Plain(_array_of_bytes)
            case ("numpy", "ndarray"):
                return _Plain(_Array)
            case ("numpy", "dtype"):
                return _Plain(_DType)
            case ("_codecs", "encode"):
                return _Plain(_encode)
            case ("collections", "OrderedDict"):
                return _Plain(OrderedDict)
        raise _NoCode(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _NoCode("a persistent object")


def read_numpy_pickle(path: Path) -> Any:
    """The object in a `.pkl` of numpy arrays, containers, texts and numbers, as detectron2's zoo has them; any protocol.

    Raises:
        CheckpointError: it asks for anything else, is truncated, or an array's shape contradicts its data.
    """
    try:
        payload = _NumpyUnpickler(io.BytesIO(path.read_bytes()), encoding="latin-1").load()
        return _arrays(payload, depth=3)
    except _NoCode as error:
        raise CheckpointError(
            f"{path}: asks for {error}, which is no part of a weights file of numpy arrays; {REFUSED}. "
            "If the file can be trusted, save its weights as safetensors where it was made"
        ) from None
    except Exception as error:  # a broken pickle can raise anything: stack underflow, bad opcodes, wrong types
        raise CheckpointError(f"{path}: truncated or damaged pickle ({_words(error)}); download it again") from error


def _arrays(value: Any, depth: int) -> Any:
    """The real arrays in place of their stand-ins, in dicts nested up to `depth`."""
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without data")
        return value.value
    if isinstance(value, dict) and depth > 0:
        return {key: _arrays(item, depth - 1) for key, item in value.items()}
    return value


# Torch archives: a survey before torch.load

_ITEM_SIZES = {
    **{"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "BoolStorage": 1, "UntypedStorage": 1},
    **{"LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1},
}
# What training frameworks leave beside the weights: histories, schedules, settings. Nothing of it is needed, so it becomes inert.
_BYSTANDERS = re.compile(
    r"(mmengine|mmcv|mmdet|addict)\..+"
    r"|numpy\.(core|_core)\.(multiarray\.(_reconstruct|scalar)|numeric\.\w+)|numpy\.(ndarray|dtype|float64|float32|int64|int32|bool_)"
    r"|numpy\.dtypes\.\w+|collections\.(defaultdict|deque)|builtins\.(getattr|dict|list|tuple|int|float|slice)"
)


class Inert:
    """Stands in for a class that is not needed: takes any arguments and state, keeps nothing, does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


def _inert(path: str) -> type[Inert]:
    module, _, name = path.rpartition(".")
    return type(name, (Inert,), {"__module__": module, "__qualname__": name})


class _Survey(_Unpickler):
    """Walks through a torch archive's pickle with stand-ins for everything, to learn what torch.load would be asked to do."""

    def __init__(self, stream: io.BytesIO, sizes: dict[str, int]):
        super().__init__(stream)
        self.sizes = sizes  # bytes of each storage in the archive
        self.globals: dict[str, type[Inert]] = {}

    def known(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Plain(OrderedDict)
        path = f"{module}.{name}"
        return self.globals.setdefault(path, _inert(path))

    def persistent_load(self, pid: Any) -> Inert:
        kind, storage_type, key, _device, count = pid
        item_size = _ITEM_SIZES.get(getattr(storage_type, "__name__", ""))
        if kind != "storage" or item_size is None:
            raise ValueError(f"unknown storage {pid!r}")
        if key not in self.sizes:
            raise ValueError(f"storage {key} is missing")
        if count * item_size != self.sizes[key]:
            raise ValueError(f"storage {key} claims {count} numbers of {item_size} bytes but holds {self.sizes[key]} bytes")
        return Inert()


def survey_torch_archive(path: Path, known: set[str]) -> list[type[Inert]]:
    """Check a zip archive of torch.save before torch.load sees it, and give stand-ins for the bystanders in it.

    Args:
        path: the archive.
        known: names that `torch.load(weights_only=True)` restores by itself.

    Raises:
        CheckpointError: a name outside both lists, a record that unpacks to more than the file holds, a storage smaller than it
            claims, or a damaged archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("its records unpack to more than the file holds")
            pickles = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ValueError("it has no data.pkl, so it was not written by torch.save")
            root = pickles[0].removesuffix("data.pkl")
            if any(entry.filename == root + "constants.pkl" for entry in entries):
                raise CheckpointError(f"{path}: is a TorchScript program, not weights; save model.state_dict() instead")
            sizes = {entry.filename.removeprefix(root + "data/"): entry.file_size for entry in entries}
            survey = _Survey(io.BytesIO(archive.read(pickles[0])), sizes)
            survey.load()
    except CheckpointError:
        raise
    except Exception as error:  # a broken archive can raise anything
        raise CheckpointError(f"{path}: truncated or damaged torch archive ({_words(error)}); download it again") from error
    others = {name: stand_in for name, stand_in in survey.globals.items() if name not in known}
    refuse_unknown(path, [name for name in others if not _BYSTANDERS.fullmatch(name)])
    return list(others.values())


def refuse_unknown(path: Path, names: list[str]) -> None:
    if names:
        raise CheckpointError(
            f"{path}: asks for {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}, which are Python objects, not weights; "
            f"{REFUSED}. Where the file was made, save the weights alone: torch.save(model.state_dict(), path)"
        )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
