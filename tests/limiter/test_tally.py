"""What a process owes the schedule: each correction once, and in the bin of its slot."""

from __future__ import annotations

import asyncio

from tasks.results import Usage
from workers.limiter.cost import Cost
from workers.limiter.rate import BIN_S
from workers.limiter.slots import Slot, Slots
from workers.limiter.tally import Refund, Tally

RESERVED = Cost(100, 400)
AT_10 = int(10.0 / BIN_S)
AT_12 = int(12.0 / BIN_S)


def spelt(tally: Tally) -> list[str]:
    return [f"{each.bin}:{each.input_tokens}:{each.output_tokens}" for each in tally.say().refunds.values()]


def test_what_was_not_taken_goes_back_to_the_bin_of_its_slot() -> None:
    tally = Tally()
    for instant in (10.0, 10.0 + BIN_S / 2, 10.0 + BIN_S):
        tally.settle(RESERVED, Usage(90, 150), instant)
    assert spelt(tally) == [f"{AT_10}:20:500", f"{AT_10 + 1}:10:250"]
    assert spelt(tally) == [], "it was said twice"


def test_more_than_was_reserved_is_owed() -> None:
    tally = Tally()
    tally.settle(RESERVED, Usage(100, 1_400), 10.0)
    assert (tally.reserved_tokens, tally.used_tokens) == (500, 1_500)
    assert spelt(tally) == [f"{AT_10}:0:-1000"]


def test_a_reservation_stands_where_nobody_counted() -> None:
    tally = Tally()
    tally.settle(RESERVED, None, 10.0)
    assert (tally.settled, tally.used_tokens) == (1, 500)
    assert spelt(tally) == []


def test_a_request_that_went_without_a_slot_is_charged_and_then_settled() -> None:
    tally = Tally()
    tally.charge(RESERVED, 10.0)
    assert tally.went_free == 1
    assert spelt(tally) == [f"{AT_10}:-100:-400"]
    tally.settle(RESERVED, Usage(100, 150), 10.0)
    assert spelt(tally) == [f"{AT_10}:0:250"]


def test_before_the_schedule_s_time_is_known_it_is_charged_to_now() -> None:
    tally = Tally()
    tally.charge(RESERVED, None)
    assert tally.say().refunds == {0: Refund(0, -100, -400)}


def test_a_slot_for_one_that_another_took_is_charged_with_that_one_s_cost() -> None:
    tally = Tally()
    tally.adjust(RESERVED, Cost(60, 300), 10.0)
    tally.refund(Cost(1, 2), 12.0)
    assert spelt(tally) == [f"{AT_10}:40:100", f"{AT_12}:1:2"]


async def test_a_slot_that_is_earlier_than_those_leased_before_goes_first() -> None:
    slots = Slots(asyncio.get_running_loop(), lambda: None)
    for due in (2.0, 3.0, 1.0, 2.5):
        slots.add(Slot(due, due, Cost(), is_local=due > 2.0))
    assert slots.last_due == 3.0
    assert [slot.due for slot in slots.due(2.0)] == [1.0, 2.0]
    slots.drop_local()
    assert not slots
