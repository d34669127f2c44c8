"""Single mutations of a Python source: where each is, and the text that takes the place of what stands there."""

import ast
import difflib
from dataclasses import dataclass

_SWAPPED: dict[type[ast.AST], str] = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*",
    ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "&", ast.LShift: ">>", ast.RShift: "<<",
    ast.And: "or", ast.Or: "and",
}  # fmt: skip
_SILENT = ("logger", "logging", "warnings")
"""Calls below these tell people something; their texts are not behaviour."""


@dataclass(frozen=True)
class Mutation:
    """One change of one file."""

    path: str
    """Relative to the project."""
    line: int
    """From 1."""
    operator: str
    """Kind of the change."""
    start: int
    """Byte of the source at which the replaced text starts."""
    end: int
    """Byte after it."""
    text: str
    """What stands there instead."""

    def apply(self, source: str) -> str:
        """The mutated source."""
        content = source.encode()
        return (content[: self.start] + self.text.encode() + content[self.end :]).decode()

    def diff(self, source: str) -> str:
        """The change for a reader."""
        lines = difflib.unified_diff(
            source.splitlines(), self.apply(source).splitlines(), self.path, "mutant", "", "", 0
        )
        return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


def mutations(path: str, source: str) -> list[Mutation]:
    """All mutations of a source, in the order of the text; a few of them do not compile."""
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return sorted(
        set(finder.found), key=lambda mutation: (mutation.start, mutation.end, mutation.operator, mutation.text)
    )


def compiles(source: str) -> bool:
    """Whether a source is Python at all."""
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


class _Finder(ast.NodeVisitor):
    """Walks what runs: no annotations, imports, docstrings, decorators, and no texts of messages."""

    def __init__(self, path: str, source: str) -> None:
        self.path, self.source = path, source.encode()
        self.found: list[Mutation] = []
        self.starts = [0]
        for line in self.source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.told = 0
        """Depth of nodes whose strings are for people."""

    def span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.starts[node.lineno - 1] + node.col_offset,  # type: ignore[attr-defined]
            self.starts[node.end_lineno - 1] + node.end_col_offset,  # type: ignore[attr-defined]
        )

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def note(self, operator: str, node: ast.AST, text: str, span: tuple[int, int] | None = None) -> None:
        start, end = span or self.span(node)
        if self.source[start:end].decode() != text:
            line = self.source[:start].count(b"\n") + 1
            self.found.append(Mutation(self.path, line, operator, start, end, text))

    def between(self, left: ast.AST, right: ast.AST, symbol: str, operator: str, node: ast.AST) -> None:
        """Replace the operator that stands between two operands, leaving brackets and comments alone."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.source[start:end].decode()
        old = gap.strip(" \n()\\")
        if old and "#" not in gap and gap.count(old) == 1:
            self.note(operator, node, gap.replace(old, symbol), (start, end))

    def visit_body(self, nodes: list[ast.stmt]) -> None:
        for node in nodes:
            self.visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for default in (*node.args.defaults, *(default for default in node.args.kw_defaults if default is not None)):
            self.visit(default)
        self.visit_body(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_body(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Import(self, node: ast.Import) -> None:
        """Left alone."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Left alone."""

    def visit_Assign(self, node: ast.Assign) -> None:
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if "__all__" not in names:
            if any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
                self.note("statement", node, "pass")
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.note("statement", node, "pass")
        symbol = _SWAPPED.get(type(node.op))
        if symbol is not None:
            self.between(node.target, node.value, f"{symbol}=", "arithmetic", node)
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        told = self.text(node).startswith(_SILENT)
        if isinstance(node.value, ast.Call) and not told:
            self.note("statement", node, "pass")
        self.told += told
        self.generic_visit(node)
        self.told -= told

    def visit_Raise(self, node: ast.Raise) -> None:
        self.note("statement", node, "pass")
        self.told += 1
        self.generic_visit(node)
        self.told -= 1

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """What is inside has no positions of its own before Python 3.12."""

    def visit_Continue(self, node: ast.Continue) -> None:
        self.note("statement", node, "break")

    def visit_Break(self, node: ast.Break) -> None:
        self.note("statement", node, "continue")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.note("return", node, "return None")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if self.text(node.test) == "TYPE_CHECKING":
            return
        self.condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self.note("condition", node.test, "False")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def condition(self, node: ast.expr) -> None:
        if not isinstance(node, ast.Compare | ast.Constant) and not _is_not(node):
            self.note("condition", node, f"(not ({self.text(node)}))")
        for value in ("True", "False"):
            self.note("condition", node, value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
            self.note("unary", node, f"({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between(left, right, _SWAPPED[type(operator)], "comparison", node)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, _SWAPPED[type(node.op)], "boolean", node)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        symbol = _SWAPPED.get(type(node.op))
        if symbol is not None and not _is_text(node.left) and not _is_text(node.right):
            self.between(node.left, node.right, symbol, "arithmetic", node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if len(node.args) >= 2 and not any(isinstance(argument, ast.Starred) for argument in node.args[:2]):
            first, second = node.args[:2]
            (start, first_end), (second_start, end) = self.span(first), self.span(second)
            gap = self.source[first_end:second_start].decode()
            if gap.strip() == "," and not self.told:
                self.note("arguments", node, self.text(second) + gap + self.text(first), (start, end))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.note("constant", node, str(not value))
        elif isinstance(value, int):
            self.note("constant", node, str(value + 1))
        elif isinstance(value, float):
            self.note("constant", node, repr(value * 2 or 1.0))
        elif isinstance(value, str) and not self.told and value and " " not in value:  # a space: for people to read
            self.note("constant", node, '"XX"')


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
