"""`python -m finetune.launch …`: torchrun, ending with the code of the worker that failed first.

torchrun makes 1 of whatever its workers end with, so that a scheduler cannot tell a preempted run from a mistake.
"""

import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from finetune.entry import PREEMPTED

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Has workers that are started again meet in a store of their own: in the launcher's they may find the addresses of
those that have died (https://github.com/pytorch/pytorch/issues/135712)."""


def launch() -> None:
    """Run torchrun with this process's arguments, which are torchrun's own.

    A worker that a signal has ended counts as failed (1); a request to stop the launcher, as a run that has saved (75).
    """
    os.environ.setdefault(OWN_STORE, "1")
    try:
        main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        sys.exit(max(failure.exitcode, 1))
    except SignalException:
        sys.exit(PREEMPTED)


if __name__ == "__main__":
    launch()
