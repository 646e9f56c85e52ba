"""Equal prompts with a JSON Schema: only an answer that fits is kept, repaired as it is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.scripted import Answer, Asked, ScriptedProvider, completion

from .fleet import fleet_of

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
BODY = {"model": "m", "messages": [{"role": "user", "content": "How many?" * 30}]}


@pytest.mark.parametrize(("good", "text"), [('{"n": 7}', '{"n": 7}'), ("```json\n{'n': 7}\n```", '{"n":7}')])
async def test_what_does_not_fit_is_not_kept(
    server: Any, client: Any, pipeline_to: Any, wait_until: Any, good: str, text: str
) -> None:
    def script(asked: Asked) -> Answer:
        return Answer(body=completion('{"n": "seven"}' if asked.number < 2 else good))

    provider = ScriptedProvider(script)
    try:
        async with fleet_of(client, server.url, pipeline_to, provider.base_url, size=2) as fleet:
            fleet.submit("none", BODY, schema=SCHEMA)
            await wait_until(lambda: "none" in fleet.results, "it has failed")
            assert (error := fleet.results["none"].error) is not None and error.code == "bad_response"
            for number in range(10):
                fleet.submit(f"job-{number}", BODY, schema=SCHEMA, repair=1)
            await wait_until(lambda: len(fleet.results) == 11, "all are answered")
            results = [each for job_id, each in fleet.results.items() if job_id != "none"]
            assert {(each.text, each.ok) for each in results} == {(text, True)}
            [paid] = [each for each in results if not each.cached]
            assert (paid.repaired, paid.attempts, len(provider.asked)) == ("asked_again", 2, 3)
            fleet.submit("later", BODY, schema={"required": ["n"]})
            await wait_until(lambda: "later" in fleet.results, "it is answered")
            assert not fleet.results["later"].cached, "another schema is another question"
    finally:
        provider.close()
