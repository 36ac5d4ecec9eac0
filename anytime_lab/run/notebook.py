"""A notebook's parameters: which there are, what they may be, and where its folders lie.

The first cell of a notebook declares them; papermill and sweeps put others after it. The second
cell calls `take_parameters(globals())`, so that a wrong one is told before anything is loaded,
however the notebook was started. Three rules hold for all notebooks:

- **Folders.** Relative paths are from the project's folder, wherever Jupyter or papermill was
  started in it, and `~` is the home folder. Outside of the project they are from where one stands.
- **Text.** Where a list, a mapping, a number or a switch is declared and text is given, as
  `papermill -p` does, it is read.
- **Secrets.** `env:NAME` takes a value from the environment; a sweep passes on in that way what it
  knows as a secret. Papermill would write it into the executed notebook.
"""

import ast
import contextlib
import difflib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anytime_lab.page import redacted

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
SECRETS = "ANYTIME_LAB_SECRETS"  # in the environment of a run: JSON, placeholder → secret
TAKES = "take_parameters"
_TYPES = {"int", "float", "str", "bool", "list", "dict", "None"}  # those that are checked
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def declared(source: str) -> dict[str, tuple[str, Any]]:
    """Name → type as it is written ("" if none) and default, of a cell of parameters."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            found[node.target.id] = (ast.unparse(node.annotation), ast.literal_eval(node.value))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ("", ast.literal_eval(node.value))
    return found


def code_cells(notebook: str | Path) -> list[tuple[str, bool]]:
    """Source of each code cell, and whether it holds the parameters."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    return [
        ("".join(cell["source"]), "parameters" in cell["metadata"].get("tags", []))
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def _declared_by(notebook: str | Path) -> dict[str, tuple[str, Any]]:
    return declared("\n".join(code for code, tagged in code_cells(notebook) if tagged))


def declared_parameters(notebook: str | Path) -> dict[str, Any]:
    """Names and default values of a notebook's parameters."""
    return {name: default for name, (_, default) in _declared_by(notebook).items()}


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse what papermill would only warn about.

    Raises:
        ValueError: a parameter is unknown, or no JSON value of the declared type, or a secret that
            the notebook would not take from the environment.
    """
    known = _declared_by(notebook)
    for name, value in parameters.items():
        _check_name(notebook.name, name, known)
        _check_value(f"{notebook.name}: {name}", value, *known[name])
    if hide_secrets(parameters)[1] and not any(TAKES in code for code, _ in code_cells(notebook)):
        raise ValueError(
            f"{notebook.name}: there is a secret among its parameters, and its second cell does "
            f"not call {TAKES}(globals()), which takes it from the environment. Add the call, or "
            "leave the secret out."
        )


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: which one may be meant, or which there are."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, 1)
    return f"do you mean {close[0]}?" if close else f"there are {', '.join(known) or 'none'}."


def _check_name(where: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ValueError(f"{where} has no parameter {name!r}; {nearest(name, known)}")


# What to write instead of a text.
_FIXES = {
    "int": " Write a number, without quotes or underscores.",
    "float": " Write a number, without quotes or underscores.",
    "list": " Write a list in brackets: [1, 2].",
    "dict": ' Write names with values in braces: {"high": 12}.',
    "bool": " Write true or false, without quotes.",
}


def _check_value(where: str, value: Any, kind: str, default: Any) -> None:
    """Refuse what is no JSON, or of another type than declared."""
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    if not same:  # papermill would write a tuple as a string
        raise ValueError(
            f"{where} is {redacted(value)!r}, which JSON cannot hold as it is. Use numbers, "
            "strings, true and false, lists and dicts with string keys."
        )
    kinds, given = kind.split(" | "), "None" if value is None else type(value).__name__
    if not _TYPES.issuperset(kinds) or given in kinds or (given == "int" and "float" in kinds):
        return
    fix = next((fix for kind, fix in _FIXES.items() if given == "str" and kind in kinds), "")
    if given == "float" and "int" in kinds and value.is_integer():
        fix = f" Write {value:.0f}."
    raise ValueError(
        f"{where} is {redacted(value)!r} ({given}); expected "
        f"{' or '.join(kinds)}, such as {default!r}.{fix}"
    )


def take_parameters(room: dict[str, Any]) -> None:
    """Check and read the parameters of the notebook that calls it, and go to the project's folder.

    Args:
        room: `globals()` of the notebook, after its cell of parameters; they are set in it anew.

    Raises:
        ValueError: a parameter is unknown, of another type than declared, or a secret that
            papermill has written into the notebook; the message says what to write instead.
    """
    known = {name: getattr(kind, "__name__", str(kind)) for name, kind in
             room.get("__annotations__", {}).items()}  # fmt: skip
    given: dict[str, Any] = {}
    defaults = dict(room)
    cells = [cell for cell in room.get("In", ()) if isinstance(cell, str)]
    for before, cell in itertools.pairwise(cells):
        if cell.lstrip().startswith("# Parameters"):  # papermill's, after the declared ones
            given |= {name: value for name, (_, value) in declared(cell).items()}
            defaults |= {name: value for name, (_, value) in declared(before).items()}
    for name in given:
        _check_name("this notebook", name, known)
        if hide_secrets({name: given[name]})[1]:
            raise ValueError(
                f"{name} holds a secret, and papermill writes parameters into the notebook that "
                "it makes: remove that file. Put the secret into the environment and give "
                "env:NAME, the variable's name, in its place."
            )
    kept = json.loads(os.environ.get(SECRETS, "{}"))
    for name, kind in known.items():
        value = _in_place(_from_text(room[name], kind), kept)
        _check_value(name, value, kind, defaults[name])
        room[name] = value
    if (ROOT / "notebooks").is_dir() and Path.cwd().is_relative_to(ROOT):
        os.chdir(ROOT)


def _from_text(value: Any, kind: str) -> Any:
    """A value that was given as text, read as what is declared; itself if that cannot be."""
    if not isinstance(value, str) or kind == "" or "str" in kind.split(" | "):
        return value
    if value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return read(value)
    return value


def _in_place(value: Any, kept: Mapping[str, str]) -> Any:
    """The value with secrets, variables of the environment and `~` in place, at any depth."""
    if isinstance(value, Mapping):
        return {key: _in_place(one, kept) for key, one in value.items()}
    if isinstance(value, list):
        return [_in_place(one, kept) for one in value]
    if not isinstance(value, str):
        return value
    for placeholder, secret in kept.items():
        value = value.replace(placeholder, secret)
    if value.startswith("env:"):
        if (name := value.removeprefix("env:")) not in os.environ:
            raise ValueError(f"{value}: the environment has no variable {name}; export it first.")
        return os.environ[name]
    return os.path.expanduser(value) if value.startswith("~") else value


def hide_secrets(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters as files may hold them, and placeholder → what it stands for."""
    kept: dict[str, str] = {}

    def hide(secret: str) -> str:
        if secret.startswith(("env:", "***")):
            return secret
        placeholder = f"***{len(kept) + 1}***"
        kept[placeholder] = secret
        return placeholder

    return redacted(dict(parameters), hide), kept
