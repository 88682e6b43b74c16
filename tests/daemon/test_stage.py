import asyncio
import json
import os
import signal

import pytest

from keepline.config import SandboxSettings
from keepline.daemon.stage import ask_faults, fault_description, serve_sandbox
from keepline.errors import ConfigError, TransientError
from keepline.sandbox.faults import KINDS
from keepline.sandbox.server import SandboxServer


async def test_the_sandbox_serves_until_a_signal() -> None:
    opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = SandboxSettings(port=0, access_lifetime=7.0, rotate=False)
    serving = asyncio.create_task(serve_sandbox(settings, opened=opened.set_result))
    url = await opened
    assert await ask_faults(url, "GET") == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert await serving == signal.SIGTERM
    with pytest.raises(TransientError):
        await ask_faults(url, "GET")


async def test_faults_are_put_in_force_shown_and_ended(sandbox: SandboxServer) -> None:
    told = await ask_faults(sandbox.url, "POST", fault_description("5xx", ["count=2"]))
    assert (told["fault"], told["count"]) == ("5xx", 2)
    assert len(await ask_faults(f"{sandbox.url}/", "GET")) == 1
    assert await ask_faults(sandbox.url, "DELETE") == {"cleared": 1}


async def test_the_command_line_can_ask_for_every_fault_with_all_it_takes(
    sandbox: SandboxServer,
) -> None:
    for name, kind in KINDS.items():
        given = {key: value for key, value in kind.parameters.items() if value is not None}
        parameters = [f"{key}={value if isinstance(value, str) else json.dumps(value)}"
                      for key, value in given.items()]  # fmt: skip
        if kind.on:
            parameters.append(f"on={','.join(kind.may)}")
        told = await ask_faults(sandbox.url, "POST", fault_description(name, parameters))
        assert {**told, **given} == told, name
        assert told["on"] == (list(kind.may) if kind.on else []), name


async def test_a_fault_that_does_not_exist_is_refused_with_words(sandbox: SandboxServer) -> None:
    with pytest.raises(ConfigError, match="earthquake"):
        await ask_faults(sandbox.url, "POST", {"fault": "earthquake"})


def test_parameters_are_json_where_they_can_be() -> None:
    described = fault_description("x", ["a=1", "b=two", 'c=["token"]', "d=1=2"])
    assert described == {"fault": "x", "a": 1, "b": "two", "c": ["token"], "d": "1=2"}
    assert fault_description("x", ["on=user_hub,streamer"])["on"] == ["user_hub", "streamer"]
    with pytest.raises(ConfigError, match="'count' is not KEY=VALUE"):
        fault_description("x", ["count"])
