"""The command and the server: real sockets of 127.0.0.1, in this process."""

import asyncio
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import threading
import time

import pytest
import uvicorn

from launch import load_test
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.serving import app, connections, model, server
from pacx_jax.serving.uploads import Limits
from tests import tiny
from tests.serving.test_app import image

ROOT = pathlib.Path(__file__).resolve().parents[2]
SLOW = 0.4  # seconds of a batch


class Slow(model.Served):
    """Takes its time, so that requests are in progress."""

    def rollout(self, rows):
        time.sleep(SLOW)
        return super().rollout(rows)


@pytest.fixture(scope="module")
def served():
    slow = Slow(Encoder(tiny.folder("vit"), batch_size=4, num_devices=1))
    slow.compile()
    slow.compile = lambda: None
    return slow


def serve(served, talk, delay=0.0, patience=15.0, limits=None):
    """What `talk(port, service)` returns, with a server that it may end by a signal."""

    async def run():
        service = app.Service(served, limits or Limits(bytes=load_test.MAX_BYTES))
        await service.start()
        config = uvicorn.Config(
            service.application(),
            http=connections.Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=patience,
            timeout_graceful_shutdown=20,
        )
        found = connections.Server(config, service, delay)
        with server.listen("127.0.0.1", 0) as sock:
            port = sock.getsockname()[1]
            serving = asyncio.create_task(found.serve([sock]))
            try:
                return await asyncio.wait_for(talk(port, service), 60)
            finally:
                found.stop()
                await serving
                service.stop()

    return asyncio.run(run())


def test_nothing_is_lost_among_good_and_bad_requests(served):
    quick = model.Served(served.encoder)
    quick.compile = lambda: None

    async def talk(port, service):
        return await asyncio.to_thread(load_test.mixed, port, 6, 1000)

    fine, lost = serve(quick, talk)
    assert not lost
    assert sum(fine.values()) - fine["sent away and sent again (429)"] == 1000
    assert set(load_test.bad()) < set(fine)


def test_a_refusal_arrives_though_the_body_is_still_being_sent(served):
    async def talk(port, service):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head)
        for _ in range(80):  # 5 MiB, five times what is read
            writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        return await reader.read()

    answer = serve(served, talk)
    assert answer.startswith(b"HTTP/1.1 413") and b"the request is longer" in answer


def test_connections_that_send_no_whole_head_are_closed(served):
    async def talk(port, service):
        found = []
        for sent in (b"", b"POST /em", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            found.append(await reader.read())  # to the connection's end
        return found

    silent, half, second = serve(served, talk, patience=0.3)
    assert silent == half == b""
    assert second.startswith(b"HTTP/1.1 200") and second.count(b"HTTP/1.1") == 1


def test_sigterm_finishes_what_is_in_progress_and_takes_no_more(served):
    async def talk(port, service):
        client = load_test.Client(port)
        asked = asyncio.create_task(asyncio.to_thread(client.post, "/rollout", image()))
        await asyncio.sleep(SLOW / 2)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(SLOW / 4)
        draining = service.draining and not service.ready
        status, found, _ = await asked
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except ConnectionRefusedError:
                return draining, status, found
            await asyncio.sleep(0.05)
        raise AssertionError("still listening")

    draining, status, found = serve(served, talk)
    assert draining and status == 200 and len(found["results"]) == 1


def test_with_a_delay_it_answers_on_while_it_says_that_it_is_not_ready(served):
    async def talk(port, service):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.3)

        def ask():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            with contextlib.closing(connection):
                connection.request("GET", "/ready")
                ready = connection.getresponse()
                ready.read()
                connection.request("POST", "/embed", image())
                return ready.status, connection.getresponse().status

        return await asyncio.to_thread(ask)

    assert serve(served, talk, delay=2) == (503, 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "vit"
    model_folder.save(path, tiny.folder("vit"), card="a test's")
    return path


def test_the_command_serves_until_sigterm(folder, caplog, tmp_path):
    token, found = tmp_path / "token", []
    token.write_text("0123456789abcdef\n")

    def talk():
        for _ in range(600):
            if said := re.search(r"http://127.0.0.1:(\d+) is ready", caplog.text):
                client = http.client.HTTPConnection("127.0.0.1", int(said[1]))
                head = {"Authorization": "Bearer 0123456789abcdef"}
                client.request("POST", "/embed", image(), head)
                found.append(client.getresponse().status)
                client.close()
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=talk)
    thread.start()
    flags = ["--port=0", "--batch_size=8", f"--token_file={token}"]
    code = server.main([f"--model={folder}", *flags])
    thread.join()
    assert (code, found) == (0, [200])
    assert "POST /embed 200" in caplog.text and "ended" in caplog.text


