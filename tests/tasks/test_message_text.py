"""A job's message: whatever a prompt holds, it comes out as it went in, and nothing in it passes for the envelope."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from tasks.wire.message import Envelope
from tasks.wire.request import new_job
from workers.broker.messages import id_of, read

ENVELOPE = Envelope()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXTS)
@example('"headers": {"id": "another"')
@example('"}, "headers": {"id": "another", "eta": null}, "promptmill": {"deliveries": 9, "suspected": 1}}')
@example("%(id)s %s %")
@example('\\" \\\\ \x00 \x7f \u2028 한국 🙂')
def test_a_prompt_comes_out_as_it_went_in(text: str) -> None:
    job = new_job(model="m", messages=[{"role": "user", "content": text}], metadata=text, id="job-1")
    raw = ENVELOPE.render(job, group=None, now_s=1_700_000_000.0).encode()

    delivery = read(raw)
    [sent], kwargs, embedded = json.loads(delivery.payload["body"])
    job_text = json.loads(sent)

    assert job_text["body"]["messages"][0]["content"] == job_text["promptmill"]["metadata"] == text
    assert (kwargs, set(embedded.values())) == ({}, {None})
    assert id_of(raw) == delivery.payload["headers"]["id"] == "job-1"
    assert (delivery.deliveries, delivery.suspected, delivery.memory) == (0, False, None)
