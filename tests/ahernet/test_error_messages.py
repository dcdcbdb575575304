"""Every message of a `UserError` says what is wrong, where, and what was expected or what to do.

The source is read, not run. A message becomes the texts that it can be, with `{}` for what only a run knows, and each
text must

* say where: hold one of the `PLACES`. A message may go without where somebody adds the place: it is raised in a `try`
  that catches a `UserError` by name, in a function whose docstring says that the message does not name the file, or in
  one that only such functions of its module use.
* say what to do: hold one of the `REMEDIES`.

What another `UserError` said is complete already, and so is a text around it.
"""

import ast
import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ahernet

SOURCES = Path(ahernet.__file__).parent
ERRORS = ("UserError", "BusyFolder", "NoUsableVideo")  # the exception and what is derived from it
UNKNOWN, COMPLETE = "{}", "{complete}"
MOST_STEPS = 12  # from a message to the text of a part of it
MOST_TEXTS = 64  # of one message

PLACES = {
    "what a run fills in": r"^[^:;]*\{\}[^:;]*: ",
    "arguments, a setting or a command": r"^[\w.]+( and)?( \w+)?: ",
    "what is no file": r"\b(environment variable|WORLD_SIZE|process(es)?|iteration)\b",
}
VERBS = (
    "choose|copy|cut|give|import|install|leave|list|localize|paste|raise|remove|rewrite|run|save|see|set|start|store|"
    "try|use|write"
)
REMEDIES = {
    "an instruction": rf"(^|[;:,(] |\b(or|and) )({VERBS})\b",
    "what was expected": r"\b(expected|expects|needs?|asks? for|at (least|most)|this ahernet reads)\b",
    "what it should have been": r"\b(not (an?|one|valid|complete|finite|weights of)|neither .* nor)\b",
    "the format that it should have": r"\b(not|invalid) [A-Z]{3,}",
    "a limit": r"\b(more (\w+ )?than|fewer than|beyond|has room for|too (many|large|far|deeply))\b",
    "that one was expected": r"\b(twice|more than once|are both|missing)\b",
    "what could be named instead": r"\b(it|which) has\b|\bdid you mean\b",
    "where it belongs": r"\bis for\b",
    "where more is said": r"\b(say why|listed above)\b",
    "the reason of the system or a parser": r"\bcannot [^;]*\(.*\{\}\)$",
    "a likely cause or cure": r"\bis the disk full\?|\bmay help\b",
    "that the same command mends it": r"\bcommand (that \w+ this folder )?(goes on|reads)\b",
    "the setting that avoids it": r"\(--on-error skip|\(0 takes\b",
}
# Messages that the source does not spell out, by module and expression, and who does.
SPELT_OUT_ELSEWHERE = {
    ("cli.py", "_explain(str(error), arguments)"): "argparse, where its message is none of those that are reworded",
    ("data/archive.py", "error.describe(self.ids[position])"): "UnreadableRowError, with the reason of the system",
    ("data/importers.py", "f'{source}: none of its {len(found.videos):,} videos is usable; {bad.messages[0]}'"): (
        "the UserError of the first video"
    ),
    ("extraction/extract.py", "message"): "the UserError of the first video",
    ("ray_tasks.py", "row['mistake']"): "a UserError in another process",
    ("training/ranks.py", "f'process {rank} of {self.count}: {message}'"): "an error in another process",
}


@dataclass(frozen=True)
class Message:
    module: str
    line: int
    expression: str
    texts: frozenset[str]
    is_prefixed: bool  # somebody adds the place

    def shortcomings(self) -> list[str]:
        texts = sorted(text for text in self.texts if COMPLETE not in text)
        return [
            f"{self.module}:{self.line}: does not say {what}: {text}"
            for text in texts
            for what, patterns, is_needed in (("where", PLACES, not self.is_prefixed), ("what to do", REMEDIES, True))
            if is_needed and not any(re.search(pattern, text) for pattern in patterns.values())
        ]


