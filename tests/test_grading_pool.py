"""The pool of grading workers: limits, order, death, interruption, threads and event loops."""

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

from anytime_lab.grading.pool import GradingPool
from anytime_lab.verify import FunctionVerifier, Grade, MathVerifier, PooledVerifier

ROOT = str(Path(__file__).resolve().parents[1])
HEADER = "thought</think>\n\n**Final Answer**\n"


@pytest.fixture
def pool():
    made = GradingPool(workers=2, seconds=1.0, memory_mb=512)
    yield made
    made.close()


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def family(pids):
    """The processes and their children."""
    found, waiting = set(), list(pids)
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            waiting += [int(child) for child in children]
    return found


def gone(pids, seconds=8.0):
    """Whether all processes end within `seconds`."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return value


def warm(pool):
    """Start both workers; returns (keepers, servers)."""
    pool.run([("builtins:abs", [1])] * 2)
    keepers = set(pool.processes())
    assert len(keepers) == 2
    return keepers, until(lambda: len(both := family(keepers)) == 4 and both) - keepers


def algebra(count, start=2):
    """Pairs that need sympy, each another one."""
    answers = [rf"\frac{{x^2-{n * n}}}{{x-{n}}}" for n in range(start, start + count)]
    return answers, [f"x+{n}" for n in range(start, start + count)]


def test_outcomes_come_in_the_order_of_the_jobs(pool):
    jobs = [("time:sleep", [0.3])] + [("builtins:abs", [-n]) for n in range(200)]
    outcomes = pool.run(jobs)
    assert [outcome.result for outcome in outcomes] == [None, *range(200)]


def test_a_job_past_its_limit_ends_at_it_and_its_neighbours_do_not_wait(pool):
    pool.run([("builtins:abs", [1])] * 2)
    start = time.monotonic()
    jobs = [("time:sleep", [60]), *[("builtins:abs", [-n]) for n in range(20)]]
    finished = {}
    for index, outcome in pool.stream(jobs):
        finished[index] = (time.monotonic() - start, outcome)
    assert finished[0][1].died == "timed out"
    assert 0.9 <= finished[0][0] < 2.5
    assert [finished[n + 1][1].result for n in range(20)] == list(range(20))
    assert all(finished[n + 1][0] < 0.9 for n in range(20))


def test_a_job_that_never_returns_to_python_is_ended_too(pool):
    # One multiplication in C that checks for no signal.
    outcome = pool.run([("builtins:pow", [3, 10**9]), ("builtins:abs", [-1])])
    assert outcome[0].died in ("timed out", "out of memory")
    assert outcome[1].result == 1


def test_memory_is_capped_and_the_next_job_is_fine(pool):
    jobs = [("builtins:bytearray", [2**31]), ("builtins:abs", [-5])] * 2
    outcomes = pool.run(jobs)
    assert [outcome.died for outcome in outcomes] == ["out of memory", "", "out of memory", ""]
    assert [outcome.result for outcome in outcomes[1::2]] == [5, 5]


def test_errors_and_exits_of_a_job_are_its_outcome_alone(pool):
    outcomes = pool.run(
        [
            ("builtins:int", ["x"]),
            ("os:_exit", [1]),
            ("os:abort", []),
            ("sys:exit", [3]),
            ("no_such_module:f", []),
            ("builtins:object", []),
            ("builtins:abs", [-1]),
        ]
    )
    assert outcomes[0].error.startswith("ValueError: invalid literal")
    assert [outcome.died for outcome in outcomes[1:4]] == ["crashed"] * 3
    assert outcomes[4].error.startswith("ModuleNotFoundError")
    assert outcomes[-1].result == 1
    assert outcomes[5].error  # a result that is no JSON


def test_what_a_job_prints_or_reads_does_not_reach_the_pipes(pool):
    outcomes = pool.run([("builtins:print", ["{}"]), ("os:write", [1, "x"]), ("os:getpid", [])])
    assert outcomes[0].result is None and not outcomes[0].error
    assert outcomes[2].result > 0


@pytest.mark.parametrize("whom", ["keepers", "servers", "both"])
@pytest.mark.parametrize("after", [0.0, 0.1])
def test_workers_killed_by_hand_are_replaced_and_no_job_is_lost(pool, whom, after):
    keepers, servers = warm(pool)
    victims = {"keepers": keepers, "servers": servers, "both": keepers | servers}[whom]

    def kill():
        time.sleep(after)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    if not after:
        killer.join()  # before the batch; else in the midst of it
    outcomes = pool.run([("time:sleep", [0.2])] * 4 + [("builtins:abs", [-n]) for n in range(50)])
    killer.join()
    assert [outcome.died or outcome.error for outcome in outcomes] == [""] * 54
    assert [outcome.result for outcome in outcomes[4:]] == list(range(50))
    assert gone(victims)


def test_workers_killed_while_they_start_are_replaced(pool):
    result = []
    batch = threading.Thread(target=lambda: result.extend(pool.run([("builtins:abs", [-4])] * 2)))
    batch.start()
    for pid in until(lambda: len(pool.processes()) == 2 and pool.processes()):
        os.kill(pid, signal.SIGKILL)
    batch.join()
    assert [outcome.result for outcome in result] == [4, 4]


def test_workers_killed_between_two_batches_of_a_verifier_cost_no_verdict():
    verifier = MathVerifier(workers=2, seconds=5.0)
    answers, golds = algebra(4)
    assert [g.reason for g in verifier.grade_answers(answers, golds)] == ["correct"] * 4
    for pid in verifier.pool.processes():
        os.kill(pid, signal.SIGKILL)
    answers, golds = algebra(8, start=50)
    assert [g.reason for g in verifier.grade_answers(answers, golds)] == ["correct"] * 8
    assert verifier.metrics()["crashed"] == 0
    verifier.close()


def test_time_outs_are_counted_and_not_remembered(tmp_path, monkeypatch):
    (tmp_path / "slow_grader.py").write_text(
        "import time\n\n\ndef score(answer, gold):\n    time.sleep(float(answer))\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    verifier = FunctionVerifier("slow_grader:score", seconds=0.5, workers=2)
    grades = verifier.grade_answers(["0", "30", "0", "30"], [1, 1, 1, 1])
    assert [grade.reason for grade in grades] == ["correct", "timed out"] * 2
    assert [grade.score for grade in grades] == [1.0, 0.0] * 2
    counts = verifier.metrics()
    assert (counts["graded"], counts["timed out"], counts["in workers"]) == (4, 2, 2)
    verifier.grade_answers(["0", "30"], [1, 1])
    assert verifier.metrics()["in workers"] == 3  # "0" is known, "30" is tried again
    verifier.close()


def test_equal_pairs_reach_a_worker_once():
    verifier = MathVerifier(workers=2)
    answers, golds = algebra(3)
    verifier.grade_answers(answers * 20, golds * 20)
    verifier.grade_answers(answers, golds)
    assert verifier.metrics()["in workers"] == 3
    verifier.close()


class Parity(PooledVerifier):
    """Grades by parity, in this process."""

    def _settle(self, answer, gold):
        return Grade(float(int(answer) % 2), answer, "correct" if int(answer) % 2 else "wrong")


def test_threads_that_remember_and_forget_lose_no_verdict_and_no_count():
    verifier, switch = Parity(workers=1, remember=3), sys.getswitchinterval()
    answers, failures = [str(n % 40) for n in range(400)], []

    def work():
        try:
            for _ in range(10):
                grades = verifier.grade_answers(answers, answers)
                assert [g.score for g in grades] == [float(int(a) % 2) for a in answers]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert failures == []
    assert verifier.metrics()["graded"] == 8 * 10 * 400
    assert verifier._counts["correct"] == verifier._counts["wrong"] == 8 * 10 * 200
    assert len(verifier._known) == 3
    assert pickle.loads(pickle.dumps(verifier)).metrics() == verifier.metrics()


def test_threads_share_a_verifier():
    verifier = MathVerifier(workers=2)
    results = {}

    def grade(name, start):
        answers, golds = algebra(10, start)
        golds[3] = "x"  # a wrong one, at a place that differs from thread to thread
        golds[name] = "x"
        results[name] = [g.score for g in verifier.grade_answers(answers, golds)]

    threads = [threading.Thread(target=grade, args=(n, 10 * n + 2)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(4):
        assert results[name] == [0.0 if n in (3, name) else 1.0 for n in range(10)]
    verifier.close()


def test_grading_works_inside_a_running_event_loop_and_as_a_coroutine():
    verifier = MathVerifier(workers=2)
    reward = verifier.as_async()
    answers, golds = algebra(6)
    completions = [f"{HEADER}\\boxed{{{answer}}}" for answer in answers]
    ticks = []

    async def tick():
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def main():
        assert verifier([""], [completions[0]], answer=[golds[0]]) == [1.0]  # sync, in the loop
        ticker = asyncio.create_task(tick())
        both = await asyncio.gather(
            reward(prompts=[""] * 6, completions=completions, answer=golds),
            reward.grade(completions, ["7"] * 6),
        )
        ticker.cancel()
        return both

    scores, grades = asyncio.run(main())
    assert scores == [1.0] * 6
    assert [grade.reason for grade in grades] == ["wrong"] * 6
    assert len(ticks) >= 2  # the loop went on meanwhile
    verifier.close()


def test_a_loop_on_another_thread_awaits_it_while_threads_call_it():
    # TRL awaits asynchronous rewards in a loop of its own and calls the others meanwhile.
    verifier = MathVerifier(workers=2)
    reward = verifier.as_async()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        futures, called = [], []
        for start in (2, 12, 22):
            answers, golds = algebra(10, start)
            golds[start % 10] = "x"
            asked = {"completions": [f"{HEADER}\\boxed{{{a}}}" for a in answers], "answer": golds}
            futures.append(asyncio.run_coroutine_threadsafe(reward([""] * 10, **asked), loop))
            called.append(verifier([""] * 10, **asked))
        expected = [0.0 if n == 2 else 1.0 for n in range(10)]
        assert [future.result(60) for future in futures] == called == [expected] * 3
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        verifier.close()


def test_a_verifier_can_be_pickled_and_its_copy_has_workers_of_its_own():
    verifier = MathVerifier(workers=1)
    answers, golds = algebra(2)
    verifier.grade_answers(answers, golds)
    copy = pickle.loads(pickle.dumps(verifier))
    assert copy.pool.processes() == []
    assert [g.score for g in copy.grade_answers(["x+x"], ["2x"])] == [1.0]
    assert not set(copy.pool.processes()) & set(verifier.pool.processes())
    copy.close()
    verifier.close()


def test_closing_ends_all_processes_and_the_pool_can_be_used_again(pool):
    keepers, servers = warm(pool)
    processes = keepers | servers
    pool.close()
    assert gone(processes)
    assert pool.run([("builtins:abs", [-3])])[0].result == 3


def test_a_forgotten_pool_ends_its_workers():
    made = GradingPool(workers=1)
    made.run([("builtins:abs", [1])])
    processes = family(made.processes())
    del made
    assert gone(processes)


def test_a_module_that_workers_cannot_import_is_reported_with_its_error():
    made = GradingPool(workers=1, preload=["no_such_module"])
    with pytest.raises(RuntimeError, match="No module named 'no_such_module'"):
        made.run([("builtins:abs", [1])])
    assert made.processes() == []


@pytest.mark.parametrize("settings", [{"workers": 0}, {"seconds": 0}, {"memory_mb": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="expected at least"):
        GradingPool(**settings)


def script(tmp_path, body):
    """A Python program of its own that uses the package."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(body))
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
        start_new_session=True,
    )


