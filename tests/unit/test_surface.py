"""The Python surface: which names there are, that they cost nothing to have, and that the README's lines run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import omnifarm

ROOT = Path(__file__).parents[2]
(LINES,) = re.findall(r"```python\n(import omnifarm\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_surface_is_these_names_and_no_others() -> None:
    assert omnifarm.__all__ == [
        "Answer",
        "ConceptSpec",
        "Engine",
        "LoadedBackbone",
        "OmniFarmError",
        "Picture",
        "SamplingOptions",
        "draw_concepts",
        "learn",
        "load",
        "load_backbone",
        "open_engine",
        "read_concepts",
        "save",
    ]
    for name in omnifarm.__all__:
        assert getattr(omnifarm, name).__name__ == name
    assert dir(omnifarm) == omnifarm.__all__


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(AttributeError, match="open_engine"):
        _ = omnifarm.train_everything


def test_importing_it_loads_neither_torch_nor_anything_of_ours() -> None:
    program = "import sys, omnifarm; print([m for m in sys.modules if m == 'torch' or m.startswith('omnifarm.')])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(
        compile(LINES.replace("learn(backbone, concepts)", "learn(backbone, concepts, steps=2)"), "README.md", "exec"),
        {},
    )
    assert capsys.readouterr().out.strip()
    from PIL import Image

    with Image.open("build/drawn.png") as drawn:
        assert drawn.size == (96, 96)
    backbone = omnifarm.load_backbone("miniature")
    name = omnifarm.read_concepts("build/photos")[0].name
    manifest, soft_tokens = omnifarm.load("build/learned", name, backbone=backbone)
    assert manifest.recipe["steps"] == 2
    assert soft_tokens.und.abs().max() > 0
