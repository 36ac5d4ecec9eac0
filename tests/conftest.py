"""What every test needs: no network, few threads, and no browser where there is none."""

import atexit
import gc
import os
import signal
import sys
import threading
import time
from functools import cache
from importlib.metadata import Distribution

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # TRL pings the hub at every trainer start otherwise
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several torch processes spin against each other
os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is in the background of a shell without job control (`make test &` in a script), and
    # every process that a test starts and interrupts would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# accelerate, transformers and peft ask again and again; parsing is a sixth of a tiny training.
Distribution.from_name = staticmethod(cache(Distribution.from_name))
Distribution.metadata = property(cache(Distribution.metadata.fget))

import pytest  # noqa: E402

# Threads of libraries that live as long as the process and rest in Python.
LIBRARIES = ("tqdm_monitor", "GRPOTrainer-AsyncLoop", " - runner")  # the last is jupyter_core's


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """A thread that is left in native code when the process ends aborts it, tests passed or not."""
    before = set(threading.enumerate())
    yield
    give_up = time.monotonic() + 10
    while left := [
        thread
        for thread in threading.enumerate()
        if thread not in before and not thread.name.endswith(LIBRARIES)
    ]:
        assert time.monotonic() < give_up, f"threads left: {left}"
        time.sleep(0.01)


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collection: each training makes a full one."""
    gc.collect()
    gc.freeze()


SESSION = pytest.StashKey[pytest.Session]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Keep the session: it knows at the end how the tests went."""
    session.config.stash[SESSION] = session


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End with the tests' own exit status.

    Threads of native libraries (Arrow's, apache/arrow#34314) can abort an interpreter that is being
    torn down, now and then, after all is told. What is registered for the end is done before.
    """
    if (session := config.stash.get(SESSION, None)) is None:
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(session.exitstatus))


# --- several workers (pytest -n) -----------------------------------------------------------------

# Slow tests that share nothing with others of their file: each goes where there is room.
APART = tuple(f"run/test_{name}.py" for name in ("kill", "sweep_kills", "process", "jobs"))
# What takes longest begins first, so that no worker is left with it at the end.
FIRST = (
    "look/test_browser_",
    *("run/test_kill.py", "train/test_distributed.py"),  # by one fork server
    *("run/test_sweep_kills.py", "run/test_lab.py", "run/test_ray_place.py"),
    *("run/test_sweep_smoke.py", "train/", "test_benchmark_scripts.py", "verify/"),
)


def together(nodeid: str) -> str:
    """Name of the tests that one worker runs one after another: a file; the browser's files."""
    path = nodeid.partition("::")[0]
    if "/test_browser_" in path:  # one JupyterLab serves them all
        return "browser"
    return nodeid if path.endswith(APART) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Deal tests out to the workers by `together`, in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid)

    config.option.loadscopereorder = False
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first; skip tests marked `gpu` where there is no CUDA device."""
    begin = [next((i for i, n in enumerate(FIRST) if n in item.nodeid), 99) for item in items]
    items[:] = [items[i] for i in sorted(range(len(items)), key=begin.__getitem__)]
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


@pytest.fixture(scope="module")
def verifier():
    """Grades mathematics with two workers."""
    from anytime_lab.verify.verifiers import MathVerifier

    made = MathVerifier(workers=2, seconds=20)  # verdicts, however busy the machine is
    yield made
    made.close()


@pytest.fixture
def opened():
    """Makes answer-now views that are closed at the end."""
    from anytime_lab.look.answer_view import AnswerNow

    views = []

    def make(*args, **settings):
        views.append(AnswerNow(*args, **settings))
        return views[-1]

    yield make
    for view in views:
        view.close()