INTERRUPTED = """
    import os, sys, time
    from anytime_lab.verify import FunctionVerifier, MathVerifier

    verifier = MathVerifier(workers=2, seconds=60)
    answers = [rf"\\\\frac{{x^2-{n * n}}}{{x-{n}}}" for n in range(2, 30)]
    golds = [f"x+{n}" for n in range(2, 30)]
    print("ready", *[verifier.grade_answers(answers[:2], golds[:2])[0].reason], flush=True)
    print("workers", *verifier.pool.processes(), flush=True)
    try:
        verifier.pool.run([("time:sleep", [50])] * 4)
    except KeyboardInterrupt:
        print("interrupted", *verifier.pool.processes(), flush=True)
    grades = verifier.grade_answers(answers, golds)
    print("after", sum(grade.score for grade in grades), flush=True)
"""


def test_an_interrupt_ends_the_batch_and_its_workers_and_the_next_batch_is_whole(tmp_path):
    program = script(tmp_path, INTERRUPTED)
    assert program.stdout.readline().split() == ["ready", "correct"]
    workers = [int(pid) for pid in program.stdout.readline().split()[1:]]
    processes = until(lambda: len(both := family(workers)) == 4 and both)
    time.sleep(0.3)
    program.send_signal(signal.SIGINT)
    assert program.stdout.readline().split() == ["interrupted"]
    assert gone(processes)
    assert program.stdout.readline().split() == ["after", "28.0"]
    assert program.wait(30) == 0, program.stderr.read()


