"""What the compiler made of a kernel: registers, spills, shared memory, tensor-core instructions, and the main loop.

Works without a GPU: Triton's wheel carries the assemblers and disassemblers of NVIDIA; code for AMD comes as text.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

KIB = 1024
# Of the tensor memory of sm_100.
MOST_COLUMNS = 512


@dataclass(frozen=True)
class Architecture:
    """A kind of GPU, and what a block of threads may take of it.

    Attributes:
        shared: bytes of shared memory a block can have.
        registers: of a thread, and of all threads of a block together.
        lanes: threads of a warp.
        tensor_op: pattern of its matrix instructions in machine code.
        exp2: pattern of its instructions for powers of 2.
        waited: pattern of loads from global memory that are waited for in the pass that begins them; "" where those
            fetched ahead have no other name.
        local: pattern of what puts registers aside in memory and takes them back.
        virtual: what they are called one stage earlier, in PTX; "" where there is no such stage.
    """

    target: GPUTarget
    shared: int
    registers: tuple[int, int]
    lanes: int
    tensor_op: str
    virtual: str
    local: str = r"(LDL|STL)\b"
    exp2: str = r"MUFU\.EX2"
    waited: str = r"LDG\."


# The tiles of sm_80 serve sm_86, sm_89 and sm_120 too, whose blocks have 99 KiB.
ARCHITECTURES = {
    "sm_80": Architecture(GPUTarget("cuda", 80, 32), 99 * KIB, (255, 65536), 32, r"HMMA\.", "mma.sync"),
    "sm_90": Architecture(GPUTarget("cuda", 90, 32), 227 * KIB, (255, 65536), 32, r"HGMMA\.|HMMA\.", "wgmma.mma_async"),
    "sm_100": Architecture(GPUTarget("cuda", 100, 32), 227 * KIB, (255, 65536), 32, r"UTC\w*MMA|HMMA\.", "tcgen05.mma"),
    "gfx942": Architecture(
        GPUTarget("hip", "gfx942", 64),
        shared=64 * KIB,
        registers=(512, 131072),
        lanes=64,
        tensor_op=r"v_mfma_",
        virtual="",
        local=r"scratch_(load|store)",
        exp2=r"v_exp_f32",
        waited="",
    ),
}


@dataclass(frozen=True)
class Variant:
    """One kernel with one set of compile-time values.

    Attributes:
        signature: type of every argument: "*bf16", "i32", "fp32", "constexpr", ...
        constants: values of the constexpr arguments, and of arguments specialised to a value.
        attributes: what Triton may assume of arguments, by place.
        options: num_warps, num_stages, ...
        scores: score elements a pass of the main loop works on.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[Any, Any]
    attributes: Mapping[tuple[int, ...], Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    scores: int = 0


@dataclass(frozen=True)
class Instruction:
    name: str
    jumps_to: str | None = None
    conditional: bool = False
    ends: bool = False


@dataclass(frozen=True)
class Code:
    """Instructions in order, and where labels point."""

    instructions: list[Instruction]
    labels: dict[str, int]

    @cached_property
    def loops(self) -> list[frozenset[int]]:
        """The instructions of each natural loop, the shortest first, so inner ones before those around them."""
        return _natural_loops(self)


@dataclass(frozen=True)
class Report:
    """What one variant takes on one architecture; ``spills`` in bytes a thread, ``columns`` of tensor memory."""

    variant: Variant
    architecture: Architecture
    registers: int
    spills: int
    shared: int
    tensor_ops: int
    virtual_ops: int
    code: Code
    columns: int = 0

    @property
    def threads(self) -> int:
        return int(self.variant.options.get("num_warps", 4)) * self.architecture.lanes

    @cached_property
    def tile_loops(self) -> list[Counter[str]]:
        """Instructions by name of each loop that multiplies matrices and has no such loop in it, shortest first."""
        found: list[Counter[str]] = []
        inner: list[frozenset[int]] = []
        for loop in self.code.loops:
            names = Counter(self.code.instructions[at].name for at in loop)
            if _matching(names, self.architecture.tensor_op) and not any(each < loop for each in inner):
                inner.append(loop)
                found.append(names)
        return found

    @cached_property
    def main_loop(self) -> Counter[str]:
        """Of the loops over tiles the shortest with the most matrix instructions; empty where there is none.

        Of loops that multiply the same, that over tiles with masks is longer.
        """
        return max(self.tile_loops, key=lambda names: _matching(names, self.architecture.tensor_op), default=Counter())

    @property
    def local_accesses(self) -> int:
        """In the main loop each one; in others, of which a program passes over a tile or two, past one in sixteen."""
        count = 0
        for names in self.tile_loops:
            allowed = 0 if names is self.main_loop else names.total() // 16
            count += max(0, _matching(names, self.architecture.local) - allowed)
        return count

    @property
    def per_score(self) -> float:
        """Instructions that threads execute for each score element, by the length of the main loop."""
        return self.main_loop.total() * self.threads / self.variant.scores

    @property
    def times_over(self) -> float:
        """Powers of 2 for each score element: one, and a share of one a row in forward.

        From 2 on, warps compute the same scores, there being too many of them for the rows of the tile.
        """
        return _matching(self.main_loop, self.architecture.exp2) * self.threads / self.variant.scores

    def faults(self) -> list[str]:
        """What breaks a limit of the architecture, in words."""
        each, all_together = self.architecture.registers
        found = []
        # What is put aside before the loops and taken back behind them, 4 bytes at a time, is no loss as long as it is
        # fewer instructions than a single tile, what is put aside in there aside; kernels without matrix instructions
        # must do without.
        if self.spills / 4 * 2 > self.main_loop.total() - _matching(self.main_loop, self.architecture.local):
            found.append(f"spills {self.spills}")
        if self.local_accesses:
            found.append(f"{self.local_accesses} accesses to local memory in the loops over tiles")
        if int(self.variant.options.get("num_stages", 1)) > 1 and self.architecture.waited:
            waited = _matching(self.main_loop, self.architecture.waited)
            if waited:
                found.append(f"{waited} loads in the main loop that are not fetched ahead")
        if self.registers > each or self.registers * self.threads > all_together:
            found.append(f"{self.registers} registers for {self.threads} threads")
        if self.columns > MOST_COLUMNS:
            # The assembler then makes a kernel that does nothing, and Triton refuses to start it.
            found.append(f"{self.columns} columns of tensor memory, there are {MOST_COLUMNS}")
        if self.shared > self.architecture.shared:
            found.append(f"{self.shared} bytes of shared memory, there are {self.architecture.shared}")
        return found


def build(variant: Variant, architecture: str) -> Report:
    """Compile (Triton's own cache is used, and is safe among processes) and read the result."""
    machine = ARCHITECTURES[architecture]
    source = ASTSource(variant.kernel, dict(variant.signature), dict(variant.constants), dict(variant.attributes))
    compiled = triton.compile(source, target=machine.target, options=dict(variant.options))
    if machine.target.backend == "hip":
        return _read_amd(variant, machine, compiled)
    return _read_nvidia(variant, machine, compiled)


def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _read_nvidia(variant: Variant, machine: Architecture, compiled: Any) -> Report:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run(_tool("cuobjdump"), "-res-usage", file.name)
        text = _run(_tool("nvdisasm"), "-c", file.name)
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    code = parse_sass(text)
    memory_spills = sum(each.name.split(".")[0] in ("STL", "LDL") for each in code.instructions)
    return Report(
        variant, machine,
        registers=int(found["REG"]),
        spills=int(found["STACK"]) + int(found["LOCAL"]) or memory_spills,
        shared=compiled.metadata.shared,
        tensor_ops=_count(code, machine.tensor_op),
        virtual_ops=compiled.asm["ptx"].count(machine.virtual),
        code=code,
        columns=getattr(compiled.metadata, "tmem_size", 0) or 0,
    )  # fmt: skip


def _read_amd(variant: Variant, machine: Architecture, compiled: Any) -> Report:
    text = compiled.asm["amdgcn"]
    code = parse_gcn(text)

    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", text).group(1))  # type: ignore[union-attr]

    return Report(
        variant, machine,
        registers=number("vgpr_count"),
        # Scalar registers spill into lanes of vector registers, not to memory.
        spills=4 * number("vgpr_spill_count"),
        shared=compiled.metadata.shared,
        tensor_ops=_count(code, machine.tensor_op),
        virtual_ops=0,
        code=code,
    )  # fmt: skip


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _matching(names: Counter[str], pattern: str) -> int:
    return sum(number for name, number in names.items() if re.match(pattern, name))


def _count(code: Code, pattern: str) -> int:
    return sum(re.match(pattern, each.name) is not None for each in code.instructions)


_SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)(.*?);")
_LABEL = re.compile(r"^(\.L_x_\w+|\.LBB\w+):")


