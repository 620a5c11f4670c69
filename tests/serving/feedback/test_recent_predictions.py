"""The shared memory of recent predictions: found by id and client, in every process, until they are too old."""

import multiprocessing
import os
import random
import signal
import time
from typing import NamedTuple

from serving.engine.recent_predictions import Found, RecentPredictions, version_tag

REQUESTS = 1024


class Version(NamedTuple):
    name: str = "student"
    version: str = "1"
    slot: str = "3"


def memory(processes: int = 1, seconds: float = 60) -> RecentPredictions:
    return RecentPredictions(processes, REQUESTS, seconds)


def add(recent: RecentPredictions, request_id: str, *digits: int, client: str | None = None) -> None:
    recent.add(request_id.encode(), client, Version(), digits, False)
    recent.publish()


def digits_of(recent: RecentPredictions, found: Found | None) -> list[int] | None:
    if found is None:
        return None
    start = found.process * recent._row_size + recent._digits_at
    return [
        recent._memory[start + (found.first + index) % recent._images] & 15 for index in range(found.images)
    ]


def find(recent: RecentPredictions, request_id: str, client: str | None = None) -> list[int] | None:
    return digits_of(recent, recent.find(request_id.encode(), client))


def test_requests_are_found_with_their_digits_and_version() -> None:
    recent = memory()
    add(recent, "a", 7)
    add(recent, "b", 1, 2, 3)
    assert (find(recent, "a"), find(recent, "b"), find(recent, "c")) == ([7], [1, 2, 3], None)
    found = recent.find(b"b", None)
    assert found
    assert (found.slot, found.version) == (3, version_tag("student", "1"))


def test_of_several_requests_with_an_id_the_newest_is_found_in_whatever_process() -> None:
    recent = memory(processes=2)
    add(recent, "a", 1)
    recent.open(1)
    add(recent, "a", 2)
    assert find(recent, "a") == [2]
    recent.open(0)
    add(recent, "a", 3)
    assert find(recent, "a") == [3]


def test_a_client_finds_its_own_requests_only() -> None:
    recent = memory()
    add(recent, "a", 1, client="alice")
    add(recent, "a", 2, client="bob")
    assert [find(recent, "a", client) for client in ("alice", "bob", "carol", None)] == [[1], [2], None, None]


def test_what_is_found_is_what_was_added_while_the_rings_are_filled_many_times() -> None:
    recent, numbers = memory(), random.Random(1)  # noqa: S311
    added: dict[str, list[int]] = {}
    for number in range(20 * REQUESTS):
        digits = [numbers.randrange(10) for _ in range(numbers.choice((1, 1, 1, 9, 200)))]
        name = f"request {number % 3000}"
        add(recent, name, *digits)
        added.pop(name, None)
        added[name] = digits
    newest = list(added)[::-1]
    found = [find(recent, name) for name in newest]
    known = found.index(None)
    assert known > 20
    assert not any(found[known:])
    assert found[:known] == [added[name] for name in newest[:known]]


def test_requests_expire() -> None:
    recent = memory(seconds=0.05)
    add(recent, "a", 1)
    assert find(recent, "a") == [1]
    time.sleep(0.06)
    assert find(recent, "a") is None


def test_a_request_with_more_images_than_fit_is_not_found() -> None:
    recent = memory()
    add(recent, "large", *[1] * 5000)
    add(recent, "small", *[2] * 256)
    assert (find(recent, "large"), find(recent, "small")) == (None, [2] * 256)


def test_the_first_label_of_an_image_remains() -> None:
    recent = memory()
    add(recent, "a", 7, 4)
    found = recent.find(b"a", None)
    assert found
    assert [recent.label(found, 1, 9), recent.label(found, 1, 9), recent.label(found, 1, 4)] == [
        (4, None),
        (4, 9),
        (4, 9),
    ]
    assert recent.label(found, 0, 0) == (7, None)
    assert find(recent, "a") == [7, 4]


def label_all(recent: RecentPredictions, counted: object) -> None:
    found = recent.find(b"a", None)
    assert found
    new = sum(recent.label(found, index, 5)[1] is None for index in range(256))
    with counted.get_lock():  # type: ignore[attr-defined]
        counted.value += new  # type: ignore[attr-defined]


def test_labels_that_arrive_in_several_processes_at_once_count_once() -> None:
    recent = memory()
    add(recent, "a", *[5] * 256)
    fork = multiprocessing.get_context("fork")
    counted = fork.Value("i", 0)
    processes = [fork.Process(target=label_all, args=(recent, counted)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert counted.value == 256


def hold_lock(recent: RecentPredictions, ready: object) -> None:
    with recent._locked():
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_process_that_is_killed_while_it_labels_holds_up_no_other_one() -> None:
    recent = memory()
    add(recent, "a", 1)
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    process = fork.Process(target=hold_lock, args=(recent, ready))
    process.start()
    assert ready.wait(10)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    found = recent.find(b"a", None)
    assert found
    assert recent.label(found, 0, 1) == (1, None)


def find_in_child(recent: RecentPredictions, answers: object) -> None:
    recent.open(1)
    answers.put((find(recent, "a"), find(recent, "b")))  # type: ignore[attr-defined]


def test_a_process_that_replaces_another_continues_its_row() -> None:
    recent = memory()
    add(recent, "a", 1)
    recent.open(0)
    add(recent, "b", 2)
    assert (find(recent, "a"), find(recent, "b")) == ([1], [2])


def test_a_spawned_process_sees_the_same_requests() -> None:
    recent = RecentPredictions(2, REQUESTS, 60, secret=b"secret")
    add(recent, "a", 1)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=find_in_child, args=(recent, answers))
    process.start()
    assert answers.get(timeout=60) == ([1], None)
    process.join(20)
