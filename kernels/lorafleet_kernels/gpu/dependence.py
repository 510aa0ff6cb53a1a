"""Whether a kernel that starts before those ahead of it have ended is right all the same, read from its code.

`kernels.dependence` says what is asked of it. Shown here of all that a program may do before it waits: it does not end,
it writes no global memory, and loads only from addresses that come from arguments which may be read early. PTX tells
where an address comes from. The assembler puts instructions in another order, so of the machine code it is shown, too,
that neither an end nor a write comes before the wait, nor more loads than in PTX."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from lorafleet_kernels.gpu.instructions import Instruction, before, parse_machine, parse_ptx

WAITS = {"PTX": "griddepcontrol.wait", "machine code": "ACQBULK"}
STARTS = {"PTX": "griddepcontrol.launch_dependents", "machine code": "PREEXIT"}
"""The two instructions, in either code."""
_NEAR = ("param", "shared", "const", "local")
"""Memory that no other kernel has."""
_READS = ("ld", "ldu", "LDG", "LD", "LDGSTS", "UBLKCP", "UTMALDG")
_WRITES = ("st", "atom", "red", "multimem", "STG", "ST", "ATOM", "ATOMG", "RED", "REDG", "UBLKCP", "UBLKRED", "UTMASTG")
_ASYNC = ("cp.async.ca.", "cp.async.cg.", "cp.async.bulk.")
_BULK = ("cp.async.bulk.", "cp.reduce.")
_NAME = re.compile(r"%?[A-Za-z_$][\w$]*")
_PARAMETER = re.compile(r"_param_(\d+)")
_SHARED = "shared memory"


def order_faults(ptx: str, machine: str, pointers: Sequence[str], early: Collection[str]) -> list[str]:
    """Why a kernel must not start early, nothing where it may. `pointers`: the names of its parameters, "" for what is
    no pointer; `early`: those that may be read before the wait; `machine`: what `cuobjdump -sass` says."""
    told, loads = [], {}
    for where, code in (("PTX", parse_ptx(ptx)), ("machine code", parse_machine(machine))):
        opcodes = {instruction.opcode for instruction in code}
        told += [f"no {name} in the {where}" for name in (WAITS[where], STARTS[where]) if name not in opcodes]
        first = before(code, WAITS[where])
        loads[where] = sum(map(_reads, first))
        for instruction in first:
            if instruction.ends:
                told.append(f"a program may end before it waits, in the {where}")
            elif instruction.leads_out_of_sight:
                told.append(f"{instruction}: nothing shows where it leads before the wait, in the {where}")
            elif _writes(instruction):
                told.append(f"{instruction}: a write before the wait, in the {where}")
        if where == "PTX":
            told += _early_reads(first, pointers, early)
    if loads["machine code"] > loads["PTX"]:
        told.append(f"{loads['machine code']} loads before the wait in the machine code, {loads['PTX']} in the PTX")
    return list(dict.fromkeys(told))


def _early_reads(first: Sequence[Instruction], pointers: Sequence[str], early: Collection[str]) -> Iterator[str]:
    sources = _sources(first)
    for instruction in filter(_reads, first):
        _, address = _parts(instruction)
        numbers = set().union(*(sources.get(name, set()) for name in _NAME.findall(address)))
        names = {pointers[n] if n < len(pointers) else f"parameter {n}" for n in numbers} - {""}
        if late := sorted(names - set(early)):
            yield f"{instruction}: reads {', '.join(late)} before the wait"
        elif not names:
            yield f"{instruction}: reads nobody knows what before the wait"


def _sources(code: Sequence[Instruction]) -> dict[str, set[int]]:
    """Of each register, and of shared memory, the parameters that what it holds may come from, in whatever order the
    instructions run: what was loaded comes from where its address does."""
    sources: dict[str, set[int]] = {}
    grown = True
    while grown:
        before_it = sum(map(len, sources.values()))
        for instruction in code:
            into, out_of = _parts(instruction)
            found = {int(n) for n in _PARAMETER.findall(out_of)}
            found = found.union(*(sources.get(name, set()) for name in _NAME.findall(out_of)))
            names = _NAME.findall(into)
            if "shared" in instruction.opcode:
                # A store's "into" is an address: who loads from shared memory may get what any store left there.
                found |= sources.get(_SHARED, set()).union(*(sources.get(name, set()) for name in names))
                names.append(_SHARED)
            for name in names:
                sources.setdefault(name, set()).update(found)
        grown = sum(map(len, sources.values())) > before_it
    return sources


def _parts(instruction: Instruction) -> tuple[str, str]:
    """What it writes, its first operand, and what it reads. A load from a parameter reads `[kernel_param_0]`."""
    depth = 0
    for at, character in enumerate(instruction.operands):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and not depth:
            return instruction.operands[:at], instruction.operands[at:]
    return instruction.operands, ""


def _reads(instruction: Instruction) -> bool:
    """Whether it loads from global memory."""
    if instruction.opcode.startswith(_ASYNC):
        return True
    return instruction.kind in _READS and not _is_near(instruction)


def _writes(instruction: Instruction) -> bool:
    if instruction.opcode.startswith(_BULK):
        return True
    return instruction.kind in _WRITES and not _is_near(instruction)


def _is_near(instruction: Instruction) -> bool:
    return any(part.partition("::")[0] in _NEAR for part in instruction.opcode.split("."))
