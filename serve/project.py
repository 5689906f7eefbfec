"""The small project that `gecko init` writes: a workflow that runs as it is, and its test. It writes new files only."""

from pathlib import Path

from engine.errors import ConfigurationError

FLOW = '''"""Counts the words of some texts, each as a step of its own, and says which come most often."""

from collections import Counter

from engine import Context, Workflow


def split(text: str) -> list[str]:
    """Cut the text into sentences; each becomes a step of `count`."""
    return [part.strip() for part in text.replace("!", ".").replace("?", ".").split(".") if part.strip()]


def count(sentence: str, ctx: Context) -> int:
    """Count the words of one sentence. Many run at once, each with a state of its own; the reducer below combines them."""
    words = sentence.lower().split()
    ctx.state["words"] = ctx.state.get("words", {}) | {f"{ctx.step_id}": words}
    return len(words)


def summarize(counts: list[int], ctx: Context) -> dict:
    """Say what was found."""
    words = Counter(word for found in ctx.state.get("words", {}).values() for word in found)
    return {"sentences": len(counts), "words": sum(counts), "most common": [word for word, _ in words.most_common(3)]}


flow = (
    Workflow("words", reducers={"words": "merge"})
    .add_node("split", split)
    .add_map("count", count)
    .add_node("summarize", summarize)
    .add_edge("split", "count")
    .add_edge("count", "summarize")
    .set_entry_point("split")
)
'''

TEST = '''"""The workflow gives the right answer, and goes on where it stopped."""

from flow import flow


def test_it_counts_words():
    assert flow.run_sync("One fish. Two fish. Red fish!") == {"sentences": 3, "words": 6, "most common": ["fish", "one", "two"]}


def test_a_finished_session_gives_its_result_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = flow.run_sync("One fish.", session_id="demo")
    assert flow.run_sync("One fish.", session_id="demo") == first
'''

IGNORE = ".gecko/\n__pycache__/\n"

FILES = {"flow.py": FLOW, "test_flow.py": TEST, ".gitignore": IGNORE}


def make_project(folder: Path) -> list[Path]:
    """Write the project's files; returns them.

    Raises: ConfigurationError where one of them is there already, or cannot be written; then nothing is written.
    """
    files = {folder / name: text for name, text in FILES.items() if name != ".gitignore" or not (folder / name).exists()}
    there = [path for path in files if path.exists()]
    if there:
        raise ConfigurationError(f"{str(there[0])!r} is there already: name another folder, gecko init DIR", where=str(there[0]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{str(folder)!r} cannot be written: {error.strerror}", where=str(folder)) from error
    return list(files)
