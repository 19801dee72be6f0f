"""Reading optimized HLO text: computations, their instructions, and how often each computation runs."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BITS = {
    "pred": 8, "s1": 1, "u1": 1, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32,
    "u32": 32, "s64": 64, "u64": 64, "f4e2m1fn": 4, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=? ]*)\]")
_HEADER = re.compile(r"^(?P<entry>ENTRY\s+)?%?(?P<name>[\w.\-]+)\s*(?:\(.*\)\s*->.*)?\{\s*(?:/\*.*\*/\s*)?$")
_LEFT = re.compile(r"^\s*(?P<root>ROOT\s+)?%?(?P<name>[\w.\-]+)\s*=\s*")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIP = re.compile(r'"known_trip_count"\s*:\s*\{\s*"n"\s*:\s*"?(\d+)"?')


@dataclass(frozen=True)
class Instruction:
    """One line: `%name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: str
    attributes: str
    root: bool

    @property
    def operand_names(self) -> list[str]:
        """Names of the operands, in order."""
        return _NAME.findall(self.operands) or [p.split()[-1] for p in self.operands.split(",") if p.strip()]

    def computation(self, key: str) -> str | None:
        """The computation an attribute such as `body=%name` refers to."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def computations(self) -> list[str]:
        """Computations that run once each time this runs; loops and conditionals excepted."""
        names = []
        for key in ("calls", "to_apply", "called_computations"):
            if found := re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                names += _NAME.findall(found[1]) or [found[1].strip("{}% ")]
        return names

    def branches(self) -> list[str]:
        """The branches of a conditional."""
        if found := re.search(r"\bbranch_computations=\{([^}]*)\}", self.attributes):
            return [name.strip(" %") for name in found[1].split(",")]
        return [name for key in ("true_computation", "false_computation") if (name := self.computation(key))]

    def attribute(self, key: str) -> str:
        """An attribute's text, up to the next one; "" where there is none."""
        found = re.search(rf"\b{key}=", self.attributes)
        if not found:
            return ""
        text = self.attributes[found.end() :]
        depth = 0
        for i, char in enumerate(text):
            depth += (char in "{[(") - (char in "}])")
            if char == "," and depth == 0:
                return text[:i]
        return text

    @property
    def scope(self) -> str:
        """The metadata's op_name: jit's name, then name scopes, then the primitive."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Module:
    """A parsed module."""

    entry: str
    computations: dict[str, list[Instruction]] = field(default_factory=dict)

    def find(self, computation: str, name: str) -> Instruction | None:
        """An instruction by name."""
        return next((i for i in self.computations.get(computation, ()) if i.name == name), None)

    def root(self, computation: str) -> Instruction | None:
        """What a computation returns."""
        return next((i for i in self.computations.get(computation, ()) if i.root), None)

    def operand_bytes(self, computation: str, instruction: Instruction) -> int:
        """Bytes of an instruction's operands."""
        if _SHAPE.search(instruction.operands):
            return nbytes(instruction.operands)
        found = (self.find(computation, name) for name in instruction.operand_names)
        return sum(nbytes(i.type) for i in found if i is not None)


def nbytes(text: str) -> int:
    """Bytes of every shape in a type's text; a tuple's are summed.

    Raises:
        ValueError: If an element type is unknown.
    """
    total = 0
    for kind, dims in _SHAPE.findall(text):
        if kind in ("token", "opaque"):
            continue
        bits = BITS.get(kind) or (8 if kind.startswith("f8") else None)
        if bits is None:
            raise ValueError(
                f"cost.collectives: HLO element type {kind!r} in {text[:80]!r} is unknown. Add it to hlo.BITS."
            )
        count = math.prod(int(n.strip("<=? ")) for n in dims.split(",") if n.strip("<=? "))
        total += -(-count * bits // 8)
    return total


def _balanced(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    return len(text)


def _instruction(line: str) -> Instruction | None:
    left = _LEFT.match(line)
    if not left:
        return None
    # /*index=5*/ comments stand in long tuples.
    rest = re.sub(r"/\*.*?\*/", "", line[left.end() :])
    if rest.startswith("("):
        end = _balanced(rest, 0)
    else:
        end = len(re.match(r"\S*", rest)[0])  # pyrefly: ignore[unsupported-operation]
    opcode = _OPCODE.match(rest, end)
    if not opcode:
        return None
    close = _balanced(rest, opcode.end() - 1)
    return Instruction(
        name=left["name"],
        type=rest[:end],
        opcode=opcode[1],
        operands=rest[opcode.end() : close - 1],
        attributes=rest[close:],
        root=bool(left["root"]),
    )


def parse(text: str) -> Module:
    """The computations of an HLO module's text.

    Raises:
        ValueError: If there is no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                current = computations.setdefault(header["name"], [])
                entry = header["name"] if header["entry"] else entry
        elif line.startswith("}"):
            current = None
        elif (instruction := _instruction(line)) is not None:
            current.append(instruction)
    if not entry:
        raise ValueError(
            f"cost.collectives: no ENTRY computation in {len(text)} characters of HLO that begin {text[:60]!r}. "
            "Give compiled.as_text()."
        )
    return Module(entry, computations)


def _constant(module: Module, computation: str, name: str) -> int | None:
    """The integer an instruction is, behind copies and casts."""
    instruction = module.find(computation, name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = module.find(computation, instruction.operand_names[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    text = instruction.operands.strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _resolve(module: Module, computation: str, root: Instruction) -> tuple[Instruction, list[str]] | None:
    """An instruction behind a one-operation fusion, and the outer names of its operands."""
    if root.opcode != "fusion":
        return root, root.operand_names
    inner = root.computation("calls")
    fused = module.root(inner) if inner else None
    if inner is None or fused is None:
        return None
    outer = []
    for name in fused.operand_names:
        source = module.find(inner, name)
        if source is None or source.opcode != "parameter":
            return None
        outer.append(root.operand_names[int(source.operands)])
    return fused, outer


def _carry(module: Module, computation: str, name: str) -> int | None:
    """The index of the loop's carry that an instruction takes out."""
    instruction = module.find(computation, name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast"):
        instruction = module.find(computation, instruction.operand_names[0])
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    return int(instruction.attribute("index") or -1)


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """How often a while's body runs: XLA's known_trip_count, else a counter compared with a constant; else None."""
    if found := _TRIP.search(loop.attributes):
        return int(found[1])
    condition, body = loop.computation("condition"), loop.computation("body")
    test, result = module.root(condition or ""), module.root(body or "")
    start = module.find(computation, loop.operand_names[0])
    if not (condition and body and test and result and start) or {result.opcode, start.opcode} != {"tuple"}:
        return None
    compared = _resolve(module, condition, test)
    if compared is None or compared[0].opcode != "compare" or "direction=LT" not in compared[0].attributes:
        return None
    counter, bound = _carry(module, condition, compared[1][0]), _constant(module, condition, compared[1][1])
    if counter is None or bound is None:
        return None
    stepped = module.find(body, result.operand_names[counter])
    added = _resolve(module, body, stepped) if stepped else None
    first = _constant(module, computation, start.operand_names[counter])
    if added is None or added[0].opcode != "add" or first is None:
        return None
    for place, constant in (added[1], added[1][::-1]):
        step = _constant(module, body, constant)
        if step and step > 0 and _carry(module, body, place) == counter:
            return max(0, -(-(bound - first) // step))
    return None


@dataclass(frozen=True)
class Run:
    """An instruction that runs `times` times; `bounded` is False inside a loop whose trip count is unknown."""

    computation: str
    instruction: Instruction
    times: int
    bounded: bool
    conditional: bool


def runs(module: Module, skip: frozenset[str] = frozenset()) -> Iterator[Run]:
    """Every instruction that the entry reaches, once for each place it is called from.

    Args:
        module: The module.
        skip: Opcodes whose computations aren't entered, such as a collective's own reduction.
    """
    stack = [(module.entry, 1, True, False)]
    while stack:
        name, times, bounded, conditional = stack.pop()
        for instruction in module.computations.get(name, ()):
            yield Run(name, instruction, times, bounded, conditional)
            # The later halves of an async pair name the computation of the first again.
            if instruction.opcode in skip or instruction.opcode in ("async-update", "async-done"):
                continue
            if instruction.opcode == "while":
                count = trip_count(module, name, instruction)
                inner = (times * (1 if count is None else count), bounded and count is not None, conditional)
                stack += [(c, *inner) for k in ("body", "condition") if (c := instruction.computation(k))]
            elif instruction.opcode == "conditional":
                stack += [(branch, times, bounded, True) for branch in instruction.branches()]
            else:
                stack += [(c, times, bounded, conditional) for c in instruction.computations()]
