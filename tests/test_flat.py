"""Settings by their dotted names."""

from finetune.flat import differences, flattened


def test_names_have_dots_and_lists_of_groups_numbers() -> None:
    tree = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": [{"f": 1}, {"f": 2, "g": {"h": 3}}], "i": [], "j": {}}
    flat = {"a.b": 1, "a.c.d": [1, 2], "e[0].f": 1, "e[1].f": 2, "e[1].g.h": 3, "i": []}
    assert flattened(tree) == flat


def test_differences_are_sorted_and_tell_what_is_missing() -> None:
    found = differences({"b": 1, "a": 1, "same": [1]}, {"b": 2, "c": 3, "same": [1]})
    assert list(found.items()) == [("a", (1, None)), ("b", (1, 2)), ("c", (None, 3))]
