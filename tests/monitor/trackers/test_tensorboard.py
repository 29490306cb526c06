"""TensorBoard's real files, read by its own reader: one curve, each step once, whatever happens to the run."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.monitor.files import read_lines
from finetune.monitor.trackers import tensorboard
from tests import tracked


def curve(folder: Path, name: str = "loss") -> dict[int, float]:
    """The values by their steps, in the order in which they are shown; each step stands once."""
    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    shown = [(scalar.step, scalar.value) for scalar in reader.Scalars(name)]
    assert len(dict(shown)) == len(shown)
    return dict(shown)


def pictures(folder: Path) -> list[int]:
    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    reader.Reload()
    return [image.step for image in reader.Images("samples")]


def sent(folder: Path, steps: range, done: int) -> None:
    to = tracked.open_all(folder, done=done, tensorboard=True)
    tracked.send(to, steps)
    to.close("finished")


def whole(*parts: range) -> dict[int, float]:
    return {step: tracked.loss(step) for part in parts for step in part}


def test_a_resume_strikes_out_what_it_trains_again(tmp_path: Path) -> None:
    sent(tmp_path, range(1, 9), 0)
    sent(tmp_path, range(6, 11), 5)
    assert list(curve(tmp_path).items()) == list(whole(range(1, 11)).items())
    assert pictures(tmp_path) == [10]


def test_a_start_before_anything_was_saved_begins_anew(tmp_path: Path) -> None:
    sent(tmp_path, range(9), 0)
    sent(tmp_path, range(4), 0)
    assert curve(tmp_path) == whole(range(4))


def test_a_rollback_strikes_out_what_it_takes_back(tmp_path: Path) -> None:
    to = tracked.open_all(tmp_path, tensorboard=True)
    tracked.send(to, range(1, 21))
    to.rolled_back(15)
    tracked.send(to, range(31, 36))
    to.rolled_back(31)
    tracked.send(to, range(41, 43))
    to.close("failed")
    assert list(curve(tmp_path).items()) == list(whole(range(1, 16), range(31, 32), range(41, 43)).items())
    sent(tmp_path, range(43, 46), 42)
    assert curve(tmp_path) == whole(range(1, 16), range(31, 32), range(41, 46))


@pytest.mark.slow
def test_a_killed_run_s_file_opens(tmp_path: Path) -> None:
    settled = 3 * tensorboard.FLUSH_S
    process = tracked.start(tmp_path, {}, until=500, end="killed", tensorboard=True, settle_s=settled)
    assert process.wait(tracked.DEADLINE_S) == -9
    assert curve(tmp_path) == whole(range(1, 501))
    sent(tmp_path, range(401, 450), 400)
    assert curve(tmp_path) == whole(range(1, 450))


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "add_image", "add_text", "close"])
def test_whatever_its_writer_raises_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tensorboard.SummaryWriter, method, fail)
    to = tracked.open_all(tmp_path, tensorboard=True)
    tracked.send(to, range(1, 3))
    to.alert("plateau", "nothing is learnt", "info")
    to.close("finished")
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["kind"], event["tracker"], event["reason"]) == ("tracker failed", "tensorboard", "no space left")


def test_alerts_are_among_the_texts(tmp_path: Path) -> None:
    tracker = tensorboard.TensorBoardTracker(tmp_path, 0)
    tracker.open()
    tracker.alert("rolled back", "10 bad steps", "warn")
    tracker.close("finished")
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    (text,) = reader.Tensors("rolled back/text_summary")
    assert text.tensor_proto.string_val == [b"warn: 10 bad steps"]
