"""One thread where one is asked for, and the same few threads for every small computation."""

import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fusemix.threads import Workers, lower_priority, one_thread


def in_a_new_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=60)


def threads_of_the_system():
    return {path.name for path in Path("/proc/self/task").iterdir()}


def helpers_started(limit):
    """How many threads torch starts for a matrix product in a thread that has computed nothing before."""
    torch.set_num_threads(2)
    before = threads_of_the_system()
    with one_thread(limit):
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        return len(threads_of_the_system() - before)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_inside_torch_starts_no_second_thread_and_without_the_limit_it_does():
    assert in_a_new_thread(lambda: helpers_started(limit=False)) == 1
    assert in_a_new_thread(lambda: helpers_started(limit=True)) == 0


def test_the_limit_ends_with_the_block_even_after_an_error():
    def counts():
        torch.set_num_threads(2)
        seen = []
        with pytest.raises(ZeroDivisionError), one_thread():
            seen.append(torch.get_num_threads())
            raise ZeroDivisionError
        return [*seen, torch.get_num_threads()]

    assert in_a_new_thread(counts) == [1, 2]


def test_the_limit_holds_for_its_own_thread_alone():
    def other():
        torch.get_num_threads()  # a thread that torch has not seen takes over the number set last
        torch.set_num_threads(2)
        ready.set()
        assert limited.wait(60)
        return torch.get_num_threads()

    ready, limited = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(other)
        assert ready.wait(60)
        with one_thread():
            limited.set()
            assert answer.result(timeout=60) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has a niceness for a thread")
def test_a_thread_that_gives_way_leaves_the_others_as_they_are():
    def own():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def niceness():
        lower_priority()
        return own()

    before = own()
    assert in_a_new_thread(niceness) == Workers(1, low_priority=True).run(own) > Workers(1).run(own) == before
    assert own() == before


def test_the_workers_compute_in_their_own_threads_each_limited_to_one():
    workers = Workers(2)

    def compute():
        time.sleep(0.005)  # so that one worker alone does not do them all
        return threading.get_ident(), torch.get_num_threads()

    with ThreadPoolExecutor(8) as visitors:
        seen = list(visitors.map(lambda _: workers.run(compute), range(40)))
    assert len({thread for thread, _ in seen}) == 2
    assert {count for _, count in seen} == {1}


def test_what_fails_in_a_worker_fails_for_its_caller_and_the_worker_goes_on():
    workers = Workers(1)
    with pytest.raises(ZeroDivisionError):
        workers.run(lambda: 1 / 0)
    assert workers.run(lambda: 3) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_forked_process_where_no_worker_is_left_the_caller_computes():
    workers = Workers(1)
    assert workers.run(lambda: 1) == 1  # the worker runs
    child = multiprocessing.get_context("fork").Process(target=workers.run, args=(lambda: os._exit(7),))
    child.start()
    child.join(20)
    ended = child.exitcode
    child.kill()
    assert ended == 7