def kernel_says(client, code, meanwhile=lambda: None):
    """What a cell prints, or the name of its error; `meanwhile` is called while it runs."""
    sent = client.execute(code)
    printed, called = "", False
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != sent:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "execute_input" and not called:
            called = True
            meanwhile()
        elif kind == "stream":
            printed += content["text"]
        elif kind == "error":
            printed += content["ename"]
        elif kind == "status" and content["execution_state"] == "idle":
            return printed


@pytest.mark.slow
def test_an_interrupted_cell_leaves_no_orphan_and_the_next_cell_grades_whole(tmp_path, monkeypatch):
    (tmp_path / "sleepy_grader.py").write_text(
        "import time\n\n\ndef score(answer, gold):\n    time.sleep(float(answer))\n    return 1.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        told = kernel_says(
            client,
            "import torch\n"
            "torch.ones(9, 9) @ torch.ones(9, 9)\n"  # its threads are there
            "from anytime_lab.verify import FunctionVerifier\n"
            "verifier = FunctionVerifier('sleepy_grader:score', workers=2, seconds=120)\n"
            "grades = verifier.grade_answers(['0', '0.0'], [1, 1])\n"
            "print(*verifier.pool.processes())",
        )
        keepers = [int(pid) for pid in told.split()]
        processes = until(lambda: len(both := family(keepers)) == 4 and both)
        mapped = [Path(f"/proc/{pid}/maps").read_text() for pid in processes]
        assert not any("libtorch" in maps for maps in mapped)
        answers = "[str(0.01 * n) for n in range(1, 5)] + ['100', '101'] + ['0.5'] * 20"
        batch = f"answers = {answers}\nverifier.grade_answers(answers, [1] * len(answers))"

        def interrupt():
            time.sleep(1.0)
            manager.interrupt_kernel()

        assert kernel_says(client, batch, interrupt) == "KeyboardInterrupt"
        assert gone(processes)
        told = kernel_says(
            client,
            "answers = [a for a in answers if float(a) < 100]\n"
            "grades = verifier.grade_answers(answers, [1] * len(answers))\n"
            "print(sum(grade.score for grade in grades), verifier.metrics()['timed out'])\n"
            "print(*verifier.pool.processes())",
        )
        scores, keepers = told.splitlines()
        assert scores == "24.0 0"
        left = family(int(pid) for pid in keepers.split())
        assert len(left) >= 2
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
        manager.cleanup_resources()
    assert gone(left, seconds=12.0)


