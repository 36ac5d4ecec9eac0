"""The pool of grading workers: limits, order, death, threads and event loops."""

import asyncio
import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import family, gone, until

from anytime_lab.verify import verifiers
from anytime_lab.verify.verifiers import FunctionVerifier, Grade, MathVerifier, PooledVerifier
from anytime_lab.verify.workers import TRIES, GradingPool

HEADER = "thought</think>\n\n**Final Answer**\n"


@pytest.fixture
def pool():
    made = GradingPool(workers=2, seconds=1.0, memory_mb=512)
    yield made
    made.close()


def warm(pool):
    """Start all; returns ({the server}, the two workers)."""
    pool.run([("builtins:abs", [1])] * 2)
    server = set(pool.processes())
    assert len(server) == 1
    return server, until(lambda: len(both := family(server)) == 3 and both) - server


def algebra(count, start=2):
    """Pairs that need sympy, each another one."""
    answers = [rf"\frac{{x^2-{n * n}}}{{x-{n}}}" for n in range(start, start + count)]
    return answers, [f"x+{n}" for n in range(start, start + count)]


def test_outcomes_come_in_the_order_of_the_jobs(pool):
    jobs = [("time:sleep", [0.3])] + [("builtins:abs", [-n]) for n in range(200)]
    outcomes = pool.run(jobs)
    assert [outcome.result for outcome in outcomes] == [None, *range(200)]


def test_a_job_past_its_limit_ends_at_it_and_its_neighbours_do_not_wait(pool):
    warm(pool)
    start = time.monotonic()
    outcomes = pool.run([("time:sleep", [60]), *[("builtins:abs", [-n]) for n in range(20)]])
    # A second is its limit, a minute what it wants.
    assert outcomes[0].died == "timed out" and 0.9 <= time.monotonic() - start < 20
    assert [outcome.result for outcome in outcomes[1:]] == list(range(20))


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


@pytest.mark.parametrize("whom", ["server", "workers", "both"])
@pytest.mark.parametrize("after", [0.0, 0.1])
def test_workers_killed_by_hand_are_replaced_and_no_job_is_lost(pool, whom, after):
    server, workers = warm(pool)
    victims = {"server": server, "workers": workers, "both": server | workers}[whom]

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


@pytest.mark.parametrize(("kills", "died"), [(TRIES - 1, ""), (TRIES, "crashed")])
def test_a_job_outlives_kills_by_hand_but_not_without_end(kills, died):
    pool = GradingPool(workers=1, seconds=5.0, memory_mb=512)
    pool.run([("builtins:abs", [-1])])
    dead = set()

    def kill():
        for _ in range(kills):
            (worker,) = until(lambda: family(pool.processes()) - set(pool.processes()) - dead)
            time.sleep(0.2)  # it has its job by then
            os.kill(worker, signal.SIGKILL)
            dead.add(worker)

    killer = threading.Thread(target=kill)
    killer.start()
    (outcome,) = pool.run([("time:sleep", [2])])
    killer.join()
    assert outcome.died == died and gone(dead)
    assert pool.run([("builtins:abs", [-1])])[0].result == 1
    pool.close()


def test_a_server_killed_again_and_again_is_told():
    pool = GradingPool(workers=1, seconds=50.0)
    ended = threading.Event()

    def kill():
        while not ended.is_set():
            for pid in pool.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RuntimeError, match="killed 4 times in one batch"):
        pool.run([("time:sleep", [40])])
    ended.set()
    killer.join()
    assert pool.processes() == []


def test_workers_killed_while_they_start_are_replaced(pool):
    result = []
    batch = threading.Thread(target=lambda: result.extend(pool.run([("builtins:abs", [-4])] * 2)))
    batch.start()
    for pid in until(pool.processes):
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
    assert verifier.counts["crashed"] == 0
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
    counts = verifier.counts
    assert (counts["graded"], counts["timed out"], counts["in workers"]) == (4, 2, 2)
    verifier.grade_answers(["0", "30"], [1, 1])
    assert verifier.counts["in workers"] == 3  # "0" is known, "30" is tried again
    verifier.close()


def test_equal_pairs_reach_a_worker_once():
    verifier = MathVerifier(workers=2)
    answers, golds = algebra(3)
    verifier.grade_answers(answers * 20, golds * 20)
    verifier.grade_answers(answers, golds)
    assert verifier.counts["in workers"] == 3
    verifier.close()


class Parity(PooledVerifier):
    """Grades by parity, in this process."""

    def _settle(self, answer, gold):
        return Grade(float(int(answer) % 2), answer, "correct" if int(answer) % 2 else "wrong")


def test_threads_that_remember_and_forget_lose_no_verdict_and_no_count(monkeypatch):
    monkeypatch.setattr(verifiers, "REMEMBERED", 3)
    verifier, switch = Parity(workers=1), sys.getswitchinterval()
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
    assert verifier.counts["graded"] == 8 * 10 * 400
    assert verifier.counts["correct"] == verifier.counts["wrong"] == 8 * 10 * 200
    assert len(verifier._known) == 3
    assert pickle.loads(pickle.dumps(verifier)).counts == verifier.counts


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


def test_grading_works_inside_a_running_event_loop_and_in_its_threads():
    verifier = MathVerifier(workers=2)
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
            asyncio.to_thread(verifier, [""] * 6, completions, answer=golds),
            asyncio.to_thread(verifier.grade, completions, ["7"] * 6),
        )
        ticker.cancel()
        return both

    with ThreadPoolExecutor(1) as thread:  # a browser test may have left a loop in this one
        scores, grades = thread.submit(lambda: asyncio.run(main())).result()
    assert scores == [1.0] * 6
    assert [grade.reason for grade in grades] == ["wrong"] * 6
    assert len(ticks) >= 2  # the loop went on meanwhile
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
    server, workers = warm(pool)
    processes = server | workers
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


@pytest.mark.parametrize(
    "settings",
    [{"workers": 0}, {"workers": "2"}, {"seconds": 0}, {"seconds": None}, {"memory_mb": -1}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="Input should be"):
        GradingPool(**settings)
