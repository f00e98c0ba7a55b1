"""A simulator and a gateway in front of it, once a session; the simulator forgets everything before each test."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

START_SECONDS_MAX = 20
SEEN_SECONDS_MAX = 10

KEYS = {
    "WEB_KEY": "web-0123456789abcdef0123456789abcdef",
    "NARROW_KEY": "narrow-0123456789abcdef0123456789abcdef",
    "SLOW_OPENAI_KEY": "slow-openai-0123456789abcdef0123456789abcdef",
    "SLOW_ANTHROPIC_KEY": "slow-anthropic-0123456789abcdef0123456789abcdef",
    "POOR_KEY": "poor-0123456789abcdef0123456789abcdef",
    "UPSTREAM_KEY": "upstream-0123456789abcdef0123456789abcdef",
}


def until(what, condition, seconds=SEEN_SECONDS_MAX):
    """The first truthy value of `condition`; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return value


class Process:
    """The binary under test, until `stop`."""

    def __init__(self, folder: Path, name: str, *arguments: str):
        addresses, self.output = folder / f"{name}.json", folder / f"{name}.log"
        with self.output.open("wb") as output:
            self.child = subprocess.Popen(
                [os.environ["LEA_BIN"], *arguments, "--addresses-file", str(addresses)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **KEYS},
                cwd=folder,
            )
        until(f"{name} is ready", lambda: addresses.exists() or self.has_ended(), START_SECONDS_MAX)
        assert not self.has_ended(), f"{name} ended:\n{self.output.read_text()}"
        listens = json.loads(addresses.read_text())
        self.url = f"http://{listens['api']}"
        self.admin = f"http://{listens['admin']}" if "admin" in listens else None

    def has_ended(self):
        return self.child.poll() is not None

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        try:
            self.child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise


class Simulator:
    def __init__(self, url: str):
        self.url = url

    def _call(self, method: str, path: str, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def script(self, *faults):
        self._call("POST", "/simulator/script", list(faults))

    def requests(self):
        return self._call("GET", "/simulator/requests")

    def only_request(self):
        (request,) = self.requests()
        return request

    def sent(self):
        """The body of the only request, as the provider got it."""
        return json.loads(self.only_request()["body"])

    def reset(self):
        self._call("DELETE", "/simulator")


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    simulate = ("simulate", "--listen", "127.0.0.1:0", "--ttft", "1ms", "--tokens-per-second", "0")
    started = [Process(folder, "simulator", *simulate)]
    try:
        config = (Path(__file__).parents[1] / "gateway.yaml").read_text().replace("SIMULATOR", started[0].url)
        (folder / "gateway.yaml").write_text(config)
        started.append(Process(folder, "gateway", "run", "-c", str(folder / "gateway.yaml")))
        yield started
    finally:
        for process in reversed(started):
            process.stop()


@pytest.fixture
def simulator(processes):
    simulator = Simulator(processes[0].url)
    simulator.reset()
    return simulator


@pytest.fixture
def gateway(processes, simulator):
    """The gateway's URL, with a simulator behind it that knows nothing yet."""
    return processes[1].url


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_the_output(processes):
    """Whatever the tests provoked, the gateway printed no key."""
    yield
    printed = processes[1].output.read_text()
    for name, key in KEYS.items():
        assert key not in printed, f"{name} was printed"