def test_ctrl_c_for_the_whole_process_group_leaves_no_orphan(tmp_path):
    program = script(tmp_path, INTERRUPTED.replace("except KeyboardInterrupt", "except OSError"))
    program.stdout.readline()
    processes = family(int(pid) for pid in program.stdout.readline().split()[1:])
    time.sleep(0.3)
    os.killpg(program.pid, signal.SIGINT)
    program.wait(30)
    assert "KeyboardInterrupt" in program.stderr.read()
    assert gone(processes)


def test_a_parent_killed_without_warning_leaves_no_orphan(tmp_path):
    program = script(tmp_path, INTERRUPTED.replace("seconds=60", "seconds=2"))
    program.stdout.readline()
    workers = [int(pid) for pid in program.stdout.readline().split()[1:]]
    processes = until(lambda: len(both := family(workers)) == 4 and both)
    time.sleep(0.3)
    program.kill()
    program.wait(30)
    assert gone(processes, seconds=12.0)


def test_a_script_without_a_main_guard_can_grade(tmp_path):
    # `multiprocessing` with spawn would run the script again in each worker.
    program = script(
        tmp_path,
        """
        print("started", flush=True)
        from anytime_lab.verify import MathVerifier
        print(MathVerifier().grade_answers(["x+x"], ["2x"])[0].reason, flush=True)
        """,
    )
    out, err = program.communicate(timeout=60)
    assert out.split() == ["started", "correct"], err


