"""Which number a member of a team has in its step ids, when a recorded team goes on with other members than it was recorded with.

A member keeps its number for as long as its name says who it is, since all that the log has of it lies under that number; whoever is new,
or cannot be told from others of its name, gets one that nobody had. So nobody is taken for somebody else, and what cannot be told is
performed anew. The numbers follow from the definitions in the log alone: every later life comes to the same ones.
"""

from collections import Counter, deque
from collections.abc import Sequence
from itertools import pairwise


def numbered(lives: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
    """Return the members' numbers by place, for each life of a run, given their names by place; in the first life it is the place."""
    numbers = tuple(range(len(lives[0])))
    beyond = len(numbers)
    found = [numbers]
    for before, names in pairwise(lives):
        if list(before) != list(names):
            had, has = Counter(before), Counter(names)
            kept: dict[str, deque[int]] = {}
            for name, number in zip(before, numbers, strict=True):
                kept.setdefault(name, deque()).append(number)
            fresh = iter(range(beyond, beyond + len(names)))
            numbers = tuple(kept[name].popleft() if had[name] == has[name] else next(fresh) for name in names)
            beyond = max(beyond, *(number + 1 for number in numbers)) if numbers else beyond
        found.append(numbers)
    return found
