"""The image's recipe, as far as it can be held to the checkout without building it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def stages() -> dict[str, str]:
    found = {}
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = base
    return found


def test_both_targets_stand_on_one_pinned_python() -> None:
    found = stages()
    assert {"cpu", "cuda"} <= found.keys()
    for target in ("cpu", "cuda"):
        base = target
        while base in found:
            base = found[base]
        assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)
        low = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
        assert tuple(map(int, base.split(":")[1].split("-")[0].split("."))) >= tuple(map(int, low.split(".")))


def test_what_is_copied_is_there_and_let_through() -> None:
    allowed = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    for word, rest in instructions():
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in allowed


def test_every_package_is_installed_at_the_version_that_was_tested() -> None:
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert len(installs) == 4
    assert all("-c constraints.txt" in each for each in installs)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {"torch", "ray", "deepspeed"} <= pins.keys()


def test_nobody_is_root_at_the_end_and_no_secret_is_inside() -> None:
    found = instructions()
    assert [rest for word, rest in found if word == "USER"] == ["ray", "ray"]
    assert not [rest for word, rest in found if word in ("ENV", "ARG") and re.search("SECRET|TOKEN|PASSWORD|KEY", rest)]


def test_the_first_lines_name_targets_and_tags_that_exist() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    commands = re.findall(r"#\s+docker build -f (\S+) --target (\w+)\s+-t omnifarm:(\S+)", DOCKERFILE.read_text())
    assert [(path, target, tag) for path, target, tag in commands] == [
        ("infra/docker/Dockerfile", target, f"{version}-{target}") for target in ("cpu", "cuda")
    ]