def parse_sass(text: str) -> Code:
    """The listing of ``nvdisasm -c``; NOPs are padding."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(instructions)
            continue
        found = _SASS.search(line)
        if not found or found.group(2) == "NOP":
            continue
        predicate, name, rest = found.groups()
        target = re.search(r"`\((\.L_x_\w+)\)", rest) if name.split(".")[0] in ("BRA", "BRX") else None
        # Uniform branches name their predicate among the operands.
        conditional = predicate is not None or re.match(r"\s*!?U?P\d", rest) is not None
        instructions.append(
            Instruction(
                name, target.group(1) if target else None, conditional,
                ends=name.split(".")[0] in ("EXIT", "RET") and not conditional,
            )
        )  # fmt: skip
    return Code(instructions, labels)


def parse_gcn(text: str) -> Code:
    """The assembly Triton keeps for AMD."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(instructions)
            continue
        found = re.match(r"^\s+([sv]_\w+|ds_\w+|buffer_\w+|global_\w+|flat_\w+|scratch_\w+)\s*(\S*)", line)
        if not found or found.group(1) in ("s_nop", "s_code_end"):
            continue
        name, operand = found.groups()
        jumps = name == "s_branch" or name.startswith("s_cbranch")
        instructions.append(
            Instruction(name, operand if jumps else None, name.startswith("s_cbranch"), ends=name == "s_endpgm")
        )
    return Code(instructions, labels)


