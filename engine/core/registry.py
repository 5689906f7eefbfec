"""Names and what is near them, so that every unknown name is answered with "did you mean"."""

from collections.abc import Iterable
from difflib import get_close_matches


def near(name: str, names: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return the existing names that come nearest to an unknown one, best first."""
    known = list(dict.fromkeys(names))
    folded = {k.casefold(): k for k in known}
    found = [folded[name.casefold()]] if name.casefold() in folded else []
    # difflib is quadratic: past a few thousand names only those that share the first letter are compared
    pool = known if len(known) <= 2000 else [k for k in known if k[:1] == name[:1]][:2000]
    return list(dict.fromkeys(found + get_close_matches(name, pool, n=limit, cutoff=0.5)))[:limit]


def unknown(what: str, name: object, names: Iterable[str]) -> str:
    """Return the message for an unknown name: what it is, and the nearest existing ones."""
    known = list(names)
    close = near(str(name), known)
    if close:
        return f"{what} {name!r} not found; did you mean {' or '.join(map(repr, close))}?"
    if not known:
        return f"{what} {name!r} not found; there are none"
    shown = ", ".join(map(repr, known[:8])) + (", ..." if len(known) > 8 else "")
    return f"{what} {name!r} not found; there are {shown}"