class Module:
    """What a module says about its messages."""

    def __init__(self, name: str, source: str) -> None:
        self._name = name
        self._tree = ast.parse(source)
        self._nodes = list(ast.walk(self._tree))
        self._parents = {child: node for node in self._nodes for child in ast.iter_child_nodes(node)}
        self._functions = {node.name: node for node in self._nodes if isinstance(node, ast.FunctionDef)}

    def messages(self) -> Iterator[Message]:
        for node in self._nodes:
            if isinstance(node, ast.Call) and _name(node.func) in ERRORS:
                message = node.args[0] if node.args else ast.Constant("")
                texts = frozenset(itertools.islice(self._texts(message), MOST_TEXTS))
                is_prefixed = self._is_caught(node) or self._is_told_not_to_name(node)
                yield Message(self._name, node.lineno, ast.unparse(message), texts, is_prefixed)

    def _is_caught(self, node: ast.AST) -> bool:
        return any(
            isinstance(outer, ast.Try) and inner in outer.body and any(map(_catches, outer.handlers))
            for inner, outer in itertools.pairwise([node, *self._around(node)])
        )

    def _is_told_not_to_name(self, node: ast.AST, seen: frozenset[str] = frozenset()) -> bool:
        """Say whether what a node stands in says that messages name no file, or all that uses it here does."""
        around = list(self._around(node))
        functions = [outer for outer in around if isinstance(outer, ast.FunctionDef)]
        if any("does not name" in " ".join((ast.get_docstring(outer) or "").split()) for outer in functions):
            return True
        tables = [outer for outer in around if isinstance(outer, ast.Assign | ast.AnnAssign)]  # of functions
        holder = next(reversed([*tables, *functions]), None)
        name = _held_name(holder)
        if name is None or name in seen:
            return False
        uses = [use for use in self._nodes if _name(use) == name and holder not in self._around(use)]
        return bool(uses) and all(self._is_told_not_to_name(use, seen | {name}) for use in uses)

    def _texts(self, node: ast.expr, steps: int = 0) -> Iterator[str]:
        """Yield what an expression can be."""
        steps += 1
        match node:
            case _ if steps > MOST_STEPS:
                yield UNKNOWN
            case ast.Constant(value=None):  # no text where there is nothing to say
                pass
            case ast.Constant(value=str(text)):
                yield text
            case ast.JoinedStr(values=parts):
                yield from self._joined(parts, steps)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                yield from self._joined([left, right], steps)
            case ast.IfExp(body=body, orelse=other):
                yield from self._any([body, other], steps)
            case ast.BoolOp(values=values):
                yield from self._any(values, steps)
            case ast.FormattedValue(value=inner) | ast.Call(func=ast.Name(id="str" | "printable"), args=[inner]):
                yield from self._texts(inner, steps)
            case ast.Call(func=ast.Name(id=name)) if name in self._functions:
                returns = [inner for inner in ast.walk(self._functions[name]) if isinstance(inner, ast.Return)]
                yield from self._any([inner.value for inner in returns if inner.value], steps)
            case ast.Name():
                yield from self._named(node, steps)
            case _:
                yield UNKNOWN

    def _joined(self, parts: Iterable[ast.expr], steps: int) -> Iterator[str]:
        choices = [list(itertools.islice(self._texts(part, steps), MOST_TEXTS)) for part in parts]
        return map("".join, itertools.product(*choices))

    def _any(self, values: list[ast.expr], steps: int) -> Iterator[str]:
        for value in values:
            yield from self._texts(value, steps)
        if not values:
            yield UNKNOWN

    def _named(self, node: ast.Name, steps: int) -> Iterator[str]:
        """Yield what a name can be: an error, what it was assigned before, what a function is called with."""
        for outer in self._around(node):
            if isinstance(outer, ast.ExceptHandler) and outer.name == node.id:
                yield COMPLETE if _catches(outer) else UNKNOWN
                return
            if isinstance(outer, ast.FunctionDef):
                parameters = {parameter.arg: parameter for parameter in outer.args.args}
                if assigned := _assigned(outer, node):
                    yield from self._any(assigned, steps)
                elif node.id not in parameters:
                    continue
                elif _name(parameters[node.id].annotation) in ERRORS:
                    yield COMPLETE
                else:
                    yield from self._any(self._arguments(outer.name, [*parameters].index(node.id)), steps)
                return
        yield from self._any(_assigned(self._tree, node), steps)

    def _arguments(self, function: str, position: int) -> list[ast.expr]:
        calls = [node for node in self._nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        return [call.args[position] for call in calls if _name(call.func) == function and position < len(call.args)]

    def _around(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield what a node stands in, from the inside out."""
        while node in self._parents:
            node = self._parents[node]
            yield node


def _name(node: ast.AST | None) -> str | None:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def _held_name(holder: ast.AST | None) -> str | None:
    match holder:
        case ast.FunctionDef(name=name):
            return name
        case ast.Assign(targets=[target]) | ast.AnnAssign(target=target):
            return _name(target)
    return None


def _catches(handler: ast.ExceptHandler) -> bool:
    """Say whether a handler does something with a `UserError`, rather than let it pass."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return handler.name is not None and any(_name(kind) in ERRORS for kind in kinds)


def _assigned(scope: ast.AST, name: ast.Name) -> list[ast.expr]:
    assignments = [node for node in ast.walk(scope) if isinstance(node, ast.Assign) and node.lineno < name.lineno]
    return [node.value for node in assignments if [_name(target) for target in node.targets] == [name.id]]


@functools.cache
def _messages() -> list[Message]:
    paths = sorted(SOURCES.rglob("*.py"))
    modules = [Module(path.relative_to(SOURCES).as_posix(), path.read_text(encoding="utf-8")) for path in paths]
    return [message for module in modules for message in module.messages()]


def _of(source: str) -> list[str]:
    return [found for message in Module("m.py", source).messages() for found in message.shortcomings()]


def test_all_messages_say_where_and_what_to_do():
    messages = _messages()
    assert len(messages) > 400
    short = [
        shortcoming
        for message in messages
        if (message.module, message.expression) not in SPELT_OUT_ELSEWHERE
        for shortcoming in message.shortcomings()
    ]
    assert short == []


def test_what_is_spelt_out_elsewhere_is_there_and_falls_short_by_itself():
    short = {(message.module, message.expression) for message in _messages() if message.shortcomings()}
    assert set(SPELT_OUT_ELSEWHERE) <= short


@pytest.mark.parametrize("vocabulary", [PLACES, REMEDIES], ids=["places", "remedies"])
def test_the_vocabulary_holds_nothing_that_no_message_needs(vocabulary):
    texts = [text for message in _messages() for text in message.texts]
    said_by = [[name for name, pattern in vocabulary.items() if re.search(pattern, text)] for text in texts]
    assert {names[0] for names in said_by if len(names) == 1} == set(vocabulary)


def test_no_other_exception_is_a_user_error():
    found = {
        node.name
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any(_name(base) in ERRORS for base in node.bases)
    }
    assert found == set(ERRORS) - {"UserError"}


@pytest.mark.parametrize(
    "source",
    [
        "UserError(f'{path}: expected a folder')",
        "UserError('training.batch_size: ' + 'at most 5')",
        "UserError(f'{path}: cannot read ({error.strerror})')",
        "try:\n    pass\nexcept UserError as error:\n    raise UserError(f'{path}: {error}')",
        "try:\n    raise UserError('expected a video')\nexcept UserError as error:\n    skip(path, error)",
        "def read(path):\n    'Read; a message does not name the file.'\n    _rows()\n"
        "def _rows():\n    raise UserError('expected rows')",
        "def fail(what):\n    raise UserError(f'{path}: {what}')\nfail('expected a list')",
    ],
)
def test_a_message_that_says_all_passes(source):
    assert _of(source) == []


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("UserError()", ["where", "what to do"]),
        ("UserError('went wrong')", ["where", "what to do"]),
        ("UserError(f'{path}: went wrong')", ["what to do"]),
        ("UserError(f'{path}: {reason}')", ["what to do"]),
        ("UserError(f'{path}: ' + ('expected a list' if known else 'went wrong'))", ["what to do"]),
        ("UserError(f'holds {kind}, expected a tensor')", ["where"]),
        ("hint = ', give another' if others else ''\nUserError(f'{path}: is taken{hint}')", ["what to do"]),
        (
            "def fail(what):\n    raise UserError(f'{path}: {what}')\nfail('expected a list')\nfail('no')",
            ["what to do"],
        ),
        ("def why():\n    return 'went wrong'\nUserError(f'{path}: {why()}')", ["what to do"]),
        ("try:\n    raise UserError('expected a video')\nexcept UserError:\n    raise", ["where"]),
        ("try:\n    pass\nexcept ValueError as error:\n    raise UserError(f'{path}: {error}')", ["what to do"]),
        (
            "def read(path):\n    'Read; a message does not name the file.'\n    _rows()\n"
            "def _rows():\n    raise UserError('expected rows')\n_rows()",
            ["where"],
        ),
    ],
)
def test_a_message_that_lacks_something_is_found(source, missing):
    found = _of(source)
    assert [re.search("does not say ([a-z ]+):", shortcoming)[1] for shortcoming in found] == missing