def _natural_loops(code: Code) -> list[frozenset[int]]:
    """Bodies of back edges, whose target dominates their source; those of one header are one loop."""
    blocks = _blocks(code)
    successors = {start: _successors(code, end) for start, end in blocks.items()}
    dominators = _dominators(successors)
    predecessors: dict[int, set[int]] = {start: set() for start in blocks}
    for source, targets in successors.items():
        for target in targets:
            predecessors[target].add(source)
    bodies: dict[int, set[int]] = {}
    for source, targets in successors.items():
        for header in targets:
            if source in dominators and header in dominators[source]:
                bodies.setdefault(header, set()).update(_body(header, source, predecessors))
    loops = [frozenset(at for start in body for at in range(start, blocks[start])) for body in bodies.values()]
    return sorted(loops, key=len)


def _body(header: int, source: int, predecessors: Mapping[int, Iterable[int]]) -> set[int]:
    body, waiting = {header, source}, [source]
    while waiting:
        block = waiting.pop()
        if block == header:
            continue
        for each in predecessors[block]:
            if each not in body:
                body.add(each)
                waiting.append(each)
    return body


def _blocks(code: Code) -> dict[int, int]:
    """First instruction to end of every basic block."""
    size = len(code.instructions)
    starts = {0, *code.labels.values()}
    starts.update(at + 1 for at, each in enumerate(code.instructions) if each.jumps_to or each.ends)
    ordered = sorted(start for start in starts if start < size)
    return dict(zip(ordered, [*ordered[1:], size], strict=True))


def _successors(code: Code, end: int) -> set[int]:
    last, size = code.instructions[end - 1], len(code.instructions)
    found = set()
    if last.jumps_to is not None and last.jumps_to in code.labels:
        found.add(code.labels[last.jumps_to])
    falls_through = not last.ends and (last.jumps_to is None or last.conditional)
    if falls_through:
        found.add(end)
    return {each for each in found if each < size}


def _dominators(successors: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """Of the blocks that can be reached from the first."""
    order: list[int] = []
    seen, waiting = {0}, [0]
    while waiting:
        block = waiting.pop()
        order.append(block)
        for each in sorted(successors[block] - seen):
            seen.add(each)
            waiting.append(each)
    before: dict[int, set[int]] = {block: set() for block in order}
    for block in order:
        for each in successors[block]:
            before[each].add(block)
    found = {block: set(order) for block in order}
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = set.intersection(*(found[each] for each in before[block])) | {block}
            if new != found[block]:
                found[block], changed = new, True
    return found
