"""Parse PTX text, as nvcc, NVRTC and Triton write it, into a Module of functions, variables and source lines.

Called by tests.ptx.kernel; relies on the standard library. Nothing is interpreted here but the grammar: an instruction
is its opcode as written and its operands as strings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TYPE_BYTES = {
    "pred": 0,
    "b8": 1,
    "u8": 1,
    "s8": 1,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "bf16": 2,
    "b32": 4,
    "u32": 4,
}
TYPE_BYTES |= {"s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "b128": 16}


class ParseError(ValueError):
    """The text is not PTX as this parser knows it."""


@dataclass(frozen=True)
class Line:
    """A place in a source file, and where the function it is in was inlined (the caller's line)."""

    file: str
    number: int
    function: str = ""
    inlined_at: Line | None = None

    def __str__(self) -> str:
        return f"{self.file.rsplit('/', 1)[-1]}:{self.number}"

    def chain(self) -> str:
        """Return the place with all its callers: ``blur.h:31 < chain.h:200``."""
        return str(self) if self.inlined_at is None else f"{self} < {self.inlined_at.chain()}"


@dataclass
class Variable:
    """A variable of a state space: bytes, alignment, initial bytes where given."""

    name: str
    space: str
    size: int
    align: int
    initial: bytes = b""
    symbols: tuple[tuple[int, str], ...] = ()  # initial addresses of other variables: (offset, name)
    external: bool = False


@dataclass
class Instruction:
    """One instruction: @guard opcode operands; `line` is None where no .loc came before."""

    opcode: str
    operands: tuple[str, ...]
    guard: str = ""  # "%p1" or "!%p1"
    line: Line | None = None

    def __str__(self) -> str:
        head = f"@{self.guard} " if self.guard else ""
        return f"{head}{self.opcode} {', '.join(self.operands)}".rstrip()


@dataclass
class Function:
    """A kernel (entry) or a function: parameters in order, registers by name, instructions, label -> index."""

    name: str
    entry: bool
    parameters: list[Variable] = field(default_factory=list)
    returns: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: list[Variable] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)  # of brx.idx: name -> labels
    threads: tuple[int, ...] | None = None  # .reqntid or .maxntid


@dataclass
class Module:
    """A translation unit."""

    target: str
    functions: dict[str, Function]
    variables: dict[str, Variable]


_DECLARATION = re.compile(
    r"(?:\.(?P<space>param|shared|local|global|const))?\s*(?:\.align\s+(?P<a1>\d+))?\s*\.(?P<type>\w+)\s*"
    r"(?:\.ptr\s*(?:\.\w+)?\s*(?:\.align\s+\d+)?\s*)?(?P<name>[\w$%.]+)(?P<dims>(?:\[\d*\])*)\s*(?:=\s*(?P<init>.*))?$",
    re.DOTALL,
)
_HEADER = re.compile(
    r"\.(entry|func)\s*(?:\.attribute\([^)]*\)\s*)?(?:\((?P<ret>[^)]*)\)\s*)?(?P<name>[\w$.]+)\s*(?:\((?P<params>[^)]*)\))?",
    re.DOTALL,
)
_TOKEN = re.compile(
    r"\s+|\.loc\s[^\n]*|\.(?:file|version|target|address_size)\b[^\n]*|\.section\s[^{]*\{[^}]*\}|[\w$%.]+:(?!:)|[{}]|"
    r"(?:\.(?:visible|weak|extern|common)\s+)*\.(?:entry|func)\b[^{;]*[;{]|\.(?:pragma|alias)[^;]*;|"
    r"\.(?:maxntid|reqntid|minnctapersm|maxnreg|noreturn)\b[^\n]*|[^;{}]*?(?:\{[^}]*\}[^;{}]*?)*;",
    re.DOTALL,
)