def test_grading_works_in_spawned_and_forked_processes(tmp_path):
    program = script(
        tmp_path,
        """
        import multiprocessing
        from anytime_lab.verify import MathVerifier

        verifier = MathVerifier(workers=1)

        def grade(n):
            return verifier.grade_answers([f"x+x+{n}"], [f"2x+{n}"])[0].reason

        if __name__ == "__main__":
            print(grade(1), len(verifier.pool.processes()))
            mine = verifier.pool.processes()
            for method in ("spawn", "fork"):
                with multiprocessing.get_context(method).Pool(2) as processes:
                    print(method, *processes.map(grade, range(2, 6)))
            print(grade(7), verifier.pool.processes() == mine)
        """,
    )
    out, err = program.communicate(timeout=120)
    assert out.splitlines() == [
        "correct 1",
        "spawn" + " correct" * 4,
        "fork" + " correct" * 4,
        "correct True",
    ], err


def test_a_child_forked_while_others_grade_grades_for_itself(tmp_path):
    program = script(
        tmp_path,
        """
        import os, signal, threading, time
        from anytime_lab.verify import MathVerifier

        verifier = MathVerifier(workers=1, seconds=30)
        print(verifier.grade_answers(["x+x"], ["2x"])[0].reason, flush=True)
        workers = verifier.pool.processes()
        outcomes = []
        job = [("time:sleep", [3])]
        batch = threading.Thread(target=lambda: outcomes.extend(verifier.pool.run(job)))
        batch.start()
        while not verifier.pool._lock.locked():
            time.sleep(0.01)
        with verifier._lock:  # as held by a thread that looks a verdict up
            child = os.fork()
        if child == 0:
            signal.alarm(60)  # a deadlock ends in a death by signal
            verifier.close()  # nothing of the parent's
            known = verifier.grade_answers(["x+x"], ["2x"])[0].reason
            print(known, verifier.grade_answers(["y+y"], ["2y"])[0].reason, flush=True)
            mine = verifier.pool.processes()
            verifier.close()
            os._exit(0 if len(mine) == 1 and mine != workers else 3)
        print("child", os.waitpid(child, 0)[1], len(outcomes), flush=True)
        batch.join()
        print(outcomes[0].died or "whole", verifier.pool.processes() == workers)
        """,
    )
    out, err = program.communicate(timeout=120)
    assert out.splitlines()[0] == "correct", err
    assert sorted(out.splitlines()[-3:]) == ["child 0 0", "correct correct", "whole True"], (
        out + err
    )
    assert program.returncode == 0


def test_importing_the_verifiers_imports_no_heavy_library():
    code = (
        "import sys, anytime_lab.verify as v; m = v.MathVerifier(); "
        "assert m.grade_answers(['0.5'], ['1/2'])[0].score == 1.0; "
        "heavy = {'torch', 'sympy', 'math_verify', 'latex2sympy2_extended', 'transformers'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert out.stdout.strip() == "[]", out.stderr
