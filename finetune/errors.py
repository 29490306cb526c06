"""What ends a run on purpose, a mistake of the user's or a request to stop, and what ends the use of a sample."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake that the user can mend; the message is one sentence that says what, where and what to do.

    The entry points print it without a traceback and exit with code 2.
    """

    def __init__(self, message: str, *, details: Sequence[str] = ()) -> None:
        """A mistake.

        Args:
            details: lines to be printed below the sentence.
        """
        super().__init__(message)
        self.details = details


class RankError(UserError):
    """A mistake that only one rank meets, which is why that rank has to say it."""


class Preempted(Exception):
    """The run was asked to stop and has saved its state; the message is one sentence.

    The entry points print it without a traceback and exit with code 75 (EX_TEMPFAIL): start the same command again.
    """


class Stopped(Exception):
    """Somebody has asked the run to stop for now, and it has saved its state; the message is one sentence.

    The entry points print it without a traceback and exit with code 0, so that no launcher starts the run again.
    """


class DataFault(Exception):
    """One sample that can never be used (broken, refused, empty); the message is the short reason that is logged.

    Faults of I/O (a missing disk, a short read) are `OSError` and never become a `DataFault`: they may pass.
    """
