"""Which of Megatron's arguments a pretraining by launch/pretraining/worker.py reads, found in the source code itself.

    python tests/pretraining/megatron_reads.py            # the flags that nothing reads

Nothing is imported and nothing is run: the modules that the worker imports are parsed, and followed from the worker by
name. A function or a class counts as used when code in use mentions its name. An argument counts as read

- when code in use reads an attribute of that name from something that holds arguments (`args`, `config`,
  `cfg.checkpoint` and the like), or gets it by `getattr`;
- when `validate_args`, or `__post_init__` of a configuration class, computes from it an argument that is itself read or
  something outside of the arguments, or sets one under a condition on it. To check an argument is not to read it.

Names can coincide: an argument that is called read may be read for something else. One that is called unread is unread.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = REPOSITORY / "launch" / "pretraining" / "worker.py"
MEGATRON = Path(next(iter(importlib.util.find_spec("megatron").submodule_search_locations)))  # type: ignore[union-attr,arg-type]
ROOTS = {"megatron": MEGATRON, "launch": REPOSITORY / "launch", "artifacts": REPOSITORY / "artifacts"}

# Code that Megatron's modules import for other models and tasks than a dense GPT's pretraining. Flags that only it
# reads have to be refused by launch/pretraining/served_flags.py.
OTHER_WORK = re.compile(
    r"megatron\.(core\.(inference|ssm|resharding|export|post_training)"
    r"|core\.models\.(hybrid|mimo|common\.fine_grained_callables|common\.model_chunk_schedule_plan)"
    r"|core\.models\.gpt\.(moe_module_specs|fine_grained_callables|heterogeneous|experimental_attention_variant)"
    r"|core\.transformer\.(moe|experimental_attention_variant|heterogeneous|multi_latent_attention"
    r"|multi_token_prediction|mla_qk_norm_config)"
    r"|core\.pipeline_parallel\.(combined_1f1b|hybrid_cp_schedule|bridge_communicator|multimodule_communicator)"
    r"|training\.(distillation|models\.hybrid|yaml_arguments))"
    r"|artifacts\.megatron_on_cpu"
)
DEFINITIONS = "megatron.training.arguments"  # the parser, and the validation that sets one argument from another
CALLED_BY_PYTHON = re.compile(r"__\w+__|forward|backward|setup_context")
DOTTED = re.compile(r"megatron(\.\w+)+")
HOLDERS = re.compile(r"(args|config|cfg)(\(\))?$")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_file(name: str) -> Path | None:
    """The source file of a module of Megatron or this project; None for other packages', and for what is no module."""
    first, *rest = name.split(".")
    if first not in ROOTS or not rest:
        return None
    place = ROOTS[first].joinpath(*rest)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists()), None)


def imported(name: str, path: Path) -> Iterator[str]:
    """Dotted names that a module's import statements may mean, those in functions included."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def modules() -> dict[str, Path]:
    """Megatron's modules that the worker imports, one through another, without those of `OTHER_WORK`."""
    found: dict[str, Path] = {}
    waiting = [("launch.pretraining.worker", WORKER)]
    while waiting:
        name, path = waiting.pop()
        if name in found or OTHER_WORK.match(name):
            continue
        found[name] = path
        for said in imported(name, path):
            parts = said.split(".")
            for length in range(2, len(parts) + 1):
                part = ".".join(parts[:length])
                if (file := module_file(part)) and part not in found:
                    waiting.append((part, file))
    return found


Function = ast.FunctionDef | ast.AsyncFunctionDef


def definitions(body: Iterable[ast.stmt]) -> Iterator[Function | ast.ClassDef | ast.stmt]:
    """Top-level statements; those inside of `if` and `try` as well, where many functions are defined."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            for handler in getattr(node, "handlers", []):
                inner += handler.body
            yield from definitions(inner)
        else:
            yield node


def mentioned(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.Attribute):
            yield inner.attr
        elif isinstance(inner, ast.alias) and inner.asname:
            yield inner.name.rpartition(".")[2]
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str) and DOTTED.fullmatch(inner.value):
            yield inner.value.rpartition(".")[2]  # Megatron names its builders so


def in_use(paths: dict[str, Path]) -> Iterator[ast.AST]:
    """Code that the worker may run: its own, and what is mentioned by name from there on."""
    by_name: dict[str, list[ast.AST]] = defaultdict(list)
    waiting: list[ast.AST] = [parsed(WORKER)]
    for path in paths.values():
        if path == WORKER:
            continue
        for node in definitions(parsed(path).body):
            if isinstance(node, Function):
                by_name[node.name].append(node)
            elif isinstance(node, ast.ClassDef):
                by_name[node.name].append(node)
            elif not isinstance(node, ast.Import | ast.ImportFrom):
                waiting.append(node)
    # the datasets read their own configuration: launch/pretraining/dataset.py has to hand the arguments on
    silent = [path for name, path in paths.items() if name == DEFINITIONS or name.startswith("megatron.core.datasets")]
    unread = {id(inner) for path in silent for inner in ast.walk(parsed(path))}
    names: set[str] = set()
    while waiting:
        node = waiting.pop()
        parts: list[ast.AST] = [node]
        if isinstance(node, ast.ClassDef):
            parts = [*node.bases, *node.decorator_list]
            for inner in definitions(node.body):
                if isinstance(inner, Function) and not CALLED_BY_PYTHON.fullmatch(inner.name):
                    if inner.name in names:
                        waiting.append(inner)
                    else:
                        by_name[inner.name].append(inner)
                elif not (isinstance(inner, Function) and inner.name == "__post_init__"):
                    parts.append(inner)
        for part in parts:
            if id(part) not in unread:
                yield part
            for name in set(mentioned(part)) - names:
                names.add(name)
                waiting += by_name.pop(name, [])


def holder(node: ast.expr) -> str:
    """What an attribute is taken from, by its last name: `transformer` of `cfg.transformer`, `get_args()`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return f"{holder(node.func)}()" if isinstance(node, ast.Call) else ""


