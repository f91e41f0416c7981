# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from _core.job.options import Notify
from _core.observe import notify
from _core.observe.notify import FAILED, NOT_NOW, OK, Outcome

DONE = Outcome("etrial", "db1", OK, 0, summary={"generation": "2026-11-22T02-00-05Z", "path": "/backups/x", "copy": {"files": 3}})
BROKEN = Outcome("etrial", "db1", FAILED, 1, "the volume group vg00 has no room\udc80")


class Service:
    """A service that takes pings, and remembers them."""

    def __init__(self) -> None:
        self.taken: List[Tuple[str, str, str]] = []
        self.answers: List[int] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def _take(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                service.taken.append((self.command, self.path, body))
                self.send_response(service.answers.pop(0) if service.answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = _take

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = "http://127.0.0.1:%d/ping/secret" % self.server.server_port


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Service()
    thread = threading.Thread(target=served.server.serve_forever)
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


def test_a_verification_is_told_to_the_command_and_to_the_url_only_where_it_went_wrong(service: Service, tmp_path: Any) -> None:
    script = tmp_path / "tell"
    script.write_text("#!/bin/sh\necho $STILLPOINT_ACTION $STILLPOINT_STATUS >> %s/told\n" % tmp_path)
    script.chmod(0o755)
    to = Notify(service.url, (str(script),))
    assert told(to, replace(DONE, action=notify.VERIFY)) == []
    assert service.taken == []
    assert told(to, replace(BROKEN, action=notify.VERIFY)) == []
    assert [path for _method, path, _body in service.taken] == ["/ping/secret/fail"]
    assert (tmp_path / "told").read_text() == "verify ok\nverify failed\n"


def told(tell: Notify, outcome: Outcome) -> List[str]:
    warnings: List[str] = []
    notify.tell(tell, outcome, warnings.append)
    return warnings


def test_success_is_a_request_of_the_url_as_it_is(service: Service) -> None:
    assert told(Notify(ping_url=service.url), DONE) == []
    assert service.taken == [("GET", "/ping/secret", "")]


def test_a_failure_is_its_sentence_sent_to_the_url_with_fail_at_its_end(service: Service) -> None:
    assert told(Notify(ping_url=service.url + "?x=1"), BROKEN) == []
    assert service.taken == [("POST", "/ping/secret/fail?x=1", "the volume group vg00 has no room?")]


def test_nobody_is_alarmed_when_the_guard_refused(service: Service) -> None:
    assert told(Notify(ping_url=service.url), Outcome("etrial", "db1", NOT_NOW, 75, "busy")) == []
    assert service.taken == []


def test_a_ping_is_tried_again_and_then_becomes_a_warning_without_the_path_of_the_url(service: Service) -> None:
    service.answers = [500, 200]
    assert notify.ping(service.url, DONE, pause=0) == ""
    service.answers = [500, 502, 503]
    complaint = notify.ping(service.url, DONE, pause=0)
    assert complaint == "notify.ping_url: 127.0.0.1 did not take the ping: HTTP status 503"


def test_a_service_that_is_not_there_becomes_a_warning() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        complaint = notify.ping("http://127.0.0.1:%d/secret" % taken.getsockname()[1], DONE, pause=0)
    assert complaint.startswith("notify.ping_url: 127.0.0.1 did not take the ping: ")
    assert "secret" not in complaint


def script(tmp_path: Any, text: str) -> str:
    path = tmp_path / "tell"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_the_command_gets_the_facts_as_json_and_in_its_environment(tmp_path: Any) -> None:
    command = script(tmp_path, 'cat >"$1"; env | grep ^STILLPOINT_ | sort >"$1.env"')
    assert told(Notify(command=(command, str(tmp_path / "out put"))), DONE) == []
    facts: Dict[str, Any] = json.loads((tmp_path / "out put").read_text())
    assert facts == {"action": "run", "job": "etrial", "host": "db1", "status": "ok", "exit_code": 0, "msg": "", **DONE.summary}
    assert (tmp_path / "out put.env").read_text().splitlines() == [
        "STILLPOINT_ACTION=run",
        "STILLPOINT_EXIT_CODE=0",
        "STILLPOINT_GENERATION=2026-11-22T02-00-05Z",
        "STILLPOINT_HOST=db1",
        "STILLPOINT_JOB=etrial",
        "STILLPOINT_MESSAGE=",
        "STILLPOINT_PATH=/backups/x",
        "STILLPOINT_STATUS=ok",
    ]


def test_a_command_need_not_read_its_input(tmp_path: Any) -> None:
    large = Outcome("etrial", "db1", OK, 0, summary={"warnings": ["x" * 1000] * 1000})
    assert notify.run((script(tmp_path, "exit 0"),), large) == ""


def test_a_command_that_fails_is_missing_or_does_not_end_becomes_a_warning(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert notify.run((script(tmp_path, "exit 3"),), BROKEN).endswith("/tell ended with exit status 3")
    assert notify.run(("/missing/tell",), BROKEN) == "notify.command: /missing/tell can't be started: No such file or directory"
    monkeypatch.setattr(notify, "COMMAND_TIMEOUT", 0.2)
    assert notify.run((script(tmp_path, "sleep 30 & sleep 30"),), BROKEN).endswith("/tell did not end within 0.2 s and was ended")
