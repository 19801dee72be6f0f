"""PyTorch's files (`.bin`, `.pth`), read without unpickling: a few opcodes are interpreted, and they make tensors only.

A pickle is a program that may call anything. Here it is read as data: of its 68 opcodes the 37 that `torch.save` of a
dict of tensors needs are known, the three functions that may be called are ours, and every other name is refused.
"""

import contextlib
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnn.models.weights.tensors import AXES, WHERE, Stored, damaged
from jaxnn.typing import HostArray

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_PUSHED = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _Name(NamedTuple):
    module: str
    name: str


class _Storage(NamedTuple):
    dtype: np.dtype[Any]
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(Exception):
    pass


def _short(value: Any) -> str:
    """What a refusal says of a value; never a tuple's own text, which may be longer than any memory (tuples of tuples
    of one tuple, doubled at each level by two bytes of the file)."""
    return f"{value!r:.60}" if isinstance(value, (str, int, _Name)) else type(value).__name__


def _empty() -> dict[Any, Any]:
    return {}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise _Refused("a tensor of no storage")
    if len(shape) != len(strides) or len(shape) > AXES:
        raise _Refused(f"a tensor of {len(shape)} axes with {len(strides)} strides")
    if math.prod(n for n in shape if n) * storage.dtype.itemsize >= 2**63:
        raise _Refused(f"a tensor of shape {shape}")
    reach = 1
    for stride, size in sorted(zip(strides, shape)):
        if size > 1 and stride < reach and 0 not in shape:
            raise _Refused(f"a tensor {list(shape)} with strides {list(strides)}, whose elements share memory")
        reach += (size - 1) * stride if size > 1 else 0
    # The stride of an axis of one says nothing, and may be anything.
    return _Tensor(storage, offset, tuple(shape), tuple(s if n > 1 else 0 for n, s in zip(shape, strides)))


