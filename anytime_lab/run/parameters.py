"""The parameters of a notebook: what its tagged cell declares, and what does not fit it."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import papermill

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def declared_parameters(notebook: str | Path) -> dict[str, Any]:
    """Names and default values of a notebook's parameters."""
    declared = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(about["default"]) for name, about in declared.items()}


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse what papermill would only warn about.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: a parameter is unknown, or no JSON value of the declared type.
    """
    if not notebook.is_file():
        raise FileNotFoundError(
            f"there is no notebook {notebook}; {NOTEBOOKS} holds "
            f"{', '.join(sorted(p.name for p in NOTEBOOKS.glob('*.ipynb')))}."
        )
    declared = papermill.inspect_notebook(str(notebook))
    for name, value in parameters.items():
        if name not in declared:
            raise ValueError(
                f"{notebook.name} has no parameter {name!r}; it has {', '.join(declared)}."
            )
        _check_value(notebook.name, name, value, declared[name])


_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}


def _check_value(notebook: str, name: str, value: Any, declared: Mapping[str, str]) -> None:
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    if not same:  # papermill would write a tuple as a string
        raise ValueError(
            f"{notebook}: {name} is {value!r}, which JSON cannot hold as it is. Use numbers, "
            "strings, true and false, lists and dicts with string keys."
        )
    kinds = re.split(r"\s*\|\s*", declared.get("inferred_type_name", "").strip())
    if not kinds or any(kind not in (*_TYPES, "None") for kind in kinds):
        return
    for kind in kinds:
        if kind == "None" and value is None:
            return
        if kind in _TYPES and isinstance(value, _TYPES[kind]):
            if isinstance(value, bool) and kind != "bool":
                continue
            return
    default = declared.get("default", "")
    raise ValueError(
        f"{notebook}: {name} is {value!r} ({type(value).__name__}); expected "
        f"{' or '.join(kinds)}, such as {default}.{_fix(value, kinds)}"
    )


def _fix(value: Any, kinds: Sequence[str]) -> str:
    """What to write instead, where the slip is a usual one."""
    if isinstance(value, str) and {"int", "float"} & set(kinds):
        return " Write a number, without quotes or underscores."
    if isinstance(value, str) and "list" in kinds:
        return " Write a list in brackets: [1, 2]."
    if isinstance(value, str) and "bool" in kinds:
        return " Write true or false, without quotes."
    if isinstance(value, float) and "int" in kinds and value.is_integer():
        return f" Write {int(value)}."
    return ""
