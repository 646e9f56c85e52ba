"""What a process owes the schedule: each correction once, and in the bin of its slot."""

from __future__ import annotations

import asyncio

from tasks.results import Usage
from workers.limiter.cost import Cost
from workers.limiter.leasing.settlements import Refund, Settlements
from workers.limiter.leasing.slots import Slot, Slots
from workers.limiter.rate import BIN_S

RESERVED = Cost(100, 400)
AT_10 = int(10.0 / BIN_S)
AT_12 = int(12.0 / BIN_S)


def spelt(settlements: Settlements) -> list[str]:
    return [f"{each.bin}:{each.input_tokens}:{each.output_tokens}" for each in settlements.say().refunds.values()]


def test_what_was_not_taken_goes_back_to_the_bin_of_its_slot() -> None:
    settlements = Settlements()
    for instant in (10.0, 10.0 + BIN_S / 2, 10.0 + BIN_S):
        settlements.settle(RESERVED, Usage(90, 150), instant)
    assert spelt(settlements) == [f"{AT_10}:20:500", f"{AT_10 + 1}:10:250"]
    assert spelt(settlements) == [], "it was said twice"


def test_more_than_was_reserved_is_owed() -> None:
    settlements = Settlements()
    settlements.settle(RESERVED, Usage(100, 1_400), 10.0)
    assert (settlements.reserved_tokens, settlements.used_tokens) == (500, 1_500)
    assert spelt(settlements) == [f"{AT_10}:0:-1000"]


def test_a_reservation_stands_where_nobody_counted() -> None:
    settlements = Settlements()
    settlements.settle(RESERVED, None, 10.0)
    assert (settlements.settled, settlements.used_tokens) == (1, 500)
    assert spelt(settlements) == []


def test_a_request_without_a_slot_is_charged_and_then_settled() -> None:
    settlements = Settlements()
    settlements.charge(RESERVED, 10.0)
    assert settlements.went_free == 1
    assert spelt(settlements) == [f"{AT_10}:-100:-400"]
    settlements.settle(RESERVED, Usage(100, 150), 10.0)
    assert spelt(settlements) == [f"{AT_10}:0:250"]


def test_before_the_schedule_s_time_is_known_now_is_charged() -> None:
    settlements = Settlements()
    settlements.charge(RESERVED, None)
    assert settlements.say().refunds == {0: Refund(0, -100, -400)}


def test_a_slot_that_another_took_is_charged_with_its_cost() -> None:
    settlements = Settlements()
    settlements.adjust(RESERVED, Cost(60, 300), 10.0)
    settlements.refund(Cost(1, 2), 12.0)
    assert spelt(settlements) == [f"{AT_10}:40:100", f"{AT_12}:1:2"]


async def test_a_slot_earlier_than_those_leased_before_goes_first() -> None:
    slots = Slots(asyncio.get_running_loop(), lambda: None)
    for due in (2.0, 3.0, 1.0, 2.5):
        slots.add(Slot(due, due, Cost(), is_local=due > 2.0))
    assert slots.last_due == 3.0
    assert [slot.due for slot in slots.due(2.0)] == [1.0, 2.0]
    slots.drop_local()
    assert not slots
