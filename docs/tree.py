"""Write the README's tree of the package, a line a file, from the modules' own first sentences.

python docs/tree.py            # into README.md, between its two marks
python docs/tree.py --check    # says whether it is as it should be, and changes nothing
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "anytime_lab"
BEGIN, END = "<!-- tree: python docs/tree.py -->\n", "<!-- /tree -->\n"
COLUMN = 24  # where the sentences begin


def first_sentence(path: Path) -> str:
    """What a module says of itself in its first line, without the dot."""
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return told.split("\n")[0].rstrip(".")


def lines() -> Iterator[str]:
    """The tree: files of the package, then its rooms with their files."""
    yield "    anytime_lab/"
    entries = sorted(PACKAGE.iterdir(), key=lambda path: (path.is_dir(), path.name))
    for entry in entries:
        if entry.suffix == ".py" and entry.name != "__init__.py":
            yield f"      {entry.name:<{COLUMN}} {first_sentence(entry)}"
        elif entry.is_dir() and (entry / "__init__.py").exists():
            yield f"      {entry.name + '/':<{COLUMN}} {first_sentence(entry / '__init__.py')}"
            for path in sorted(entry.glob("*.py")):
                if path.name != "__init__.py":
                    yield f"        {path.name:<{COLUMN - 2}} {first_sentence(path)}"


def main() -> None:
    """See the top of this file."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = (
        f"{before}{BEGIN}\n" + "\n".join(line.rstrip() for line in lines()) + f"\n\n{END}{after}"
    )
    if "--check" in sys.argv[1:]:
        if wanted != text:
            sys.exit("README.md's tree is not what the modules say: run python docs/tree.py")
    elif wanted != text:
        readme.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