def test_a_batch_that_hangs_does_not_keep_it_from_ending(folder, monkeypatch, caplog):
    go, ended, answers = threading.Event(), [], []

    def hang(self, rows):
        go.wait(60)
        raise RuntimeError("too late")

    def talk():
        try:
            for _ in range(600):
                if said := re.search(r"127.0.0.1:(\d+) is ready", caplog.text):
                    break
                time.sleep(0.1)
            client = load_test.Client(int(said[1]))
            answers.append(client.post("/embed", image())[0])
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(model.Served, "compile", lambda self: None)
    monkeypatch.setattr(model.Served, "embed", hang)
    monkeypatch.setattr(
        server.processes, "end_at_once", lambda *told: ended.append((go.is_set(), told))
    )
    thread = threading.Thread(target=talk)
    thread.start()
    code = server.main([f"--model={folder}", "--port=0", "--timeout=1"])
    go.set()
    thread.join()
    assert (code, answers) == (0, [504])
    assert ended == [(False, ("ended beside a batch that was not ready", 0))]


def refused(capsys, *flags):
    assert server.main(list(flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_image_s_command_is_one_that_the_server_takes():
    text = (ROOT / "launch/Dockerfile.serve").read_text().replace("\\\n", "")
    (command,) = re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
    python, dash_m, module, *flags = json.loads(command)
    assert [python, dash_m, module] == ["python", "-m", "pacx_jax.serving.server"]
    assert server.parse(flags).host == "0.0.0.0"


def test_a_port_in_use_is_one_line(folder, capsys):
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, f"--model={folder}", f"--port={port}")
    assert f"--port={port}: the port is in use: give another" in line


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--host=no.such.name.invalid", "--without_token"], "cannot listen"),
        (["--host=0.0.0.0"], "give --token_file"),
        (["--batch_size=0"], "--batch_size 0: give 1 or more"),
        (["--timeout=nan"], "--timeout nan"),
        (["--port=70000"], "--port 70000"),
        (["--max_pixels=60000000"], "at most 50000000"),
        (["--token_file=TOKEN"], "16 or more"),
        (["--token_file=nowhere"], "nowhere: no such file"),
        (["--model=nowhere", "--port=0"], "nowhere: no such folder"),
        (["--model=ECG", "--port=0"], "holds a ecg_net1d model, but a vit is needed"),
    ],
)
def test_bad_flags_are_one_line(flags, words, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TOKEN").write_text("short")
    model_folder.save(tmp_path / "ECG", tiny.folder("ecg_net1d"), card="a test's")
    assert words in refused(capsys, f"--model={folder}", *flags)


def test_a_model_that_cannot_be_compiled_ends_the_command(folder, capsys, monkeypatch):
    def compile(self):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(model.Served, "compile", compile)
    assert "memory" in refused(capsys, f"--model={folder}", "--port=0")


@pytest.mark.full
def test_the_load_test_measures_a_service_of_its_own(folder, capsys):
    flags = ["--seconds=0.5", "--requests=40", "--clients=4"]
    assert load_test.main([f"--model={folder}", *flags]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["lost"] == {} and found["p99_ms_at_half"] >= found["p50_ms_at_half"]
    assert found["service_images_per_s"] > 0 and found["embed_images_per_s"] > 0
