"""CONTRIBUTING.md's recipes, taken apart and followed in a copy of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.paths import DATA, ROOT, TOY

CODE = ("benchmarks", "configs", "docs", "edge_attribution_patching", "plotting", "tests", "tools", "utils")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Runs a recipe's commands in one process, so that the libraries are imported once.
COMMANDS = """
import runpy, shlex, sys
sys.path.insert(0, "")
for line in sys.stdin.read().splitlines():
    word, *arguments = shlex.split(line)
    assert word == "python", line
    run = runpy.run_path
    if arguments[0] == "-m":
        run, arguments = runpy.run_module, arguments[1:]
    sys.argv = arguments
    print("$", line, flush=True)
    try:
        run(arguments[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{line}: exit code {end.code}"
"""


@dataclass
class Recipe:
    """What a section of CONTRIBUTING.md says to do.

    Attributes:
        files: path -> the text of a new file.
        edits: (path, lines of a diff) of every change to a file that is there.
        commands: to run when all is written.
    """

    files: dict[str, str] = field(default_factory=dict)
    edits: list[tuple[str, list[str]]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def recipes() -> dict[str, Recipe]:
    """Heading -> recipe, of every section called "A new ..."."""
    sections = re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {section.splitlines()[0]: _read(section) for section in sections if section.startswith("A new ")}


def copy_of_repository(folder: Path) -> Path:
    """The code and the configs; `model_cache/toy` holds the kept steps of the toy family."""
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "data"))
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, folder)
    (folder / "model_cache").mkdir()
    (folder / "model_cache" / "toy").symlink_to(TOY)
    (folder / "tests" / "data").symlink_to(DATA)
    return folder


def follow(recipe: Recipe, folder: Path) -> str:
    """Write a recipe's files, make its changes, and run its commands.

    Returns:
        What the commands wrote.
    """
    for name, text in recipe.files.items():
        assert not (folder / name).exists(), f"{name} is there already"
        (folder / name).write_text(text, encoding="utf-8")
    for name, lines in recipe.edits:
        (folder / name).write_text(apply((folder / name).read_text(encoding="utf-8"), lines), encoding="utf-8")
    commands = "\n".join(_as_make_does(command) for command in recipe.commands)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], cwd=folder, input=commands, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def apply(text: str, diff: list[str]) -> str:
    """A text with one change made.

    Args:
        text: of the file.
        diff: lines that begin with a space (there before and after), "-" (before) or "+" (after).
    """
    before = "".join(f"{line[1:]}\n" for line in diff if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in diff if not line.startswith("-"))
    assert text.count(before) == 1, f"found {text.count(before)} times:\n{before}"
    return text.replace(before, after)


def _read(section: str) -> Recipe:
    recipe = Recipe()
    for block in BLOCK.finditer(section):
        language, text = block[1], block[2]
        paths = re.findall(r"`([\w/]+\.\w+)`", section[: block.start()])
        if not language:
            recipe.commands += [line.partition("  #")[0] for line in text.splitlines()]
        elif language == "diff":
            recipe.edits.append((paths[-1], text.splitlines()))
        else:
            recipe.files[paths[-1]] = text
    return recipe


def _as_make_does(command: str) -> str:
    """A command with `make docs` replaced by what the Makefile runs for it."""
    if not command.startswith("make "):
        return command
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{command.removeprefix('make ')}:.*\n\t\$\(RUN\) (.*)$", makefile, re.MULTILINE)
    assert found, f"{command}: not in the Makefile"
    return f"python {found[1]}"
