"""Rules of the house that no linter checks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 400
SOURCES = sorted(p for top in ("omnifarm", "jobs", "serve") for p in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_holds_one_concept_and_says_which(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < MAX_LINES, "split it: one concept each"
    assert ast.get_docstring(ast.parse(text)), "the first lines say what the file is"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_everything_public_has_a_docstring(path: Path) -> None:
    bare = []
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            bare.append(node.name)
    assert bare == []


@pytest.mark.parametrize("module", ["omnifarm.backbone", "omnifarm.training", "omnifarm.serving"])
def test_the_core_imports_where_the_cluster_packages_are_missing(module: str) -> None:
    """A GPU box may have torch and transformers only: import every submodule with the rest blocked."""
    program = f"""
import importlib, pkgutil, sys
for name in ("ray", "deepspeed", "diffusers", "boto3", "botocore"):
    sys.modules[name] = None  # importing it fails, and looking for it finds nothing
package = importlib.import_module("{module}")
for found in pkgutil.walk_packages(package.__path__, "{module}."):
    importlib.import_module(found.name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_process_that_opens_a_backbone_imports_neither_a_compiler_nor_tables_of_models() -> None:
    """Each takes two seconds, of every worker and every replica that starts."""
    checkpoint = ROOT / "tests" / "golden" / "a" / "checkpoint"
    program = f"""
import sys
from omnifarm.training.workbench import Workbench
Workbench.open({str(checkpoint)!r}, precision="float32")
print(*(name for name in ("torch._dynamo", "transformers.activations", "diffusers", "peft") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr[-2000:]


def test_nothing_is_unpickled() -> None:
    """Artifacts and weights come from strangers; the only formats read are safetensors, JSON, YAML and parquet."""
    offenders = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute) and node.attr == "load" and getattr(node.value, "id", "") == "torch":
                names = ["torch.load"]
            else:
                continue
            offenders += [
                f"{path.name}: {name}"
                for name in names
                if name.split(".")[0] in ("pickle", "dill", "cloudpickle") or name == "torch.load"
            ]
    assert offenders == []
