from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from lorafleet_gateway import logs
from lorafleet_gateway.config import LogFormat


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_does_not_show_what_a_request_held(log_format: LogFormat) -> None:
    out = io.StringIO()
    logs.configure(log_format, stream=out)
    prompt = "my " + "secret"
    try:
        raise ValueError(f"{len(prompt)} characters")
    except ValueError:
        structlog.get_logger().exception("failed")

    assert "ValueError: 9 characters" in out.getvalue()
    assert "my secret" not in out.getvalue()


def test_a_line_for_machines_is_one_json_object() -> None:
    out = io.StringIO()
    logs.configure("json", stream=out)
    structlog.get_logger().info("request", code=200)

    assert json.loads(out.getvalue())["code"] == 200


def test_the_http_servers_own_warnings_have_the_same_shape() -> None:
    out = io.StringIO()
    logs.configure("json", stream=out)
    logging.getLogger("uvicorn.error").error("Exception in %s", "an application")
    logging.getLogger("uvicorn.error").debug("nobody needs this")

    line = json.loads(out.getvalue())
    assert (line["event"], line["level"]) == ("Exception in an application", "error")
