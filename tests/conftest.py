"""What every test needs: no network, few threads, and no browser where there is none."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # TRL pings the hub at every trainer start otherwise
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several torch processes spin against each other
os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment

import pytest  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # seconds, so only where a test wants a device

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A JupyterLab in a browser, one for all tests; see lab_browser.py."""
    from lab_browser import BROWSERS, find_browser, open_lab

    if find_browser() is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    with open_lab(tmp_path_factory.mktemp("lab") / "home") as opened:
        yield opened
