"""A vote: five crude rules say what language a sentence is in. Each is right about half of the time, their majority more often.

`python examples/vote.py` asks them by a map whose body is a team, and counts; so does `gecko run examples/vote.py:flow`.
"""

import asyncio
import re
from dataclasses import dataclass

from engine import ALL, QUORUM, VOTE, Team, Workflow

TEXTS = {  # articles 1, 3, 15 and 5 of the Universal Declaration of Human Rights, as far as they are short
    "English": "All human beings are born free and equal in dignity and rights. Everyone has the right to life, liberty and security of "
    "person. Everyone has the right to a nationality. No one shall be subjected to torture",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Jeder hat das Recht auf Leben, Freiheit und Sicherheit der "
    "Person. Jeder hat das Recht auf eine Staatsangehörigkeit. Niemand darf der Folter unterworfen werden",
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Tout individu a droit à la vie, à la liberté et à "
    "la sûreté de sa personne. Tout individu a droit à une nationalité. Nul ne sera soumis à la torture",
    "Spanish": "Todos los seres humanos nacen libres e iguales en dignidad y derechos. Todo individuo tiene derecho a la vida, a la "
    "libertad y a la seguridad de su persona. Toda persona tiene derecho a una nacionalidad. Nadie será sometido a torturas",
}
SENTENCES = {sentence: language for language, text in TEXTS.items() for sentence in text.split(". ")}


@dataclass(frozen=True)
class Rule:  # an object with `run` is a body
    name: str
    marks: tuple[str, ...]  # what is frequent in each language; `_` is where a word begins or ends

    async def run(self, sentence: str) -> str:  # async: on Ray such members share a process, and others get one each
        text = re.sub(r"\W+", "_", f" {sentence.lower()} ")
        counts = sorted((sum(map(text.count, marks.split())), language) for language, marks in zip(TEXTS, self.marks, strict=True))
        if counts[-1][0] == counts[-2][0]:
            raise LookupError("undecided")  # who fails has no vote
        return counts[-1][1]


RULES = [
    Rule("words", ("_the_ _of_ _and_ _to_ _in_", "_der_ _die_ _und_ _in_ _den_", "_de_ _la_ _le_ _et_ _les_", "_de_ _la_ _que_ _el_ _y_")),
    Rule("letters", ("w y h", "ä ö ü ß z", "é è ê à ç", "á í ó ú ñ")),
    Rule("endings", ("e_ d_ s_", "n_ r_ t_", "e_ s_ t_", "a_ o_ s_")),
    Rule("pairs", ("th he in er an", "er en ch de ei", "es en le de on", "de es en el la")),
    Rule("beginnings", ("_t _a _o", "_d _s _e", "_d _l _p", "_d _e _l")),
]


def count(answers: dict[str, list[list[dict]]]) -> dict[str, int]:
    said = {rule.name: [each[index]["result"] for each in answers["each"]] for index, rule in enumerate(RULES)}
    said["the vote"] = [winner["result"] for winner, *_ in answers["vote"]]
    return {name: sum(a == b for a, b in zip(results, SENTENCES.values(), strict=True)) for name, results in said.items()}


flow = Workflow("vote").add_node("sentences", lambda: list(SENTENCES)).set_entry_point("sentences")
flow.add_map("vote", Team(RULES, "vote", strategy=VOTE)).add_edge("sentences", "vote")
flow.add_map("each", Team(RULES, "each", strategy=ALL)).add_edge("sentences", "each")
flow.add_node("count", count).add_edge("vote", "count").add_edge("each", "count")

if __name__ == "__main__":
    print(*(f"{name:>10}: {right:2} of {len(SENTENCES)} {'#' * right}" for name, right in asyncio.run(flow.execute()).items()), sep="\n")
    print("QUORUM(2):", *(each.result for each in asyncio.run(Team(RULES, strategy=QUORUM(2)).run("Der Wind und die Sonne stritten sich"))))
