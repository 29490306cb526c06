"""Which events are worth an alert, and what it says. Pure: an event of events.jsonl gives an alert, or none."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Event = Mapping[str, Any]
Level = Literal["info", "success", "warning", "failure"]
SEVERE = frozenset({"finished", "preempted", "stopped", "failed", "no heartbeat", "heartbeat is back"})
"""The run has ended, or nobody knows. These come once each time, and noise about the rest never holds them back."""
TURNS = frozenset({"started", "resumed", "data outage", "data is back", "disk nearly full", "phase"})
"""Each tells that something is otherwise now, so that none is a repetition of the one before."""
CRASHED = ("killed", "failed")
"""How the start before may have ended so that going on is news."""


@dataclass(frozen=True)
class Alert:
    """What somebody is told."""

    kind: str
    """One of KINDS."""
    level: Level
    title: str
    text: str = ""
    cause: str = ""
    """Tells apart what is repeated within a kind."""

    @property
    def key(self) -> str:
        """The same for what repeats itself."""
        return f"{self.kind}: {self.cause}" if self.cause else self.kind

    @property
    def severe(self) -> bool:
        """Whether the run has ended or may have."""
        return self.kind in SEVERE

    @property
    def repeats(self) -> bool:
        """Whether it may be the same trouble over and over again."""
        return not self.severe and self.kind not in TURNS


def alert_of(event: Event) -> Alert | None:
    """The alert that an event is worth, if any. Of an event with other fields than expected, as another version may
    have written it, the alert holds all there is."""
    rule = _RULES.get(event["kind"])
    try:
        return rule(event) if rule else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return Alert(event["kind"], "warning", event["kind"], json.dumps(event, ensure_ascii=False))


def _started(event: Event) -> Alert:
    return Alert("started", "info", "started", "Alerts of this run arrive here.")


def _resumed(event: Event) -> Alert | None:
    if event.get("after") not in CRASHED:
        return None
    text = f"The start before was {event['after']}; the run goes on after step {event['step']:,}."
    return Alert("resumed", "info", f"goes on after it was {event['after']}", text)


def _phase(event: Event) -> Alert | None:
    if not event.get("changed"):
        return None
    facts = {k: v for k, v in event.items() if k not in {"time", "kind", "changed", "step", "number"}}
    text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
    return Alert("phase", "info", f"phase {event['number']} from step {event['step'] + 1:,} on", text)


def _skipped(event: Event) -> Alert:
    cause = "spike" if "spike" in event["reason"] else "not a number"
    text = f"{event['reason']}. The step was left out; its samples are in events.jsonl."
    return Alert("skipped", "warning", f"{cause} in step {event['step']:,}", text, cause)


def _rolled_back(event: Event) -> Alert:
    text = f"{event['reason']}. The run goes on after step {event['to']:,} with the weights of before."
    return Alert("rolled back", "warning", f"rolled back to step {event['step']:,}", text)


def _quarantined(event: Event) -> Alert:
    count = len(event["keys"])
    text = f"From step {event['step'] + 1:,} on; their names are in events.jsonl."
    return Alert("quarantined", "warning", f"{count:,} sample{'s'[: count != 1]} in quarantine", text)


def _plateau(event: Event) -> Alert:
    text = (
        f"In the second half of the last {event['over_steps']:,} steps the loss was {event['loss']:.5f}, "
        f"{event['improvement']:.2%} ± {event['uncertainty']:.2%} lower than in the first."
    )
    return Alert("plateau", "info", f"no improvement up to step {event['step']:,}", text)


def _stalled(event: Event) -> Alert:
    return Alert("stalled rank", "warning", f"stalled in step {event['step']:,}", f"{event['reason']}.")


def _slow(event: Event) -> Alert:
    told = "rank {rank} ({seconds:.2f} s a step, the others {others:.2f} s)"
    text = ", ".join(told.format(**one) for one in event["ranks"])
    return Alert("slow rank", "warning", f"slow from step {event['step']:,} on", f"{text}.")


def _outage(event: Event) -> Alert:
    text = f"{event['what']} cannot be read ({event['reason']}). The run waits for it."
    return Alert("data outage", "warning", "paused: data cannot be read", text)


def _data_back(event: Event) -> Alert:
    return Alert("data is back", "info", "data is back", "The run goes on.")


def _change_passed_over(event: Event) -> Alert:
    return Alert("data change passed over", "warning", "a change of the data was passed over", str(event["reason"]))


def _disk(event: Event) -> Alert:
    text = f"{event['free_gib']:.1f} GiB are left in {event['folder']}, where {event['needed_gib']:.1f} GiB are wanted."
    return Alert("disk nearly full", "warning", "the disk is nearly full", text)


def _checkpoint_failed(event: Event) -> Alert:
    return Alert("checkpoint failed", "failure", "a checkpoint could not be saved", str(event["reason"]))


def _damaged(event: Event) -> Alert:
    return Alert("damaged checkpoint", "warning", "a damaged checkpoint was passed over", str(event["reason"]))


def _upload(event: Event) -> Alert | None:
    """An upload that has failed, while the run goes on."""
    return _upload_failed({"reason": event["failure"]}) if event["failure"] else None


def _upload_failed(event: Event) -> Alert:
    return Alert("upload failed", "warning", "a copy of a checkpoint could not be made", str(event["reason"]))


def _export(event: Event) -> Alert | None:
    if not event["error"]:
        return None
    return Alert("export failed", "warning", f"the export of step {event['step']:,} failed", str(event["error"]))


def _tracker(event: Event) -> Alert:
    title = f"{event['tracker']} is off"
    return Alert("tracker failed", "warning", title, f"{event['reason']}. The run goes on.", event["tracker"])


def _no_heartbeat(event: Event) -> Alert:
    text = f"Nothing has been heard of {event['host']}, process {event['pid']}, for {event['silent_s']:.0f} s. It was "
    text += (
        f"in {event['activity']} of step {event['step']:,}" if event["activity"] else f"after step {event['step']:,}"
    )
    return Alert("no heartbeat", "failure", "no heartbeat", f"{text}; {event['process']}.")


def _heartbeat_back(event: Event) -> Alert:
    return Alert("heartbeat is back", "success", "heartbeat is back", f"The run is in step {event['step']:,}.")


def _finished(event: Event) -> Alert:
    return Alert("finished", "success", "finished")


def _preempted(event: Event) -> Alert:
    return Alert("preempted", "info", "preempted", str(event["reason"]))


def _stopped(event: Event) -> Alert:
    return Alert("stopped", "warning", "stopped by hand", str(event["reason"]))


def _failed(event: Event) -> Alert:
    return Alert("failed", "failure", "failed", str(event["reason"]))


_RULES: Mapping[str, Callable[[Event], Alert | None]] = {
    "started": _started,
    "resumed": _resumed,
    "phase": _phase,
    "skipped": _skipped,
    "rolled back": _rolled_back,
    "quarantined": _quarantined,
    "plateau": _plateau,
    "stalled rank": _stalled,
    "slow rank": _slow,
    "data outage": _outage,
    "data is back": _data_back,
    "data change passed over": _change_passed_over,
    "disk nearly full": _disk,
    "checkpoint failed": _checkpoint_failed,
    "damaged checkpoint": _damaged,
    "upload": _upload,
    "upload failed": _upload_failed,
    "export": _export,
    "tracker failed": _tracker,
    "no heartbeat": _no_heartbeat,
    "heartbeat is back": _heartbeat_back,
    "finished": _finished,
    "preempted": _preempted,
    "stopped": _stopped,
    "failed": _failed,
}
