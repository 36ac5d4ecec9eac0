"""Two processes (gloo, on the CPU) train as one does; the shipped accelerate settings load."""

import importlib.util
import socket
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny
import two_processes
from killable import assert_same_checkpoint, forks, lines
from safetensors.torch import load_file

from anytime_lab.store.rollouts import read_rollouts, rollout_steps
from anytime_lab.train.recording import missing_parts, read_state

TESTS = Path(__file__).parents[1]
SHIPPED = sorted((TESTS.parent / "experiments/accelerate").glob("*.yaml"))


NO_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: DS_BUILD_OPS=0 pip install deepspeed",
)
# Weights on each process; shared out but whole after a pass; gathered for each pass.
WAYS = (
    "copies", "fsdp_1.5b_1node", "fsdp_7b_1node",
    *(pytest.param(f"deepspeed_{size}_1node", marks=NO_DEEPSPEED) for size in ("1.5b", "7b")),
)  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    tiny.model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one(start, tmp_path_factory):
    """Folder of the runs by one process."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "start").symlink_to(start)
    two_processes.main(folder)
    return folder


@pytest.fixture(scope="module", params=WAYS)
def two(request, start, tmp_path_factory):
    """Folder of the same runs by two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "start").symlink_to(start)
    settings = [str(path) for path in SHIPPED if path.stem == request.param]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = [
        forks().Process(target=two_processes.main_of, args=(rank, port, folder, *settings))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    while any(rank.is_alive() for rank in ranks) and not any(rank.exitcode for rank in ranks):
        time.sleep(0.05)
    for rank in ranks:  # what is left of two waits for the other for ever
        rank.kill()
        rank.join()
    log = folder.with_name(f"{folder.name}.log")
    assert [rank.exitcode for rank in ranks] == [0, 0], log.read_text()[-4000:]
    return folder


def moved(folder, name):
    """How a run changed its weights."""
    if (folder / name / "model/adapter_model.safetensors").exists():
        return load_file(folder / name / "model/adapter_model.safetensors")
    before = load_file(folder / "start/model.safetensors")
    after = load_file(folder / name / "model/model.safetensors")
    return {key: after[key] - before[key] for key in before}


@pytest.mark.slow
@pytest.mark.parametrize("name", two_processes.RUNS)
def test_two_processes_take_the_steps_of_one(one, two, name):
    wanted, found = moved(one, name), moved(two, name)
    assert wanted.keys() == found.keys()
    assert max(change.abs().max() for change in wanted.values()) > 1e-3
    for key in wanted:
        assert (wanted[key] - found[key]).abs().max() < 1e-5, key
    first, second = lines(one / name), lines(two / name)
    for a, b in zip(first, second, strict=True):
        told = "loss", "grad_norm", "anytime_accuracy", "entropy"
        counted = (f"total/{kind}_tokens" for kind in ("prompt", "thinking", "summary", "packed"))
        for key in (*told, *counted):
            assert (key in a) == (key in b)  # the second update of a generation has no scores
            assert a.get(key, 0) == pytest.approx(b.get(key, 0), rel=1e-4, abs=1e-6), key
    if name == "abstaining":
        assert 0 < first[0]["abstained"] == second[0]["abstained"] < 1


@pytest.mark.slow
def test_two_processes_keep_the_rollouts_that_one_keeps(one, two):
    """The second group lies on both processes; rank zero writes all of it."""
    folders = [folder / "plain" for folder in (one, two)]
    assert [rollout_steps(folder) for folder in folders] == [[1, 2]] * 2
    for step in (1, 2):
        first, second = (read_rollouts(folder, step) for folder in folders)
        assert first.model_dump(exclude={"frame"}) == second.model_dump(exclude={"frame"})
        pd.testing.assert_frame_equal(first.frame, second.frame, rtol=1e-6)
    assert len(first.frame) == 8  # two groups of four


@pytest.mark.slow
def test_two_processes_resume_exactly_and_rank_zero_alone_writes(two):
    assert_same_checkpoint(two / "whole/checkpoint-3", two / "resumed/checkpoint-3")
    listed = read_state(two / "whole/checkpoint-3")["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= listed.keys()
    assert missing_parts(two / "whole/checkpoint-3") == []
    (two / "whole/checkpoint-2/rng_state_1.pth").unlink()
    assert missing_parts(two / "whole/checkpoint-2") == ["rng_state_1.pth"]
    steps = [row["step"] for row in lines(two / "whole")]
    assert steps == [1, 2, 3]  # one line a step, not one a process
    trees = [row["tokens/thinking"] for row in lines(two / "whole")]
    assert len(set(trees)) > 1  # rollouts of the model, not of a fixed list


# --- the shipped settings ------------------------------------------------------------------------

NODES = {"1node": 1, "2nodes": 2}


def test_both_sizes_ship_for_one_node_and_two():
    expected = {
        f"{kind}_{size}_{place}"
        for kind in ("deepspeed", "fsdp") for size in ("1.5b", "7b") for place in NODES
    }  # fmt: skip
    assert {path.stem for path in SHIPPED} == expected


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_accelerate_takes_the_shipped_settings(path, monkeypatch):
    """Through accelerate's own reader and the checks of `accelerate launch`."""
    from accelerate.commands import launch
    from accelerate.commands.config.config_args import load_config_from_file

    kind, size, place = path.stem.split("_")
    config = load_config_from_file(str(path))
    assert (config.num_machines, config.num_processes) == (NODES[place], 8 * NODES[place])
    parser = launch.launch_command_parser()
    known = {action.dest for action in parser._actions}
    nested = {**config.fsdp_config, **config.deepspeed_config}
    assert set(nested) <= known  # accelerate passes over what it does not know
    monkeypatch.setattr(launch, "is_deepspeed_available", lambda: True, raising=False)
    args = parser.parse_args(["--config_file", str(path), "script.py"])
    args, *_ = launch._validate_launch_command(args)
    assert args.mixed_precision == "bf16"
    if kind == "deepspeed":
        assert args.use_deepspeed
        assert args.zero_stage == {"1.5b": 2, "7b": 3}[size]
    else:
        assert args.use_fsdp
        environment = launch.prepare_multi_gpu_env(args)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        from accelerate import FullyShardedDataParallelPlugin

        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.reshard_after_forward is (size == "7b")
