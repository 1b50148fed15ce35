"""From YAML text to a document tree that remembers where every value stood.

YAML 1.2 booleans only (`true`, `false`): `on`, `no` and friends stay strings, which the model then refuses by name instead of
turning a country code into a boolean. Duplicate keys and aliases that expand without bound are refused.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

from engine.errors import SidestepError

MAX_SOURCE_BYTES = 256 * 1024
MAX_NODES = 20_000
_SURROGATE = re.compile("[\ud800-\udfff]")
Path = tuple[str | int, ...]


class Problem(NamedTuple):
    """One fault in a document. Line and column count from 1; 0 means the document as a whole."""

    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.line}:{self.column}: " if self.line else ""
        return f"{place}{self.path + ': ' if self.path else ''}{self.message}"


class PolicyError(SidestepError):
    """A document that cannot be accepted, with every problem found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


class Tree(NamedTuple):
    """The plain value, and the node at each path."""

    value: Any
    nodes: dict[Path, yaml.Node]

    def position(self, path: Path) -> tuple[int, int]:
        """Line and column (from 1) of the value at `path`, or of the nearest enclosing one."""
        while path and path not in self.nodes:
            path = path[:-1]
        node = self.nodes.get(path)
        return (node.start_mark.line + 1, node.start_mark.column + 1) if node else (0, 0)

    def position_within(self, path: Path, line: int, column: int) -> tuple[int, int]:
        """Position of (line, column), both from 1, inside the text of the scalar at `path`."""
        node = self.nodes.get(path)
        if not isinstance(node, yaml.ScalarNode):
            return self.position(path)
        start = node.start_mark
        if node.style in ("|", ">"):
            body = str(start.buffer or "").split("\n") if start.buffer else []
            indent = _indent(body[start.line + 1]) if start.line + 1 < len(body) else 0
            return start.line + 1 + line, indent + column
        if line > 1:
            return start.line + line, column
        return start.line + 1, start.column + column + (1 if node.style in ("'", '"') else 0)


def format_path(path: Path) -> str:
    """`spec.triggers[1].when`"""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else (f".{part}" if out else part)
    return out


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


def load(source: str) -> Tree:
    """Parses one YAML document. Raises PolicyError with line and column."""
    if len(source.encode(errors="replace")) > MAX_SOURCE_BYTES:
        raise PolicyError([Problem(0, 0, "", f"larger than {MAX_SOURCE_BYTES // 1024} KiB")])
    try:
        loader = _Loader(source)
    except yaml.reader.ReaderError as error:
        line, column = _place(source, error.position)
        raise PolicyError([Problem(line, column, "", f"not YAML: {error.reason}")]) from None
    try:
        node = loader.get_single_node()
        if node is None:
            raise PolicyError([Problem(0, 0, "", "empty document")])
        nodes: dict[Path, yaml.Node] = {}
        problems: list[Problem] = []
        _walk(node, (), nodes, problems)
        if problems:
            raise PolicyError(problems)
        return Tree(loader.construct_document(node), nodes)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise PolicyError([Problem(line, column, "", f"not YAML: {error.problem or error.context}")]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PolicyError([Problem(0, 0, "", f"not YAML: {error}")]) from None
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: Path, nodes: dict[Path, yaml.Node], problems: list[Problem]) -> None:
    if len(nodes) > MAX_NODES:
        raise ValueError("too many values")
    nodes[path] = node
    if isinstance(node, yaml.ScalarNode):
        _check_text(node, path, problems)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                mark = key.start_mark
                problems.append(Problem(mark.line + 1, mark.column + 1, format_path((*path, name)), "given twice"))
            seen.add(name)
            _check_text(key, (*path, name), problems)
            _walk(value, (*path, name), nodes, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), nodes, problems)


def _check_text(node: yaml.Node, path: Path, problems: list[Problem]) -> None:
    r"""Refuses what no UTF-8 can carry: a lone surrogate, which "\ud800" in double quotes makes."""
    if isinstance(node, yaml.ScalarNode) and not node.value.isascii() and _SURROGATE.search(node.value):
        mark = node.start_mark
        problems.append(Problem(mark.line + 1, mark.column + 1, format_path(path), "is not Unicode text"))


def _place(source: str, position: int) -> tuple[int, int]:
    before = source[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
