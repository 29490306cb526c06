"""The choices of a draw."""

from enum import IntEnum


class Choice(IntEnum):
    """What is chosen, which says where in the draw's random stream: no choice depends on whether another is made. The
    order is part of what makes a run repeatable; new ones go to the end."""

    EMPTY = 0
    FORM = 1
    TEMPLATE = 2
    TEMPLATE_WILDCARDS = 3
    SPARSE = 4
    TAGS = 5
    TAG_WILDCARDS = 6
    CAPTION = 7
    LINE = 8
    CAPTION_WILDCARDS = 9
    SENTENCES = 10
