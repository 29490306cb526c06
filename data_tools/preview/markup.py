"""HTML that nothing shown in it can break: all text is escaped, and every element is closed."""

import html
from collections.abc import Iterable

VOID = frozenset({"img", "meta"})
"""Elements without an end."""


class Html(str):
    """Markup, which stays as it is."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str) -> Html:
    """An element.

    Args:
        children: what it holds in this order; text is escaped.
        attributes: their values are escaped. An underscore at a name's end is left out (class_), others are hyphens;
            attributes that are empty are left out, but for alt.
    """
    given = (
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for name, value in attributes.items()
        if value or name == "alt"
    )
    opened = f"<{name}{''.join(given)}>"
    return Html(opened if name in VOID else f"{opened}{together(children)}</{name}>")


def together(children: Iterable[str]) -> Html:
    """What stands one after the other."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))
