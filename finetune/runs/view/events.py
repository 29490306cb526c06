"""How events are written for a reader."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from finetune.redact import redacted
from finetune.runs.view.words import plain

LONGEST = 240
"""Letters of an event."""
GOOD = frozenset(
    {"started", "resumed", "finished", "checkpoint", "data is back", "heartbeat is back", "export", "upload"}
)
BAD = frozenset({"failed", "rolled back", "stalled rank", "no heartbeat", "checkpoint failed"})
"""Kinds of events by what a reader should make of them; others are in between, or worth no colour."""
DOUBTFUL = frozenset(
    {"skipped", "quarantined", "slow rank", "data outage", "disk nearly full", "plateau", "damaged checkpoint"}
    | {"tracker failed", "bad sample", "preempted", "stopped", "page failed", "alert failed"}
)


def told(event: Mapping[str, Any]) -> str:
    """What an event says beside its time and kind, in a line."""
    facts = {key: value for key, value in event.items() if key not in ("time", "kind") and value not in (None, [], {})}
    try:
        text = " · ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in facts.items())
    except RecursionError:
        return "too deep to be shown"
    text = plain(redacted(text))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def event_time(event: Mapping[str, Any]) -> float | None:
    """When an event happened, in seconds since 1970; None where it does not say."""
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        return max(0.0, datetime.fromisoformat(event["time"]).timestamp())
    return None


def tone(event: Mapping[str, Any]) -> str:
    """good, doubtful, bad or plain."""
    if event.get("error"):
        return "doubtful"
    tones = {"good": GOOD, "doubtful": DOUBTFUL, "bad": BAD}
    return next((name for name, kinds in tones.items() if str(event.get("kind")) in kinds), "plain")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
