"""Imports point one way, and importing the package needs torch alone."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = "alibi_attention"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# The rooms of the package: each imports from its own layer and from those listed before it.
# ROOT is the package's own __init__, which gathers the public names; the layers listed after it may use them.
ROOT = "__init__"
LAYERS = [
    ["extras", "slopes", "bias"],
    ["problem", "checks", "visibility", "call"],
    ["reference", "horizon", "merge", "dropout"],
    ["backends"],
    ["dispatch"],
    ["eager", "ops", "certificate"],
    ["module", "cache"],
    [ROOT],
    ["parallel"],
    ["integrations"],
    ["lab", "bench"],
    ["generation"],
    ["cli", "__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# What only extras bring, or a user may have installed besides.
OPTIONAL = [
    "einops",
    "flash_attn",
    "gguf",
    "huggingface_hub",
    "lightning",
    "matplotlib",
    "pandas",
    "pydantic",
    "pytorch_lightning",
    "rich",
    "safetensors",
    "scipy",
    "tensorboard",
    "tokenizers",
    "torchmetrics",
    "tqdm",
    "transformers",
    "triton",
    "typer",
    "yaml",
]


def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package by the name of its folder."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ROOT


def imports_in(nodes: Iterable[ast.AST], module: str) -> Iterator[tuple[int, str]]:
    """(line, module of ours) for each import statement among ``nodes``."""
    parents = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            anchor = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*anchor, *filter(None, [node.module])])
            # `from package import name` reaches the module of that name if there is one, else the package.
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in inner]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE:
                yield node.lineno, name


def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def run_at_load(node: ast.AST) -> Iterator[ast.AST]:
    """The statements that importing a module runs: none inside functions or under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from run_at_load(child)


# Layers


def test_every_room_has_its_place():
    unplaced = {room(module) for module in MODULES} - set(LEVEL)
    assert not unplaced, f"not in LAYERS: {sorted(unplaced)}; place each where its imports allow"


def test_no_room_is_in_two_layers():
    assert len(LEVEL) == sum(map(len, LAYERS))


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) != ROOT])
def test_imports_point_one_way(module: str):
    level = LEVEL[room(module)]
    # ast.walk goes into functions too: an import put off still points somewhere.
    for line, imported in imports_in(ast.walk(parse(module)), module):
        assert LEVEL[room(imported)] <= level, (
            f"{MODULES[module].name}:{line} imports {imported}, which lies in a layer after {room(module)!r}"
        )


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: {name for _, name in imports_in(run_at_load(parse(module)), module)} for module in MODULES}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import alibi_attention.bias", ["alibi_attention.bias"]),
        ("import torch, alibi_attention.slopes as s", ["alibi_attention.slopes"]),
        ("from alibi_attention import alibi_slopes", ["alibi_attention"]),
        ("from alibi_attention import slopes", ["alibi_attention.slopes"]),
        ("from alibi_attention.bias import build_alibi_bias", ["alibi_attention.bias"]),
        ("from . import bias", ["alibi_attention.bias"]),
        ("from .bias import build_alibi_bias", ["alibi_attention.bias"]),
        ("def f():\n    from alibi_attention.bias import build_alibi_bias", ["alibi_attention.bias"]),
        ("from torch import Tensor\nimport alibi_attention_other", []),
    ],
)
def test_the_parser_sees_every_form_of_import(statement: str, expected: list[str]):
    nodes = ast.walk(ast.parse(statement))
    assert [name for _, name in imports_in(nodes, "alibi_attention.slopes")] == expected


def test_put_off_imports_do_not_count_as_run_at_load():
    source = (
        "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\n"
        "class D:\n    import d\n    def g(self):\n        import e\n"
        "try:\n    import f\nexcept ImportError:\n    pass"
    )
    found = [node.names[0].name for node in run_at_load(ast.parse(source)) if isinstance(node, ast.Import)]
    assert found == ["a", "d", "f"]


# Cold imports, each in a process of its own


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def added_modules() -> set[str]:
    """What `import alibi_attention` loads beyond what `import torch` has loaded already."""
    code = (
        "import json, sys, torch; before = set(sys.modules); import alibi_attention; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    added = set(json.loads(run_python(code)))
    assert PACKAGE in added
    return added


def test_import_needs_torch_alone(added_modules: set[str]):
    allowed = {PACKAGE, "torch"} | set(sys.stdlib_module_names)
    foreign = sorted(name for name in added_modules if name.split(".")[0] not in allowed)
    assert not foreign, f"`import {PACKAGE}` must load torch and the standard library alone, it loaded {foreign}"


def test_import_leaves_heavy_parts_of_torch_alone(added_modules: set[str]):
    heavy = ("torch._dynamo", "torch._inductor", "torch.nn.attention.flex_attention", "torch.onnx")
    loaded = sorted(name for name in added_modules if name.startswith(heavy))
    assert not loaded, f"`import {PACKAGE}` is quick only without {loaded}"


@pytest.mark.parametrize("name", ["integrations", "lab", "cli"])
def test_import_leaves_the_outer_rooms_alone(added_modules: set[str], name: str):
    assert f"{PACKAGE}.{name}" not in added_modules


def test_import_adds_few_modules(added_modules: set[str]):
    ours = {name for name in added_modules if name.split(".")[0] == PACKAGE}
    others = added_modules - ours
    assert len(ours) <= 60, sorted(ours)
    assert len(others) <= 30, sorted(others)


def test_import_works_where_nothing_optional_is_installed():
    # None in sys.modules makes an import raise, as it would if the distribution were absent.
    # torch comes first: what it probes for is its own affair.
    code = f"import sys, torch; sys.modules.update(dict.fromkeys({OPTIONAL!r})); import alibi_attention"
    run_python(code)


def test_public_names_are_there_and_named_once():
    code = (
        "import alibi_attention as package; names = package.__all__; "
        "missing = [name for name in names if not hasattr(package, name)]; "
        "assert not missing, missing; assert len(set(names)) == len(names)"
    )
    run_python(code)


def test_the_package_is_typed():
    assert (SOURCE / "py.typed").is_file()
