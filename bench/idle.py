"""`idle`: what a worker costs while there is nothing to do."""

from __future__ import annotations

from rich.table import Table

from tasks import PromptQueue

from .contestants import WARM_UP_FIRST, finish, scratch
from .fleet import Shape, our_workers
from .provider import running_provider
from .redis_server import running_redis
from .report import Report, Verdict
from .workload import bodies

__all__ = ["run"]

SHAPE = Shape(1, 500)


async def run(report: Report) -> None:
    """Give a worker something to do, then watch it wait."""
    time_s = report.plan.idle_s
    report.say(f"idle: {time_s:g} s")
    async with (
        scratch() as directory,
        running_provider(directory, latency_ms=5) as provider,
        running_redis(directory) as redis,
        our_workers(SHAPE, redis=redis, provider=provider, directory=directory) as fleet,
    ):
        async with PromptQueue(redis.url) as queue:
            await finish(await queue.submit_many(bodies(SHAPE.places, first=WARM_UP_FIRST)))
        await redis.watch_commands(1.0)  # until the last acknowledgements are through
        cpu_s = fleet.cpu_s()
        commands = await redis.watch_commands(time_s)
        share = (fleet.cpu_s() - cpu_s) / time_s
    commands.pop("MONITOR", None)
    per_s = {name: count / time_s for name, count in commands.most_common()}
    table = Table(title="An idle worker", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("CPU", f"{share:.2%}")
    table.add_row("Redis commands a second", f"{sum(per_s.values()):.1f}")
    for name, rate in per_s.items():
        table.add_row(f"  {name}", f"{rate:.1f}")
    report.show(table)
    report.verdicts.append(Verdict("idle worker's CPU, %", share * 100, at_most=1))
    report.verdicts.append(Verdict("idle worker's Redis commands a second", sum(per_s.values()), at_most=5))
    report.figures["idle"] = {"cpu_share": share, "commands_per_s": per_s}
