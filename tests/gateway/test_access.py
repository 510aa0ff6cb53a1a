from __future__ import annotations

from structlog.testing import capture_logs

from tests.gateway.gateway_kit import Kit, chat, error_of


async def test_requests_are_counted_by_what_is_known_never_by_what_is_claimed(kit: Kit) -> None:
    await kit.up()
    await kit.text_of()
    await error_of(kit, json=chat("invented-by-a-client"))
    await error_of(kit, key="wrong", json=chat())

    def count(tenant: str, model: str, code: int) -> float | None:
        labels = {"tenant": tenant, "model": model, "code": str(code)}
        value: float | None = kit.metrics.registry.get_sample_value("lorafleet_gateway_requests_total", labels)
        return value

    await kit.until(lambda: count("unknown", "unknown", 401) == 1)
    assert count("acme", "pirate", 200) == 1
    assert count("acme", "unknown", 404) == 1
    async with kit.http.get("/metrics") as response:
        text = await response.text()
    assert "invented" not in text
    assert 'lorafleet_gateway_time_to_first_byte_seconds_count{base_model="models/smol"} 1.0' in text
    assert "lorafleet_gateway_requests_in_flight 0.0" in text


async def test_a_log_line_has_neither_key_nor_prompt(kit: Kit) -> None:
    with capture_logs() as lines:
        await kit.up()
        await kit.text_of()
        await error_of(kit, key="sk-wrong", json=chat())
        await error_of(kit, data=b'{"model": "my secret prompt')
        await kit.until(lambda: len([line for line in lines if line["event"] == "request"]) == 3)

    first = next(line for line in lines if line["event"] == "request")
    assert (first["tenant"], first["model"], first["code"], first["tokens"]) == ("acme", "pirate", 200, 8)
    assert len(first["id"]) == 32
    assert "secret" not in str(lines)
    assert "sk-" not in str(lines)
