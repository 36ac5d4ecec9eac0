"""A notebook as a page without its code, served by voila to this machine, by token.

voila's own page asks a CDN for icons, and plotly's renderer for JupyterLab, which wants to write a
picture of each figure into the notebook, fails on it. Here figures come as HTML, from a template
that asks nobody.
"""

import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

JUPYTER = Path(__file__).resolve().parents[1] / "jupyter"  # holds the template, where voila looks
TEMPLATE = "anytime_lab"


def arguments_for_voila(notebook: str, options: Sequence[str]) -> list[str]:
    """What voila is started with: on this machine's own address, with a token of its own.

    Args:
        options: Of voila, such as `--port=8866`, `--no-browser` or `--token=…`.

    Raises:
        ValueError: they would let other machines in, or anybody without a token.
    """
    for option in options:
        if re.match(r"--(Voila\.)?ip\b", option) or re.fullmatch(r"--(Voila\.)?token=", option):
            raise ValueError(
                f"{option} would let others run code here; the page is served to this machine, by "
                "token. From another one, forward the port: ssh -L 8866:localhost:8866 HOST."
            )
    token = any(re.match(r"--(Voila\.)?token=", option) for option in options)
    mine = [] if token else ["--Voila.auto_token=True"]
    return [notebook, *options, *mine, "--Voila.ip=127.0.0.1", f"--template={TEMPLATE}"]


def command(asked: Namespace) -> int:
    """Serve until it is stopped; voila prints the address with its token."""
    if not Path(asked.notebook).is_file():
        raise FileNotFoundError(f"there is no notebook {asked.notebook}.")
    try:
        from voila.app import Voila
    except ImportError:
        told = "voila is not installed here; install it with: pip install voila"
        raise ValueError(told) from None
    known = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(JUPYTER), known]))
    os.environ["PLOTLY_RENDERER"] = "notebook"  # of its kernels
    Voila.launch_instance(arguments_for_voila(asked.notebook, asked.options))
    return 0
