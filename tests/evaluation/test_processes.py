import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from thingstuff.data.panoptic import pairs, read_panoptic, read_panoptic_predictions
from thingstuff.errors import AnnotationError, ConfigError, EvaluationError
from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.evaluation.processes import in_order
from thingstuff.formats.coco_panoptic import write_panoptic
from thingstuff.structures.categories import Categories
from thingstuff.structures.panoptic import PanopticMap

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_results_come_in_the_order_of_their_items(processes):
    def late_if_early(item: int) -> int:
        time.sleep(0.02 if item % 7 == 0 else 0)  # the first takes longest
        return item * item

    assert list(in_order(late_if_early, range(30), processes)) == [item * item for item in range(30)]


def test_other_processes_take_part():
    def slow_place(_: int) -> int:
        time.sleep(0.02)
        return os.getpid()

    assert len(set(in_order(slow_place, range(20), 3))) == 3


@pytest.mark.parametrize("items", [0, 1, 2])
def test_fewer_items_than_processes(items):
    assert list(in_order(str, range(items), 8)) == [str(item) for item in range(items)]


def test_more_results_than_are_held_and_than_a_pipe_takes():
    results = list(in_order(lambda item: bytes([item % 256]) * 50_000, range(300), 2))
    assert [result[0] for result in results] == [item % 256 for item in range(300)]


def test_what_goes_wrong_is_raised_where_its_result_would_come():
    def refuse_five(item: int) -> int:
        if item == 5:
            raise EvaluationError("item 5 is refused")
        return item

    results = in_order(refuse_five, range(10), 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(EvaluationError, match="item 5 is refused"):
        next(results)
    assert not multiprocessing.active_children()


def test_stopping_early_leaves_no_process():
    results = in_order(lambda item: item, range(1000), 3)
    assert next(results) == 0
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_told_of():
    own = os.getpid()

    def die_elsewhere(item: int) -> int:
        time.sleep(0.01)
        if os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(EvaluationError, match="memory"):
        list(in_order(die_elsewhere, range(20), 2))


def test_a_result_that_cannot_be_sent_is_told_of():
    own = os.getpid()

    def no_value(_: int) -> object:
        time.sleep(0.01)
        return 0 if os.getpid() == own else lambda: 0

    with pytest.raises(EvaluationError, match="can't be sent"):
        list(in_order(no_value, range(20), 2))


def test_an_error_that_cannot_be_sent_is_told_of_in_words():
    own = os.getpid()

    class TwoValuesError(Exception):
        def __init__(self, one: str, other: str):
            super().__init__(f"{one} and {other}")  # pickle gives this back as the only value

    def refuse_elsewhere(_: int) -> int:
        time.sleep(0.01)
        if os.getpid() != own:
            raise TwoValuesError("this", "that")
        return 0

    with pytest.raises(EvaluationError, match="TwoValuesError: this and that"):
        list(in_order(refuse_elsewhere, range(20), 2))


def test_a_process_of_another_one_is_told_that_it_may_start_none():
    def start_more(_: int) -> list[str]:
        time.sleep(0.01)
        return list(in_order(str, range(3), 2))

    with pytest.raises(ConfigError, match="leave processes at 1"):
        list(in_order(start_more, range(20), 2))


def test_what_the_caller_has_frozen_stays_so():
    gc.freeze()
    try:
        list(in_order(str, range(4), 2))
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_torch_computes_in_forks_though_its_threads_stay_behind():
    script = (
        "import torch; from thingstuff.evaluation.processes import in_order\n"
        "torch.set_num_threads(2); x = torch.ones(1000, 1000); x.sum()  # starts the threads\n"
        "print(list(in_order(lambda item: int(x.sum()) + item, range(4), 2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[1000000, 1000001, 1000002, 1000003]\n"


def test_no_process_at_all_is_refused():
    with pytest.raises(ConfigError, match="1 or more"):
        list(in_order(str, [1], 0))


def test_ctrl_c_ends_every_process():
    script = (
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from thingstuff.evaluation.processes import in_order\n"
        "for item in in_order(lambda item: time.sleep(0.01), range(10000), 3): print(item, flush=True)\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert started.stdout is not None
    started.stdout.readline()
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does, to all of them
    _, errors = started.communicate(timeout=60)
    assert errors.decode().count("KeyboardInterrupt") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(started.pid, 0)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_broken_png_is_named_whoever_decodes_it(tmp_path, processes):
    categories = Categories.numbered(2)
    ids = np.array([[1, 1, 2], [1, 2, 2]])
    segments = PanopticMap(ids, np.array([1, 2]), np.array([0, 1]), np.zeros(2, np.bool_), categories)
    for name in ("truth", "found"):
        write_panoptic(tmp_path / f"{name}.json", ((place, f"{place}.jpg", segments) for place in range(8)), categories)
    broken = tmp_path / "found" / "5.png"
    broken.write_bytes(broken.read_bytes()[:45])
    truth = read_panoptic(tmp_path / "truth.json")
    found = read_panoptic_predictions(tmp_path / "found.json", truth.categories)
    images = PanopticQuality(truth.categories).update_many(pairs(found, truth), processes)
    assert [next(images).image_id for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(AnnotationError, match=r"5\.png"):
        next(images)
