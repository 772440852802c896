"""The commands of the gateway that connections may run, such as ``ssh join@gateway enrol NAME``.

Needs the extra ``inward`` (asyncssh). Plain OpenSSH can run all of them. What a command needs, it reads from
its standard input; what it gives, it writes to its standard output, and a reason to standard error. A
certificate is a line. Exit codes are those of sysexits(3): 64 for a wrong command, 75 for a node that has to
wait, 77 for a refusal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from typing import Any

from tproxy.errors import TproxyError
from tproxy.inward.tunnel.authority import NODE, OPERATOR
from tproxy.inward.tunnel.enrolment import Enrolment, Refused, Waiting
from tproxy.inward.tunnel.hub import Hub
from tproxy.inward.tunnel.listing import visible
from tproxy.inward.tunnel.records import Operator
from tproxy.inward.tunnel.server import Front

USAGE, TEMPORARY, NO_PERMISSION, INTERNAL = 64, 75, 77, 70

MOST_INPUT = 64 * 1024
_PATIENCE = 20.0  # seconds for the input

_log = logging.getLogger("tproxy.tunnel")


class GatewayCommands:
    """Runs the commands."""

    def __init__(self, hub: Hub, enrolment: Enrolment) -> None:
        self._hub, self._enrolment = hub, enrolment

    async def run(self, front: Front, stdin: Any, stdout: Any, stderr: Any) -> None:
        """Run the command of a channel, and end the channel with an exit code."""
        try:
            text = await self._answer(front, stdin, stdin.channel.get_command() or "")
            code = 0
        except Waiting as reason:
            text, code = str(reason), TEMPORARY
        except Refused as reason:
            text, code = str(reason), NO_PERMISSION
            self._hub.audit.write("refused", who=front.user, address=front.address, reason=text)
        except TproxyError as reason:
            text, code = str(reason), USAGE
        except Exception:
            _log.exception("a command of %s", front.address)
            text, code = "internal error", INTERNAL
        (stderr if code else stdout).write(f"{text}\n".encode())
        stdout.channel.exit(code)

    async def _answer(self, front: Front, stdin: Any, command: str) -> str:
        """Return what a command gives. Raises TproxyError."""
        try:
            name, *words = shlex.split(command)
        except ValueError:
            name, words = "", []
        if name == "operators-ca":
            return self._enrolment.authority.operators_key
        if name == "certificate" and len(words) == 1 and not front.user.startswith(OPERATOR):
            return self._enrolment.for_node(words[0], front.key).text
        if name == "enrol" and len(words) == 1 and front.caller is None:
            token, *host_keys = await _lines(stdin)
            self._enrolment.enrol(words[0], front.key, token, host_keys)
            self._hub.audit.write("enrolled", who=f"node:{words[0]}", address=front.address, key=front.key)
            return self._enrolment.for_node(words[0], front.key).text
        if name == "host-keys" and not words and front.user.startswith(NODE) and front.caller is not None:
            self._enrolment.set_host_keys(front.caller.name, front.key, await _lines(stdin))
            return "ok"
        if name == "login" and len(words) == 1 and front.caller is None:
            token, *_ = await _lines(stdin)
            made = self._enrolment.for_operator(words[0], front.key, token)
            who = OPERATOR + words[0]
            self._hub.audit.write("certificate", who=who, address=front.address, serial=str(made.serial))
            return made.text
        if name == "nodes" and not words and front.user.startswith(OPERATOR) and front.caller is not None:
            operator = self._hub.store.required(Operator, front.caller.name)
            return json.dumps(await visible(self._hub, operator))
        raise TproxyError(
            "there is no shell; commands: operators-ca, certificate NODE, enrol NODE, login OPERATOR, nodes"
        )


async def _lines(stdin: Any) -> list[str]:
    """Return the lines of the input: at least one, which may be empty. Raises TproxyError."""

    async def everything() -> bytes:
        data = b""
        while len(data) <= MOST_INPUT and (part := await stdin.read(MOST_INPUT)):
            data += part
        return data

    try:
        data = await asyncio.wait_for(everything(), _PATIENCE)
    except asyncio.TimeoutError:
        raise TproxyError("the input does not end") from None
    if len(data) > MOST_INPUT:
        raise TproxyError("the input is too long")
    return data.decode(errors="replace").splitlines() or [""]
