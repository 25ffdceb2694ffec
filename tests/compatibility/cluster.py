"""Starts and stops nodes as real processes on free loopback ports.

Owner of the processes: each Node, which only ever ends the child that it started. The
data directory is removed at the end unless CARILLON_TEST_KEEP is set.
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

# Below the range that Linux gives to outgoing connections, so that no client can take
# the port of a node before it listens.
PORTS = range(12_000, 32_000)
PORT_TRIES_MAX = 1_000
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.05
LOG_LINES_SHOWN = 40


class ClusterError(Exception):
    """A node did not do what it was started for; says what its log ends with."""


def node_binary() -> pathlib.Path:
    """The binary to test, as run.sh found it."""
    return pathlib.Path(os.environ["CARILLON_NODE_BIN"])


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all held until the last is found, so none is twice."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(PORT_TRIES_MAX):
            if len(ports) == count:
                return ports
            taken = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            port = random.choice(PORTS)
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
        raise ClusterError(f"found no {count} free ports in {PORT_TRIES_MAX} tries")


@dataclasses.dataclass
class Node:
    """One node: its addresses (host:port), its directory, its process when it runs."""

    node_id: int
    client: str
    peer: str
    http: str
    directory: pathlib.Path
    process: subprocess.Popen | None = None
    # Without certificates, and nobody is asked who they are.
    dev: bool = True

    @property
    def log(self) -> pathlib.Path:
        return self.directory / "node.log"

    def start(self) -> None:
        assert self.process is None, f"node {self.node_id} runs already"
        command = [str(node_binary()), "--config", str(self.directory / "node.toml")]
        if self.dev:
            command.append("--dev")
        # When the tests are killed, the nodes go with them.
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "KILL", *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None, f"node {self.node_id} does not run"
        self.process.send_signal(number)

    def wait(self) -> int:
        """Waits for the end that was asked for; returns the exit code."""
        assert self.process is not None, f"node {self.node_id} does not run"
        code = self.process.wait(timeout=STOP_SECONDS_MAX)
        self.process = None
        return code

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.wait()

    def probe(self, path: str) -> tuple[int, str]:
        """GET of a path on the HTTP port: status and body; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while True:
            status, body = self.probe("/readyz")
            if status == 200:
                return
            code = self.process.poll() if self.process else None
            if code is not None:
                raise ClusterError(f"node {self.node_id} ended with {code}\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"node {self.node_id} is not ready after {READY_SECONDS_MAX:.0f} s: "
                    f"{status} {body.strip()}\n{self.log_end()}"
                )
            time.sleep(POLL_SECONDS)

    def log_end(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-LOG_LINES_SHOWN:]) or "(its log is empty)"


class Cluster:
    """Nodes that belong together. Use as a context: they end with it."""

    def __init__(
        self,
        nodes: int = 3,
        shards: int = 16,
        extra: str = "",
        replication_factor: int | None = None,
        dev: bool = True,
    ) -> None:
        """Each shard has as many replicas as there are nodes, at most three, unless said."""
        factor = replication_factor or min(3, nodes)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="carillon-compatibility-"))
        ports = iter(_free_ports(3 * nodes))
        self.nodes = [
            Node(
                number,
                *(f"127.0.0.1:{next(ports)}" for _ in range(3)),
                directory=self.directory / f"node-{number}",
                dev=dev,
            )
            for number in range(1, nodes + 1)
        ]
        for node in self.nodes:
            node.directory.mkdir()
            shape = f"[cluster]\nshards = {shards}\nreplication_factor = {factor}\n"
            start = f"node_id = {node.node_id}\n"
            self._configure(node, start, f"{self._initial_peers()}{shape}{extra}")

    def _initial_peers(self) -> str:
        return "".join(
            "[[initial_peers]]\n"
            f"node_id = {peer.node_id}\n"
            f'peer_address = "{peer.peer}"\n'
            f'client_address = "{peer.client}"\n'
            for peer in self.nodes
        )

    def _configure(self, node: Node, start: str, sections: str) -> None:
        (node.directory / "node.toml").write_text(
            f"{start}"
            'cluster_name = "compatibility"\n'
            f'data_dir = "{node.directory}"\n'
            "[listen]\n"
            f'client = "{node.client}"\n'
            f'peer = "{node.peer}"\n'
            f'http = "{node.http}"\n'
            f"{sections}"
        )

    def replacement(self, gone: Node, token: str) -> Node:
        """A new node at the address of one whose disk is lost; it joins when it is started."""
        number = len(self.nodes) + 1
        directory = self.directory / f"node-{number}"
        node = dataclasses.replace(gone, node_id=number, directory=directory, process=None)
        directory.mkdir()
        peers = ", ".join(f'"{peer.peer}"' for peer in self.nodes if peer is not gone)
        self._configure(node, "", f'[join]\npeers = [{peers}]\ntoken = "{token}"\n')
        self.nodes.append(node)
        return node

    def __enter__(self) -> "Cluster":
        try:
            for node in self.nodes:
                node.start()
            for node in self.nodes:
                node.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is not None:
            for node in self.nodes:
                print(f"---- the end of {node.log}\n{node.log_end()}")
        self.close()

    def close(self) -> None:
        """Kills what still runs; how nodes stop gracefully is tested elsewhere."""
        for node in self.nodes:
            node.kill()
        if os.environ.get("CARILLON_TEST_KEEP"):
            print(f"kept: {self.directory}")
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