def attributes(node: ast.AST, holders: re.Pattern[str]) -> Iterator[str]:
    """Attributes that code reads from a holder of arguments; a method that is called is none."""
    called = {id(inner.func) for inner in ast.walk(node) if isinstance(inner, ast.Call)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Load) and id(inner) not in called:
            if holders.search(holder(inner.value)):
                yield inner.attr
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "getattr":
            if isinstance(inner.args[1], ast.Constant):
                yield str(inner.args[1].value)


def names_in(node: ast.AST, owner: str) -> set[str]:
    """Arguments (`args.x`, as `x`) and local names (as `=x`) that an expression reads."""
    found = set(attributes(node, re.compile(rf"^{owner}$")))
    return found | {f"={inner.id}" for inner in ast.walk(node) if isinstance(inner, ast.Name) and inner.id != owner}


EFFECT = "!"  # something outside of the arguments
SPEECH = re.compile(r"print|warn|log|exit|info|debug|add_argument|append|_check_arg")  # calls that only tell the user


def derived(body: list[ast.stmt], owner: str, conditions: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """(from, to): which argument or local name goes into which, by assignment or by the condition of one."""
    for node in body:
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.Expr | ast.Return) and isinstance(node.value, ast.Call):
            if not SPEECH.search(holder(node.value.func)):  # setattr(args, …), Feature.enable(), os.environ.update(…)
                targets, value = [ast.Name(EFFECT)], node.value
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets, value = [node.target], node.value
        if value is not None:
            flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
            for target in flat:
                while isinstance(target, ast.Subscript | ast.Starred):
                    target = target.value
                if isinstance(target, ast.Attribute) and holder(target.value) == owner:
                    to = target.attr
                elif isinstance(target, ast.Name):
                    to = target.id if target.id == EFFECT else f"={target.id}"
                else:  # an attribute of something else: torch.backends.…
                    to = EFFECT
                yield from ((source, to) for source in names_in(value, owner) | conditions)
        within = conditions
        if isinstance(node, ast.If | ast.While):
            within = conditions | names_in(node.test, owner)
        elif isinstance(node, ast.For):
            within = conditions | names_in(node.iter, owner)
        for part in ("body", "orelse", "finalbody"):
            yield from derived(getattr(node, part, []), owner, within)
        for handler in getattr(node, "handlers", []):
            yield from derived(handler.body, owner, within)


def read() -> set[str]:
    """Names of all arguments that a pretraining reads, and of other things that are read in the same way."""
    paths = modules()
    sections = re.compile(rf"{HOLDERS.pattern}|^({'|'.join(sections_of_the_configuration())})$")
    code = list(in_use(paths))
    found = {EFFECT, *(name for node in code for name in attributes(node, sections)), *by_signature(paths, code)}
    edges: list[tuple[str, str]] = []
    for name, path in paths.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef) and (name == DEFINITIONS or node.name == "__post_init__"):
                if not node.name.startswith(("_add_", "add_")):
                    owner = "args" if name == DEFINITIONS else "self"
                    place = f"{name}.{node.name}.{node.lineno}"
                    # local names belong to their function
                    edges += [
                        tuple(f"{place}{side}" if side.startswith("=") else side for side in edge)  # type: ignore[misc]
                        for edge in derived(node.body, owner)
                    ]
    while more := {source for source, to in edges if to in found} - found:
        found |= more
    return found


def by_signature(paths: dict[str, Path], code: list[ast.AST]) -> Iterator[str]:
    """What an emerging optimizer takes from the configuration: its class's parameters, after the optimizer's name."""
    classes = {
        node.name: node for path in paths.values() for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)
    }
    for node in (inner for part in code for inner in ast.walk(part)):
        if isinstance(node, ast.Call) and holder(node.func) == "_kwargs_from_config":
            kind, prefix = node.args[:2]
            if isinstance(kind, ast.Name) and isinstance(prefix, ast.Constant):
                for method in classes[kind.id].body:
                    if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                        yield from (f"{prefix.value}_{argument.arg}" for argument in method.args.args)


def sections_of_the_configuration() -> list[str]:
    """Fields of Megatron's whole configuration, each of which holds arguments: `checkpoint`, `logger`, …"""
    path = module_file("megatron.training.config.container")
    assert path
    classes = {node.name: node for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)}
    body = classes["PretrainConfigContainer"].body
    fields = [node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return [*fields, "transformer"]


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    from launch.pretraining.flags import _parser

    known = read()
    for group in _parser()._action_groups:
        unread = [action.dest for action in group._group_actions if action.dest not in known]
        print(f"{group.title}: {len(unread)} of {len(group._group_actions)} unread: {' '.join(unread)}")
