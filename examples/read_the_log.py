"""What runs did, asked in SQL: a log becomes an Arrow table, which DuckDB, Polars and pandas read as it is.

Thirty parcels are sent by a carrier that fails now and then; two queries say what that took. (pip install duckdb polars)
"""

import asyncio
import tempfile

import duckdb
import polars

from engine import Context, Engine, Retry, Workflow, step


@step
def weigh(parcel: int) -> int:
    return parcel * 7 % 31


@step
async def send(grams: int, ctx: Context) -> str:
    await asyncio.sleep(grams / 1000)
    if grams % 4 > ctx.attempt:
        raise ConnectionError("no answer")
    return f"sent {grams} g"


flow = (
    Workflow("parcels")
    .add_node("weigh", weigh)
    .add_node("send", send, retry=Retry(attempts=3, delay=0.01))
    .add_edge("weigh", "send")
    .set_entry_point("weigh")
)

COST = """
    select node, count(*) as steps, max(attempt) as attempts, round(1000 * avg(duration)) as mean_ms, round(1000 * max(duration)) as max_ms
    from events where kind = 'step_succeeded' group by node order by mean_ms desc
"""


async def send_all(engine: Engine) -> None:
    runs = [await engine.start(flow, parcel, session_id=f"parcel-{parcel}") for parcel in range(30)]
    await asyncio.gather(*(run.wait() for run in runs))


if __name__ == "__main__":
    engine = Engine(tempfile.mkdtemp(prefix="parcels-"))
    asyncio.run(send_all(engine))
    events = engine.table()  # a pyarrow.Table: a row for each committed event of each run
    print(f"{events.num_rows} events. What the steps took, by DuckDB:")
    print(duckdb.sql(COST))
    print("Why some were tried again, by Polars:")
    print(polars.DataFrame(events).filter(polars.col("kind") == "step_retrying").group_by("node", "error").len())
