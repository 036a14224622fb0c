"""Who imports whom: layers keep their order, and commands start without heavy libraries."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "selfvox"
DATA = [path for path in (SOURCE / "data").rglob("*.py") if path.parent.name != "sampling"]
LAZY = {
    "__init__.py",
    "cli_help.py",
    "functions.py",
}  # answer before torch is imported, which takes seconds


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_data_flows_one_way():
    run(
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True))"
    )


def test_every_module_has_a_layer():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ][0]
    layered = {
        name.strip().partition(".")[0] for layer in contract["layers"] for name in layer.split("|")
    }
    layered |= {"commands"}
    existing = {
        path.stem
        for path in SOURCE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert layered == existing - {"__init__", "__main__"}


def test_the_data_layer_imports_no_torch():
    modules = sorted(
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in DATA
    )
    assert "selfvox.data.preparation.build_store" in modules
    modules = ", ".join(name.removesuffix(".__init__") for name in modules)
    assert run(f"import sys, {modules}; print('torch' in sys.modules)") == "False\n"


def test_help_imports_no_torch():
    code = (
        "import sys; from selfvox.cli import main; main(['--help']); print('torch' in sys.modules)"
    )
    assert run(code).splitlines()[-1] == "False"


NOT_TO_START = (
    "monai",  # any part of it imports the whole, which takes seconds
    "sklearn",
    "numba",
    "matplotlib",
    "SimpleITK",
    "tensorboard",
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "pandas",
    "dipy",
    "distributed",
    "timm",
)


@pytest.mark.parametrize("command", ["prepare", "pretrain", "predict"])
def test_a_command_starts_without_libraries_that_it_may_not_need(command):
    code = (
        f"import sys, selfvox.commands.{command}; "
        f"print([name for name in {NOT_TO_START} if name in sys.modules])"
    )
    assert run(code) == "[]\n"


def test_torchs_compiler_is_there_when_it_is_used():
    """Lightning Fabric is imported without it; see runs/device.py."""
    code = (
        "import sys, torch, selfvox.runs.device; assert 'torch._dynamo' not in sys.modules; "
        "torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]); "
        "from torch._dynamo import OptimizedModule, reset; reset(); "
        "print(torch.compiler.is_compiling(), OptimizedModule.__module__)"
    )
    assert run(code) == "False torch._dynamo.eval_frame\n"


def test_no_function_imports_our_own_modules():
    imports = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        if str(path.relative_to(SOURCE)) not in LAZY
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if any(name.split(".")[0] == "selfvox" for name in imported(node))
    ]
    assert imports == []


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or "selfvox"] if node.level == 0 else ["selfvox"]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
