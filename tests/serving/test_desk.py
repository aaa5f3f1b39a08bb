"""The one process that remembers: what it is told goes into the audit first, and then it counts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from medray.config import ConfigError
from medray.sections.service import ServeSection
from medray.serving.audit import AuditLog, default_folder, verify
from medray.serving.desk import Desk
from medray.serving.kept import Kept
from medray.serving.problems import Refused
from medray.serving.respond import SHADOW, event


class Cards:
    """Models that have cards, or have none yet."""

    def __init__(self, broken: Exception | None = None, wait: asyncio.Event | None = None) -> None:
        self.asked: list[str] = []
        self.broken, self.wait = broken, wait

    async def card(self, model: str) -> dict[str, Any]:
        self.asked.append(model)
        if self.wait is not None:
            await self.wait.wait()
        if self.broken is not None:
            raise self.broken
        return {"card": {}}


def desk(models: Any = None, **changes: Any) -> Desk:
    return Desk(ServeSection.model_validate(changes), Cards() if models is None else models)


def told(number: int = 0, **changes: Any) -> dict[str, Any]:
    answered = {"model": "plain/1", "digest": "ab", "signals": {"scores": {"a": 0.5}, "labels": ["a"], "warnings": []}}
    return {**event(f"{number:032x}", "ann", "/v1/predict"), **answered, **changes}


def test_an_event_is_in_the_audit_without_what_the_model_said() -> None:
    async def go() -> None:
        counting = desk()
        await counting.record([told(number) for number in range(5)])
        counting.close()

    asyncio.run(go())
    text = "".join(file.read_text() for file in default_folder().glob("*.jsonl"))
    assert text.count('"request"') == 5
    assert "scores" not in text
    assert "signals" not in text
    assert verify(default_folder()).faults == ()


def test_what_the_audit_does_not_take_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("full")

    async def go() -> None:
        counting = desk()
        await counting.record([told()])
        await asyncio.sleep(0.01)
        before = await counting.metrics()
        with monkeypatch.context() as disk:
            disk.setattr(AuditLog, "append", full)
            with pytest.raises(OSError, match="full"):
                await counting.record([told(1)])
        assert await counting.metrics() == before
        counting.close()

    asyncio.run(go())


def test_events_of_many_at_once_keep_the_chain_whole() -> None:
    async def go() -> None:
        counting = desk()
        await asyncio.gather(*[counting.record([told(number)]) for number in range(60)])
        counting.close()

    asyncio.run(go())
    verdict = verify(default_folder())
    assert (verdict.lines >= 60, verdict.faults) == (True, ())


def test_a_second_service_does_not_write_the_same_audit() -> None:
    first = desk()
    with pytest.raises(ConfigError, match="another service writes"):
        desk()
    first.close()
    desk().close()


def test_without_an_audit_nothing_is_written_and_all_the_rest_works(home: Path) -> None:
    async def go() -> None:
        counting = desk(audit={"on": False})
        await counting.record([told()])
        assert "medray_requests_total" in await counting.metrics()
        counting.close()

    asyncio.run(go())
    assert not (home / "audit").exists()


def test_a_shadow_is_compared_and_neither_audited_nor_counted_as_a_request() -> None:
    compared = {"route": SHADOW, "model": "plain/1", "shadow": "plain/2", "agreement": {"same": True, "gap": 0.25}}

    async def go() -> None:
        counting = desk()
        before = await counting.metrics()
        await counting.record([compared, compared])
        assert await counting.metrics() == before
        (found,) = await counting.agreement()
        assert {"plain/1", "plain/2"} <= {value for value in found.values() if isinstance(value, str)}
        counting.close()

    asyncio.run(go())
    assert '"request"' not in "".join(file.read_text() for file in default_folder().glob("*.jsonl"))


def test_a_model_s_card_is_asked_for_once() -> None:
    async def go() -> None:
        models = Cards()
        counting = desk(models)
        await asyncio.gather(*[counting.record([told(number)]) for number in range(9)])
        await asyncio.sleep(0.01)
        assert models.asked == ["plain@1"]
        counting.close()

    asyncio.run(go())


def test_the_first_answer_of_a_model_counts_as_its_own() -> None:
    async def go() -> None:
        counting = desk()
        await counting.record([told()])
        text = await counting.metrics()
        assert 'model="plain/1"' in text
        assert 'model="other"' not in text
        assert sum(one["answers"] for one in await counting.drift()) == 1
        counting.close()

    asyncio.run(go())


def test_the_first_answers_of_a_model_count_as_its_own_when_they_come_together() -> None:
    async def go() -> None:
        there = asyncio.Event()
        counting = desk(Cards(wait=there))
        together = asyncio.gather(*[counting.record([told(number)]) for number in range(5)])
        await asyncio.sleep(0.2)
        there.set()
        await together
        assert sum(one["answers"] for one in await counting.drift()) == 5
        counting.close()

    asyncio.run(go())


def test_a_card_that_could_not_be_had_is_asked_for_again() -> None:
    """Else a model whose replica died at the wrong moment is never watched for drift."""

    async def go() -> None:
        models = Cards(Refused(503, "unavailable", "gone"))
        counting = desk(models)
        await counting.record([told()])
        models.broken = None
        await counting.record([told(1)])
        await asyncio.sleep(0.05)  # nobody waits for the second time
        counting.close()
        assert models.asked == ["plain@1", "plain@1"]

    asyncio.run(go())


def test_no_error_over_a_card_costs_an_answer() -> None:
    async def go() -> None:
        counting = desk(Cards(RuntimeError("broken")))
        try:
            await counting.record([told()])
        finally:
            counting.close()

    asyncio.run(go())


def test_an_answer_does_not_wait_long_for_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medray.serving.desk.LEARN_S", 0.05)

    async def go() -> None:
        counting = desk(Cards(wait=asyncio.Event()))
        await asyncio.wait_for(counting.record([told()]), 2)
        await asyncio.wait_for(counting.record([told(1)]), 0.5)
        counting.close()

    asyncio.run(go())


def test_rates_are_counted_only_where_there_is_one() -> None:
    async def go() -> None:
        free = desk(audit={"on": False})
        assert {await free.take("ann") for _ in range(1000)} == {0.0}
        bound = desk(audit={"on": False}, access={"per_minute": 60, "burst": 3})
        assert [await bound.take("ann") for _ in range(3)] == [0.0] * 3
        assert 0 < await bound.take("ann") <= 1
        assert await bound.take("bob") == 0

    asyncio.run(go())


def test_what_is_kept_is_boxed_once_and_given_as_it_was_boxed() -> None:
    class Small:
        request_id, nbytes = "a" * 32, 10

    async def go() -> None:
        boxed: list[Any] = []

        def box(kept: Kept) -> list[Any]:
            boxed.append(kept)
            return [kept]

        counting = Desk(ServeSection(audit={"on": False}), Cards(), box)  # type: ignore[arg-type]
        small: Any = Small()
        await counting.keep("ann", small)
        assert await counting.kept("a" * 32, "ann") == [small]
        assert await counting.kept("a" * 32, "") == [small]
        assert boxed == [small]
        with pytest.raises(Refused):
            await counting.kept("a" * 32, "bob")

    asyncio.run(go())


@pytest.mark.parametrize("outcome", ["answered", "refused", "failed", "cancelled", "accepted"])
def test_every_outcome_is_a_word_that_the_audit_knows(outcome: str) -> None:
    async def go() -> None:
        counting = desk()
        await counting.record([told(outcome=outcome, status=499)])
        counting.close()

    asyncio.run(go())
    text = "".join(file.read_text() for file in default_folder().glob("*.jsonl"))
    assert f'"outcome":"{outcome}"' in text.replace(" ", "")
    assert "left_out" not in text
