"""Rules of CONTRIBUTING that no linter knows: a task has an owner, and few places look at the environment."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("engine", "cluster", "serve", "bench")
ENVIRONMENT = {
    "cluster/connect.py", "cluster/head.py", "cluster/head_record.py", "cluster/logs.py", "cluster/remote.py",
    "cluster/remote_head.py", "serve/settings.py", "bench",
}  # fmt: skip
"""Files, and folders, that may look at the environment."""


def trees(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield path.relative_to(root).as_posix(), ast.parse(path.read_text())


def unowned(tree: ast.Module) -> list[int]:
    """The lines where a task is started that nobody keeps, or that is kept where nobody looks again; a TaskGroup keeps its own."""
    read = [n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(tree)
            if isinstance(n, (ast.Name, ast.Attribute)) and isinstance(n.ctx, ast.Load)]  # fmt: skip
    found: list[int] = []
    for statement in ast.walk(tree):
        if not isinstance(statement, ast.stmt):
            continue
        inside = [n for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt) for n in ast.walk(child)]
        starts = [n for n in inside if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "create_task"]
        for start in starts:
            if isinstance(statement, ast.Return):  # the caller's
                continue
            if isinstance(start.func, ast.Attribute) and isinstance(start.func.value, ast.Name) and start.func.value.id == "group":
                continue
            names = kept_as(statement, start)
            written_here = isinstance(statement, ast.Expr)  # `self.kept.add(...)` itself reads `kept`
            if not names or not all(read.count(name) > written_here for name in names):
                found.append(start.lineno)
    return found


def kept_as(statement: ast.stmt, start: ast.Call) -> list[str]:
    """The names under which a statement keeps the task that it starts."""
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        bare = [target.value if isinstance(target, ast.Subscript) else target for target in targets]
        return [t.id if isinstance(t, ast.Name) else t.attr for t in bare if isinstance(t, (ast.Name, ast.Attribute))]
    call = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(call, ast.Call) and start in call.args and isinstance(call.func, ast.Attribute) and call.func.attr in ("add", "append"):
        owner = call.func.value
        return [owner.attr if isinstance(owner, ast.Attribute) else owner.id] if isinstance(owner, (ast.Attribute, ast.Name)) else []
    return []


def test_a_task_outside_a_group_is_kept_where_somebody_looks_again(root: Path):
    assert {path: lines for path, tree in trees(root) if (lines := unowned(tree))} == {}


def test_a_task_that_nobody_keeps_is_found():
    source = """
async def f(self, group, loop):
    group.create_task(work())
    loop.create_task(work())
    forgotten = loop.create_task(work())
    kept = loop.create_task(work())
    self.kept_too[1] = asyncio.get_running_loop().create_task(work())
    self.some.add(loop.create_task(work()))
    self.call(loop.create_task(work()))
    self.hidden.add(loop.create_task(work()))
    await asyncio.wait({kept, *self.kept_too.values(), *self.some})
"""
    assert unowned(ast.parse(source)) == [4, 5, 9, 10]


def test_the_environment_is_looked_at_in_few_places(root: Path):
    found = set[str]()
    for path, tree in trees(root):
        named = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        if named & {"environ", "getenv", "putenv"}:
            found.add("bench" if path.startswith("bench/") else path)
    assert found <= ENVIRONMENT
    assert "serve/settings.py" in found
