"""The two ways in which a run is told to stop: a user's mistake, and data that cannot be trusted."""


class UserError(Exception):
    """A mistake that the user can mend; the message is one sentence that says what, where and what to do.

    The entry points print it without a traceback and exit with code 2.
    """


class RankError(UserError):
    """A mistake that only one rank meets, which is why that rank has to say it."""


class DataFault(Exception):
    """One sample that can never be used (broken, refused, empty); the message is the short reason that is logged.

    Faults of I/O (a missing disk, a short read) are `OSError` and never become a `DataFault`: they may pass.
    """
