"""A notebook as a page without its code, served by voila.

voila's own page asks a CDN for icons, and plotly's renderer for JupyterLab, which wants to write a
picture of each figure into the notebook, fails on it. Here figures come as HTML, from a template
that asks nobody. Whatever follows the notebook is for voila, such as `--port 8866 --no-browser`.
"""

import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

JUPYTER = Path(__file__).resolve().parents[1] / "jupyter"  # holds the template, where voila looks
TEMPLATE = "anytime_lab"


def prepare(environment: MutableMapping[str, str]) -> None:
    """Tell voila where the template is, and its kernels how plotly shows a figure."""
    known = environment.get("JUPYTER_PATH", "")
    environment["JUPYTER_PATH"] = os.pathsep.join([str(JUPYTER), *filter(None, [known])])
    environment["PLOTLY_RENDERER"] = "notebook"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the top of this file."""
    try:
        from voila.app import Voila
    except ImportError:
        sys.exit("voila is not installed here; install it with: pip install voila")
    prepare(os.environ)
    given = sys.argv[1:] if arguments is None else list(arguments)
    Voila.launch_instance([*given, f"--template={TEMPLATE}"])


if __name__ == "__main__":
    main()
