"""Which events give an alert, and what it says."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import UserError
from finetune.health.config import HealthConfig
from finetune.health.judge import Health
from finetune.health.pulse import Beat
from finetune.health.slow import Slow
from finetune.health.stalls import Stall
from finetune.monitor.alerts.config import KINDS, AlertsConfig
from finetune.monitor.alerts.rules import SEVERE, TURNS, alert_of

STALL = Stall((Beat(1, "box", 42, 6, 0, "backward", 0.0, 0, False),), (), 600.0, frozenset())
EVENTS: list[tuple[dict[str, Any], str, str]] = [
    ({"kind": "started", "step": 0}, "started", "info"),
    ({"kind": "resumed", "step": 1200, "superseded_steps": 3, "after": "killed"}, "resumed", "info"),
    ({"kind": "phase", "step": 1200, "number": 2, "resolution_px": 1024, "changed": True}, "phase", "info"),
    ({"kind": "skipped", "step": 7, "reason": "loss is nan", "keys": ["secret name"]}, "skipped", "warning"),
    ({"kind": "rolled back", "step": 500, "to": 700, "reason": "10 bad steps in a row"}, "rolled back", "warning"),
    ({"kind": "quarantined", "step": 7, "keys": ["secret name"]}, "quarantined", "warning"),
    (
        {"kind": "plateau", "step": 900, "over_steps": 400, "improvement": 0.0, "uncertainty": 0.001, "loss": 0.1},
        "plateau",
        "info",
    ),
    ({"kind": "stalled rank", **STALL.facts}, "stalled rank", "warning"),
    ({"kind": "slow rank", "step": 7, "ranks": [Slow(1, 2.0, 1.0)._asdict()]}, "slow rank", "warning"),
    ({"kind": "data outage", "what": "s3://b/1.tar", "reason": "TimeoutError", "since": 0.0}, "data outage", "warning"),
    ({"kind": "data is back"}, "data is back", "info"),
    ({"kind": "data change passed over", "step": 7, "reason": "no"}, "data change passed over", "warning"),
    ({"kind": "disk nearly full", "folder": "/r", "free_gib": 1.0, "needed_gib": 5.0}, "disk nearly full", "warning"),
    ({"kind": "checkpoint failed", "reason": "OSError"}, "checkpoint failed", "failure"),
    ({"kind": "damaged checkpoint", "reason": "step-00000500"}, "damaged checkpoint", "warning"),
    ({"kind": "upload", "name": "step-00000500", "failure": "OSError"}, "upload failed", "warning"),
    ({"kind": "upload failed", "reason": "OSError"}, "upload failed", "warning"),
    ({"kind": "export", "step": 7, "path": "/e", "seconds": 1.0, "error": "OSError"}, "export failed", "warning"),
    ({"kind": "tracker failed", "tracker": "wandb", "reason": "CommError"}, "tracker failed", "warning"),
    (
        {
            "kind": "no heartbeat",
            "step": 7,
            "activity": "backward",
            "host": "box",
            "pid": 42,
            "silent_s": 61.0,
            "process": "its process is gone",
        },
        "no heartbeat",
        "failure",
    ),
    ({"kind": "heartbeat is back", "step": 7}, "heartbeat is back", "success"),
    ({"kind": "finished"}, "finished", "success"),
    ({"kind": "preempted", "reason": "stopped by SIGTERM"}, "preempted", "info"),
    ({"kind": "stopped", "reason": "KeyboardInterrupt"}, "stopped", "warning"),
    ({"kind": "failed", "reason": "out of memory"}, "failed", "failure"),
]


@pytest.mark.parametrize(("event", "kind", "level"), EVENTS, ids=lambda value: str(value)[:30])
def test_what_matters_gives_an_alert(event: dict[str, Any], kind: str, level: str) -> None:
    alert = alert_of(event)
    assert alert is not None
    assert (alert.kind, alert.level) == (kind, level)
    assert "secret name" not in f"{alert.title}{alert.text}"
    assert not alert.text.startswith("{")  # what an event of another form would give
    if reason := event.get("reason"):
        assert reason in alert.text


def test_the_kinds_that_can_be_muted_are_those_that_there_are() -> None:
    assert {kind for _, kind, _ in EVENTS} == set(KINDS)
    assert set(KINDS) >= SEVERE | TURNS
    assert not SEVERE & TURNS


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "resumed", "step": 7, "superseded_steps": 0, "after": "preempted"},
        {"kind": "phase", "step": 7, "number": 1, "changed": False},
        {"kind": "upload", "name": "step-00000500", "failure": None},
        {"kind": "export", "step": 7, "path": "/e", "seconds": 1.0, "error": None},
        {"kind": "checkpoint", "step": 7, "name": "step-00000007", "seconds": 1.0},
        {"kind": "bad sample", "step": 7, "slot": 1, "reason": "truncated"},
        {"kind": "config changed", "changes": {}},
    ],
)
def test_what_is_as_it_should_be_gives_none(event: dict[str, Any]) -> None:
    assert alert_of(event) is None


@given(
    st.sampled_from([event["kind"] for event, _, _ in EVENTS]),
    st.dictionaries(
        st.sampled_from(["step", "reason", "keys", "ranks", "number", "changed", "failure", "free_gib", "silent_s"]),
        st.none() | st.integers() | st.text("ab é", max_size=5) | st.just(10**400),
    ),
)
def test_an_event_of_another_form_is_told_as_it_is(kind: str, fields: dict[str, Any]) -> None:
    alert = alert_of({"kind": kind, **fields})
    if alert and alert.text.startswith("{"):
        assert json.loads(alert.text) == {"kind": kind, **fields}


@pytest.mark.parametrize(
    ("losses", "cause"),
    [([0.1, float("nan")], "not a number"), ([0.1] * 200 + [9.0], "spike")],
)
def test_bad_steps_are_the_same_trouble_if_they_are_bad_alike(losses: list[float], cause: str) -> None:
    health = Health(HealthConfig(), fp16=False)
    reasons = [health.judge(step, loss, 1.0, phase=1).reason for step, loss in enumerate(losses)]
    keys = set()
    for step in (7, 8):
        alert = alert_of({"kind": "skipped", "step": step, "reason": reasons[-1], "keys": []})
        assert alert
        assert alert.title == f"{cause} in step {step}"
        keys.add(alert.key)
    assert keys == {f"skipped: {cause}"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mute": ["skiped"]}, r"monitor.alerts.mute is 'skiped': use one of started, .*skipped"),
        ({"to": "ntfy://h/topic"}, "monitor.alerts.to is no list of addresses"),
        ({"to": [{"a": "b"}]}, "monitor.alerts.to is no list of addresses"),
        ({"per_hour": 0}, "monitor.alerts.per_hour is 0: use 1 or more"),
        ({"again_after_s": -1.0}, "monitor.alerts.again_after_s is -1.0: use 0 or more"),
        ({"disk_free_gib": float("nan")}, "monitor.alerts.disk_free_gib is nan"),
        ({"plateau_steps": 5}, "monitor.alerts.plateau_steps is 5: use 0, or 20 and more"),
        ({"plateau_steps": -40}, "monitor.alerts.plateau_steps is -40"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AlertsConfig(**settings)
