"""Hedged calls: who has waited long enough for an answer asks once more, and takes the first answer that comes.

`python examples/hedged.py`, or `gecko run examples/hedged.py:flow`, calls an HTTP service that is slow once in 20 requests, 400 times
plainly and 400 times hedged, and draws `report/hedged.svg`. All of it shares one process: on a busy machine the picture may turn.
"""

import asyncio
import random
import time
from pathlib import Path
from statistics import quantiles

from aiohttp import request, test_utils, web  # installed with Ray

from engine import HEDGE, Team, Workflow

CALLS, AT_ONCE, DELAY = 400, 8, 0.05  # only a call that takes longer than the delay costs a second request


async def serve(asked: web.BaseRequest) -> web.Response:
    luck = random.Random(asked.path)  # the same whenever a path is asked for, so both ways of calling have the same luck
    await asyncio.sleep(luck.uniform(0.3, 0.5) if luck.random() < 0.05 else luck.uniform(0.015, 0.025))
    return web.Response(text="42")


async def call(url: str) -> str:
    async with request("GET", url) as response:  # a call that has lost is stopped here, and hangs up
        return await response.text()


async def measure() -> dict[str, list[float]]:
    async def timed(team: Team, url: str) -> float:
        async with slots:
            begun = time.perf_counter()
            await team.run(url)
            return 1000 * (time.perf_counter() - begun)

    slots, own = asyncio.Semaphore(AT_ONCE), "{}/{}".format  # makes a member's input of the team's and the member's index
    ways = {"plain": Team([call], input_mapper=own), "hedged": Team([call, call], input_mapper=own, strategy=HEDGE(DELAY))}
    async with test_utils.RawTestServer(serve) as server:
        urls = [str(server.make_url(f"/{number}")) for number in range(CALLS)]
        return {way: await asyncio.gather(*(timed(team, url) for url in urls)) for way, team in ways.items()}


def draw(taken: dict[str, list[float]]) -> list[str]:
    said, shapes = [], ["<style>text{font:12px system-ui,sans-serif;fill:#7f8a97}path{stroke:#7f8a97;stroke-opacity:.4}</style>"]
    shapes += [f'<path d="M50 {350 - ms / 2}h410"/><text y="{354 - ms / 2}">{ms} ms</text>' for ms in range(0, 501, 100)]
    for (way, times), colour in zip(taken.items(), ("#d1495b", "#3a7ca5"), strict=True):
        percent, late = quantiles(times, n=100), sum(ms > 1000 * DELAY for ms in times)
        said.append(f"{way}: p50 {percent[49]:.0f} ms, p99 {percent[98]:.0f} ms, {late} of {len(times)} calls over {1000 * DELAY:g} ms")
        shapes.append(f'<text x="50" y="{20 * len(said)}" style="fill:{colour}">{said[-1]}</text>')
        shapes += [f'<circle cx="{55 + x}" cy="{350 - ms / 2:.1f}" r="2" fill="{colour}"/>' for x, ms in enumerate(times)]
    (picture := Path("report/hedged.svg").absolute()).parent.mkdir(exist_ok=True)
    picture.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 470 360">{"".join(shapes)}</svg>')
    return [*said, f"drawn into {picture}"]


flow = Workflow("hedged").add_node("measure", measure).add_node("draw", draw).add_edge("measure", "draw").set_entry_point("measure")
if __name__ == "__main__":
    print(*asyncio.run(flow.execute()), sep="\n")