# What a file may call, by name: none of it is PyTorch's.
_CALLS: dict[_Name, Callable[..., Any]] = {
    _Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Name("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    _Name("collections", "OrderedDict"): _empty,
}


def _named(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Refused("it names what is no text")
    found = _Name(module, name)
    if found not in _CALLS and not (found.module == "torch" and found.name in _STORAGES):
        raise _Refused(f"it names {found.module}.{found.name}, which is no part of a tensor")
    return found


def _storage(described: Any) -> _Storage:
    if not isinstance(described, tuple) or len(described) != 5 or described[0] != "storage":
        raise _Refused(f"a stored object {_short(described)}")
    _, kind, key, _, size = described
    known = isinstance(kind, _Name) and kind.name in _STORAGES and isinstance(key, str)
    if not known or type(size) is not int or not 0 <= size < 2**63:
        raise _Refused(f"a storage of {_short(kind)}, {_short(key)}, {_short(size)}")
    return _Storage(np.dtype(_STORAGES[kind.name]), key, size)


class _Reader:
    """The opcodes, over a stack; `memo` is what they refer back to."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def _since_mark(self) -> list[Any]:
        at = self.marks.pop()
        taken = self.stack[at:]
        del self.stack[at:]
        return taken

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise _Refused("items for something that is no dict")
        for name in items[::2]:
            if not isinstance(name, str):
                raise _Refused(f"an entry's name is {_short(name)} and no text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def step(self, code: str, arg: Any) -> None:
        """One opcode other than STOP."""
        stack = self.stack
        if code in ("PROTO", "FRAME"):
            return
        if code in _PUSHED:
            stack.append(arg)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if code == "EMPTY_DICT" else [])
        elif code == "MARK":
            self.marks.append(len(stack))
        elif code in ("BINPUT", "LONG_BINPUT"):
            self.memo[arg] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif code == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            taken = tuple(stack[-count:])
            del stack[-count:]
            stack.append(taken)
        elif code == "GLOBAL":
            stack.append(_named(*arg.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_named(module, name))
        elif code == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif code == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, _Name) or function not in _CALLS:
                raise _Refused(f"it calls {_short(function)}")
            stack.append(_CALLS[function](*arguments))
        elif code in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if code == "SETITEMS" else [stack.pop(-2), stack.pop()]
            self._fill(items)
        elif code in ("APPEND", "APPENDS"):
            items = self._since_mark() if code == "APPENDS" else [stack.pop()]
            if type(stack[-1]) is not list:
                raise _Refused("items for something that is no list")
            stack[-1].extend(items)
        elif code == "BUILD":
            stack.pop()  # an OrderedDict's attributes: versions of modules, which say nothing of tensors
        else:
            raise _Refused(f"its opcode {code} makes no tensor")


def _interpret(path: Path, program: bytes) -> Any:
    reader = _Reader()
    try:
        for opcode, arg, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return reader.stack.pop()
            reader.step(opcode.name, arg)
    except _Refused as refused:
        raise ValueError(
            f"{WHERE}: {str(path)!r} is refused: {refused}. Tried: reading it as a dict of tensors, running nothing. "
            f"Save the state_dict alone, best as safetensors."
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise damaged(path, f"its pickle is damaged ({type(error).__name__}: {error})") from error
    raise damaged(path, "its pickle does not end")


def _flat(path: Path, value: Any) -> dict[str, _Tensor]:
    """The tensors by name; a dict of them may lie under "state_dict" or "model"."""
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict):
        raise damaged(path, f"it holds {type(value).__name__} and no dict of tensors")
    for name, tensor in value.items():
        if not isinstance(tensor, _Tensor):
            raise damaged(path, f"its entry {name!r:.60} is {type(tensor).__name__} and no tensor")
    return value


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What `zipfile` says of a damaged archive is the error of this library."""
    try:
        yield
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, OverflowError, struct.error, UnicodeError) as error:
        raise damaged(path, f"its archive is damaged ({type(error).__name__}: {error})") from error


def read_pickled(path: Path) -> dict[str, Stored]:
    """The tensors of a file that `torch.save` wrote (as PyTorch does since 1.6), by name.

    Raises:
        ValueError: If the file is of the older form, is damaged, or holds anything but tensors.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{WHERE}: {str(path)!r} is no zip archive. Tried: the form that torch.save writes since PyTorch 1.6. Load "
            f"and save it again there, best as safetensors."
        )
    size = path.stat().st_size
    with _reading(path):
        archive = zipfile.ZipFile(
            path
        )  # open while a tensor may be read: its directory is as long as there are tensors
        members = {info.filename: info for info in archive.infolist()}
        programs = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise damaged(path, "it has no data.pkl")
        packed = [i.filename for i in members.values() if i.compress_type != zipfile.ZIP_STORED or i.file_size > size]
        if packed:
            raise damaged(path, f"{packed[0]!r} is compressed, which torch.save does not do")
        root = programs[0].removesuffix("data.pkl")
        if members.get(f"{root}byteorder") and archive.read(f"{root}byteorder").strip() != b"little":
            raise damaged(path, "its byte order is not little-endian")
        tensors = _flat(path, _interpret(path, archive.read(programs[0])))
    found = {}
    for name, tensor in tensors.items():
        member = members.get(f"{root}data/{tensor.storage.key}")
        reach = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides)) + 1
        empty = 0 in tensor.shape
        room = 0 if member is None else member.file_size // tensor.storage.dtype.itemsize
        if member is None or (reach > room and not empty):
            raise damaged(path, f"tensor {name!r} {list(tensor.shape)} reaches element {reach} of {room}")
        if tensor.storage.size * tensor.storage.dtype.itemsize != member.file_size:
            raise damaged(
                path, f"tensor {name!r} is of {tensor.storage.size} stored {tensor.storage.dtype}, and there are {room}"
            )

        def read(tensor: _Tensor = tensor, member: zipfile.ZipInfo = member) -> HostArray:
            with _reading(path):
                flat = np.frombuffer(archive.read(member), tensor.storage.dtype)
            steps = [s * flat.itemsize for s in tensor.strides]
            view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, steps, writeable=False)
            return view if 0 not in tensor.shape else np.zeros(tensor.shape, flat.dtype)

        found[name] = Stored(tensor.shape, tensor.storage.dtype, read)
    return found