def parse(text: str) -> Module:
    """Return the module that `text` is. Raises ParseError with the line of what is not understood."""
    return _Parser(text).module


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.DOTALL)
        self.module = Module("", {}, {})
        self.files = {
            int(n): name for n, name in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', self.text, re.MULTILINE)
        }
        self.line: Line | None = None
        self.function: Function | None = None
        self.depth = 0
        self.scopes: list[dict[str, str]] = []
        self.renamed = 0
        self.strings = self._strings()
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None or match.end() == at:
                where = self.text.count("\n", 0, at) + 1
                raise ParseError(f"line {where}: {self.text[at : at + 60].strip()!r}")
            token = match.group().strip()
            if token:
                self._take(token)
            at = match.end()

    def _strings(self) -> dict[str, str]:
        """Names of inlined functions: labels in .debug_str, whose bytes spell them."""
        found = re.search(r"\.section\s+\.debug_str\s*\{([^}]*)\}", self.text)
        if not found:
            return {}
        parts = re.split(r"([\w$]+):", found.group(1))
        spelled = {}
        for name, body in zip(parts[1::2], parts[2::2], strict=False):
            codes = [int(code) for code in re.findall(r"\d+", re.sub(r"\.b8", " ", body))]
            spelled[name] = bytes(codes).split(b"\0")[0].decode(errors="replace")
        return spelled

    def _take(self, token: str) -> None:
        if re.match(r"\.loc\s", token):
            self._loc(token)
        elif token.startswith(".target"):
            self.module.target = token.split()[1].rstrip(",")
        elif token.startswith((".file", ".version", ".address_size", ".section", ".pragma", ".alias")):
            pass
        elif re.match(r"(?:\.(?:visible|weak|extern|common)\s+)*\.(?:entry|func)\b", token):
            self._header(token)
        elif token.startswith((".maxntid", ".reqntid")) and self.function:
            self.function.threads = tuple(int(x) for x in re.findall(r"\d+", token))
        elif token.startswith((".minnctapersm", ".maxnreg", ".noreturn")):
            pass
        elif token == "{":
            self.depth += 1
            self.scopes.append({})
        elif token == "}":
            self.depth -= 1
            self.scopes.pop()
            if self.depth == 0:
                self.function = None
        elif token.endswith(":"):
            self._current().labels[token[:-1]] = len(self._current().code)
        else:
            self._statement(token[:-1].strip())

    def _current(self) -> Function:
        if self.function is None:
            raise ParseError("an instruction outside a function")
        return self.function

    def _loc(self, token: str) -> None:
        number = r"(\d+)\s+(\d+)\s+\d+"
        found = re.match(
            rf"\.loc\s+{number}(?:,\s*function_name\s+([\w$.]+)(?:\s*\+\s*\d+)?,\s*inlined_at\s+{number})?", token
        )
        if not found:
            raise ParseError(token)
        file, line, function, outer_file, outer_line = found.groups()
        outer = None
        if function:
            # Where an outer place was inlined itself is what the last .loc with that place said.
            here = self.line
            while here and (here.file, here.number) != (self.files.get(int(outer_file), outer_file), int(outer_line)):
                here = here.inlined_at
            outer = here or Line(self.files.get(int(outer_file), outer_file), int(outer_line))
        self.line = Line(self.files.get(int(file), file), int(line), self.strings.get(function or "", ""), outer)

    def _header(self, token: str) -> None:
        found = _HEADER.search(token)
        if not found:
            raise ParseError(token)
        self.line = None
        function = Function(found["name"], found[1] == "entry")
        function.parameters = self._list(found["params"])
        function.returns = self._list(found["ret"])
        limits = re.search(r"\.(?:reqntid|maxntid)\s+([\d,\s]+)", token)
        if limits:
            function.threads = tuple(int(x) for x in re.findall(r"\d+", limits.group(1)))
        if token.endswith(";"):  # a prototype
            return
        self.module.functions[function.name] = function
        self.function = function
        self.depth = 1
        self.scopes = [{}]

    def _list(self, text: str | None) -> list[Variable]:
        return [self._variable(part.strip()) for part in (text or "").split(",") if part.strip()]

    def _variable(self, text: str, external: bool = False) -> Variable:
        found = _DECLARATION.match(text)
        if not found:
            raise ParseError(text)
        kind = found["type"]
        size = TYPE_BYTES[kind]
        align = int(found["a1"] or 0) or size
        for extent in re.findall(r"\[(\d*)\]", found["dims"] or ""):
            size *= int(extent or 0)
        initial, symbols = _initial(found["init"], TYPE_BYTES[kind], kind)
        return Variable(found["name"], found["space"] or "param", size, align, initial, symbols, external)

    def _statement(self, text: str) -> None:
        if text.startswith("."):
            self._directive(text)
            return
        function = self._current()
        guard = ""
        if text.startswith("@"):
            head, text = re.match(r"@\s*(!?\s*[\w$%.]+)\s+(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
            guard = head.replace(" ", "")
        opcode, *tail = text.split(None, 1)
        rest = tail[0] if tail else ""
        operands = tuple(self._scoped(operand) for operand in _split(rest))
        function.code.append(Instruction(opcode, operands, self._scoped(guard), self.line))

    def _scoped(self, operand: str) -> str:
        """Registers of an inner block may repeat a name; they are given names of their own."""
        for scope in reversed(self.scopes[1:]):
            for name, unique in scope.items():
                if name in operand:
                    operand = re.sub(rf"(?<![\w$%.]){re.escape(name)}(?![\w$.])", unique, operand)
        return operand

    def _directive(self, text: str) -> None:
        words = re.match(r"((?:\.(?:visible|weak|extern|common)\s+)*)(.*)", text, re.DOTALL)
        assert words
        external, text = "extern" in words.group(1), words.group(2)
        if text.startswith(".reg"):
            kind, names = re.match(r"\.reg\s+(?:\.v\d\s+)?\.(\w+)\s+(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
            for name in names.replace(" ", "").split(","):
                ranged = re.match(r"(.*)<(\d+)>$", name.strip())
                each = [f"{ranged[1]}{k}" for k in range(int(ranged[2]))] if ranged else [name.strip()]
                for register in each:
                    self._declare(register, kind)
        elif text.startswith(".branchtargets"):
            function = self._current()
            label = next(name for name, place in reversed(function.labels.items()) if place == len(function.code))
            function.tables[label] = [part.strip() for part in text.split(None, 1)[1].split(",")]
        elif text.startswith(".callprototype"):
            pass
        else:
            variable = self._variable(text, external)
            if self.function is None:
                self.module.variables[variable.name] = variable
            else:
                if len(self.scopes) > 1:
                    unique = f"{variable.name}${self.renamed}"
                    self.renamed += 1
                    self.scopes[-1][variable.name] = unique
                    variable.name = unique
                self.function.variables.append(variable)

    def _declare(self, name: str, kind: str) -> None:
        function = self._current()
        if len(self.scopes) > 1:
            unique = f"{name}${self.renamed}"
            self.renamed += 1
            self.scopes[-1][name] = unique
            name = unique
        function.registers[name] = kind


def _split(text: str) -> list[str]:
    """The operands of an instruction: split at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def number(text: str, width: int) -> int:
    """The bits of an immediate number of `width` bytes: 12, -0x3U, 0f3F800000, 0d3FF0000000000000."""
    text = text.strip()
    if text[:2] in ("0f", "0F", "0d", "0D"):
        bits = int(text[2:], 16)
        if (len(text) == 10) != (width == 4) and width in (4, 8):
            raise ParseError(f"the number {text} does not have {width} bytes")
        return bits
    sign = -1 if text.startswith("-") else 1
    body = text.lstrip("-").rstrip("Uu")
    base = 16 if body[:2].lower() == "0x" else 2 if body[:2].lower() == "0b" else 10
    return sign * int(body, base) & ((1 << 8 * width) - 1)


def _initial(text: str | None, size: int, kind: str) -> tuple[bytes, tuple[tuple[int, str], ...]]:
    if not text:
        return b"", ()
    content, symbols = bytearray(), []
    for item in re.findall(r"[^\s,{}]+", text):
        if re.match(r"[-\d]", item):
            content += number(item, size).to_bytes(size, "little")
        else:
            symbols.append((len(content), re.sub(r"generic\(([^)]*)\)", r"\1", item)))
            content += bytes(size)
    return bytes(content), tuple(symbols)
