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
