"""Where our packages come from: whether a user's file or another installation hides one of them. Cheap, since every command asks."""

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("engine", "cluster", "serve")


def shadows() -> list[str]:
    """Return what is wrong with where our packages are found: from several places, or hidden by a user's file."""
    found: list[str] = []
    homes: dict[str, Path] = {}
    for name in PACKAGES:
        module = sys.modules.get(name)
        spec = module.__spec__ if module is not None else importlib.util.find_spec(name)
        origin = getattr(module, "__file__", None) or (spec.origin if spec is not None else None)
        if origin is None:
            found.append(
                f"package {name!r} of Gecko is missing or hidden by a folder of that name: install gecko-ray again, or rename the folder"
            )
        else:
            homes[name] = Path(origin).resolve().parent.parent
            if Path(origin).name != "__init__.py":
                found.append(f"{origin} hides Gecko's package {name!r}: rename that file")
    if not found and len(set(homes.values())) > 1:
        told = ", ".join(f"{name} from {home}" for name, home in homes.items())
        found.append(f"Gecko's packages come from different places ({told}): rename what hides one of them")
    return found


def hidden_here(folder: Path) -> list[str]:
    """Return the files and packages of a folder that would hide ours, if that folder came first on the path."""
    home = Path(__file__).resolve().parent.parent
    if folder.resolve() == home:
        return []
    candidates = [folder / form for name in PACKAGES for form in (f"{name}.py", f"{name}/__init__.py")]
    return [str(path) for path in candidates if path.exists()]
