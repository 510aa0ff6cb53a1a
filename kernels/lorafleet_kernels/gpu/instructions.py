"""A compiled kernel's instructions in order, from PTX and from a disassembly: enough to see what runs before what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_STATEMENT = re.compile(r"(?:@!?\w*%?(?P<guard>\w+)\s+)?(?P<opcode>[A-Za-z][\w.:]*)\s*(?P<operands>.*)", re.DOTALL)
_LABEL = re.compile(r"([\w$]+):(?!:)")
_ENDS = ("ret", "exit", "trap", "RET", "EXIT")
_UNSEEN = ("call", "brx", "CALL", "BRX", "JMP", "JMX")


@dataclass(frozen=True, slots=True)
class Instruction:
    """`guarded`: whether it may be passed over."""

    opcode: str
    operands: str
    labels: tuple[str, ...]
    guarded: bool

    def __str__(self) -> str:
        return f"{self.opcode} {self.operands}".strip()

    @property
    def kind(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def jumps(self) -> bool:
        return self.kind in ("bra", "BRA")

    @property
    def target(self) -> str:
        """The label to which it jumps."""
        return self.operands.rpartition(",")[2].strip()

    @property
    def ends(self) -> bool:
        return self.kind in _ENDS

    @property
    def leads_out_of_sight(self) -> bool:
        """Whether it goes on where these lines do not say."""
        return self.kind in _UNSEEN


def parse_ptx(text: str) -> list[Instruction]:
    """The body of the one kernel of a module, without directives."""
    plain = re.sub(r"//[^\n]*", "", text)
    body = re.search(r"\.entry\b.*?\n\{(.*?)\n\}\s*(?:\n\s*\.(?:file|section)\b|\Z)", plain, re.DOTALL)
    if body is None:
        raise ValueError("no kernel in the PTX")
    code: list[Instruction] = []
    labels: list[str] = []
    for piece in re.sub(r"^\s*\.loc\b[^\n]*", "", body[1], flags=re.MULTILINE).split(";"):
        statement = piece.strip()
        # Braces at the start of a statement are of scopes, others of operands.
        while statement[:1] in ("{", "}") or _LABEL.match(statement):
            if found := _LABEL.match(statement):
                labels.append(found[1])
            statement = statement[found.end() if found else 1 :].lstrip()
        if statement and not statement.startswith("."):
            code.append(_instruction(statement, labels))
            labels = []
    return code


def parse_machine(text: str) -> list[Instruction]:
    """What `cuobjdump -sass` says of the one kernel of a binary; labels are addresses."""
    lines = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+([^;]+);", text, re.MULTILINE)
    return [_instruction(statement.strip(), [hex(int(address, 16))]) for address, statement in lines]


def before(code: Sequence[Instruction], barrier: str) -> list[Instruction]:
    """All that may run before an instruction `barrier` has, in the order of the code. Raises ValueError for a jump to a
    label that is not there, and for code that stops without an end."""
    places = {label: at for at, instruction in enumerate(code) for label in instruction.labels}
    ways, seen = [0], set[int]()
    while ways:
        at = ways.pop()
        while at < len(code) and at not in seen and code[at].opcode != barrier:
            seen.add(at)
            here = code[at]
            if here.jumps:
                if here.target not in places:
                    raise ValueError(f"{here}: a jump to where nothing is")
                ways.append(places[here.target])
            if not here.guarded and (here.jumps or here.ends):
                break
            at += 1
        if at == len(code):
            raise ValueError("the code stops without an end")
    return [code[at] for at in sorted(seen)]


def _instruction(statement: str, labels: Sequence[str]) -> Instruction:
    found = _STATEMENT.fullmatch(statement)
    if found is None:
        raise ValueError(f"not an instruction: {statement!r}")
    operands = " ".join(found["operands"].split())
    # Machine code has jumps whose condition is an operand.
    guarded = statement.startswith("@") or (found["opcode"].startswith("BRA") and "," in operands)
    return Instruction(found["opcode"], operands, tuple(labels), guarded)
