"""What is asked of a run while it goes on: taken between two steps, by all ranks alike."""

from typing import NamedTuple

from finetune.control.requests import Answer, Inbox, Request, keep_setting
from finetune.data.journal import Setting
from finetune.errors import UserError
from finetune.live import parsed
from finetune.opening import Opening
from finetune.ranks import on_main


class Orders(NamedTuple):
    """What is to be done after a step beside what is due."""

    save: bool = False
    sample: bool = False
    stop: str = ""
    """By whom the run was asked to stop; empty if it was not."""


class Steering:
    """The requests to a run, as one rank sees them."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._parts = opening.parts
        self._inbox = Inbox(self._parts.config.run_folder) if opening.watch else None

    @property
    def asked(self) -> bool:
        """Whether this rank has found requests."""
        return self._inbox is not None and self._inbox.waiting()

    def take(self, done: int) -> Orders:
        """See to all requests after `done` steps; what they order. All ranks call this."""
        inbox, orders = self._inbox, Orders()
        for request in on_main(self._parts.distributed, lambda: inbox.read() if inbox else []):
            refused = None
            try:
                orders = self._carried_out(request, done, orders)
            except (UserError, OSError) as error:  # on all ranks alike
                refused = str(error)
            if inbox:
                self._tell(inbox, request, Answer(done, refused))
        return orders

    def _carried_out(self, request: Request, done: int, orders: Orders) -> Orders:
        match request.action:
            case "save":
                return orders._replace(save=True)
            case "sample":
                if not self._parts.live(done).monitor.samples.has_prompts:
                    raise UserError("there are no prompts to draw: set monitor.samples.prompts first")
                return orders._replace(sample=True)
            case "stop":
                return orders._replace(stop=request.asked_by)
            case "set":
                self._set(request.assignment, done)
                return orders

    def _set(self, assignment: str, done: int) -> None:
        """Let a setting hold from now on. Raises UserError where it may not."""
        parts = self._parts
        key, value = parsed(parts.live(done), assignment, parts.distributed.world)
        journal = parts.feed.journal.with_setting(Setting(done, key, value))
        phases = parts.steered(journal)
        on_main(parts.distributed, lambda: keep_setting(parts.config.run_folder, done, key, value))
        parts.steer(journal, phases)
        if watch := self._opening.watch:
            watch.keep_journal(journal)

    def _tell(self, inbox: Inbox, request: Request, answer: Answer) -> None:
        inbox.answer(request, answer)
        watch = self._opening.watch
        assert watch is not None
        what = f"{request.action} {request.assignment}".strip()
        outcome = f"refused: {answer.refused}" if answer.refused else "taken"
        watch.event("asked", step=answer.step, what=what, by=request.asked_by, outcome=outcome)
        watch.say(f"{request.asked_by} asks after step {answer.step:,}: {what} ({outcome})")
