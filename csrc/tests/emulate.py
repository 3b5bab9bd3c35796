"""Runs a static program for 64-bit Arm Linux on another machine, in Unicorn: `emulate.py PROGRAM ARGUMENT...`.

What the C library asks of the kernel for a program that computes and prints is answered here; threads are not.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from unicorn import UC_ARCH_ARM64, UC_HOOK_INTR, UC_MODE_ARM, UC_PROT_ALL, Uc
from unicorn.arm64_const import (
    UC_ARM64_REG_CPACR_EL1,
    UC_ARM64_REG_SP,
    UC_ARM64_REG_X0,
    UC_ARM64_REG_X1,
    UC_ARM64_REG_X2,
    UC_ARM64_REG_X8,
)

PAGE = 1 << 12
STACK, STACK_BYTES = 0x7F_0000_0000, 8 << 20
HEAP = 0x10_0000_0000
# Floating point and vectors, which a processor starts without.
VECTORS = 3 << 20
PT_LOAD = 1
AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_RANDOM = 3, 4, 5, 6, 25
ENOSYS, ENOTTY = 38, 25
# What can be said yes to without doing anything: robust lists, signals, identity, advice, protection, unmapping.
FINE = {99: 0, 96: 1, 134: 0, 135: 0, 178: 1, 233: 0, 226: 0, 215: 0, 131: 0}


def up(count: int) -> int:
    return -(-count // PAGE) * PAGE


class Process:
    """A program in memory with its stack, one thread of it."""

    def __init__(self, program: bytes, arguments: list[str]) -> None:
        self.cpu = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self.cpu.reg_write(UC_ARM64_REG_CPACR_EL1, VECTORS)
        self.heap, self.status = HEAP, -1
        self.entry, headers = self._load(program)
        self._make_stack(arguments, headers)
        self.cpu.hook_add(UC_HOOK_INTR, self._answer)

    def run(self) -> int:
        self.cpu.emu_start(self.entry, 0)
        return self.status

    def _load(self, program: bytes) -> tuple[int, tuple[int, int, int]]:
        """Entry, and place, size and number of the program headers."""
        if program[:6] != b"\x7fELF\x02\x01" or program[18:20] != b"\xb7\x00":
            raise SystemExit("PROGRAM: expected a 64-bit little-endian ELF file for Arm")
        entry, table = struct.unpack_from("<QQ", program, 24)
        size, count = struct.unpack_from("<HH", program, 54)
        place, mapped = 0, 0
        for number in range(count):
            kind, _, offset, address, _, in_file, in_memory, _ = struct.unpack_from(
                "<IIQQQQQQ", program, table + number * size
            )
            if kind != PT_LOAD:
                continue
            first, end = max(mapped, address // PAGE * PAGE), up(address + in_memory)
            if end > first:
                self.cpu.mem_map(first, end - first, UC_PROT_ALL)
                mapped = end
            self.cpu.mem_write(address, program[offset : offset + in_file])
            if offset <= table < offset + in_file:
                place = address + table - offset
        return entry, (place, size, count)

    def _make_stack(self, arguments: list[str], headers: tuple[int, int, int]) -> None:
        self.cpu.mem_map(STACK, STACK_BYTES, UC_PROT_ALL)
        at, places = STACK + STACK_BYTES - PAGE, []
        for text in arguments:
            places.append(at)
            self.cpu.mem_write(at, text.encode() + b"\0")
            at += len(text.encode()) + 1
        random = STACK + STACK_BYTES - 64
        self.cpu.mem_write(random, bytes(range(16)))
        told = (AT_PHDR, headers[0], AT_PHENT, headers[1], AT_PHNUM, headers[2], AT_PAGESZ, PAGE, AT_RANDOM, random)
        words = [len(places), *places, 0, 0, *told, 0, 0]
        stack = STACK + STACK_BYTES - 2 * PAGE
        self.cpu.mem_write(stack, struct.pack(f"<{len(words)}Q", *words))
        self.cpu.reg_write(UC_ARM64_REG_SP, stack)

    def _answer(self, cpu: Uc, number: int, _: object) -> None:
        """A call of the system; anything else that stops the processor is an error of the program."""
        if number != 2:
            print(f"stopped by exception {number}", file=sys.stderr)
            cpu.emu_stop()
            return
        call = cpu.reg_read(UC_ARM64_REG_X8)
        first, second, third = (cpu.reg_read(each) for each in (UC_ARM64_REG_X0, UC_ARM64_REG_X1, UC_ARM64_REG_X2))
        if call in (93, 94):
            self.status = first
            cpu.emu_stop()
            return
        answer = -ENOSYS
        if call in FINE:
            answer = FINE[call]
        elif call == 29:
            answer = -ENOTTY
        elif call == 64:
            answer = os.write(first, cpu.mem_read(second, third))
        elif call == 66:
            pieces = [struct.unpack("<QQ", cpu.mem_read(second + 16 * i, 16)) for i in range(third)]
            answer = sum(os.write(first, cpu.mem_read(at, size)) for at, size in pieces if size)
        elif call == 222:
            answer, size = self.heap, up(second)
            cpu.mem_map(answer, size, UC_PROT_ALL)
            # A page between, so that a step outside is noticed.
            self.heap += size + PAGE
        elif call == 214:
            answer = 0
        cpu.reg_write(UC_ARM64_REG_X0, answer & (1 << 64) - 1)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    sys.exit(Process(Path(sys.argv[1]).read_bytes(), sys.argv[1:]).run())
