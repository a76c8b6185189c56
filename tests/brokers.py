"""Apache Kafka for tests: one KRaft node on loopback, from the jars of any Kafka release."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from streams.dev.ports import LOOPBACK, free_ports
from streams.dev.process import Service, StartError

START_TIMEOUT_S = 90.0
"""About 4 s on an idle machine."""


class ApacheKafka:
    """``home``: a folder with ``libs/``, as official releases have it. Data lie in ``folder`` until it is removed."""

    def __init__(self, home: Path, folder: Path) -> None:
        if not list(home.glob("libs/kafka-clients-*.jar")):
            raise StartError(f"KAFKA_HOME={home} has no libs/ with Kafka's jars")
        if shutil.which("java") is None:
            raise StartError("KAFKA_HOME is set, but there is no java (17 or later) on the PATH")
        self.port, controller = free_ports(2)
        self._classpath = str(home / "libs" / "*")
        self._config = folder / "server.properties"
        self._config.write_text(_properties(self.port, controller, folder / "data"))
        self.service = Service(
            "kafka",
            self._java("kafka.Kafka", str(self._config)),
            log=folder / "server.log",
            answers=lambda: _listens(self.port),
            grace_s=10,
        )

    @property
    def bootstrap(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> None:
        tool = self._java("kafka.tools.StorageTool", "format", "-t", "dGlkZWdhdGUtdGVzdHMwMA", "-c", str(self._config))
        subprocess.run(tool, check=True, capture_output=True)
        self.service.spawn()
        self.service.wait_until_answers(START_TIMEOUT_S)

    def stop(self) -> None:
        self.service.stop()

    def _java(self, *arguments: str) -> list[str]:
        return ["java", "-Xmx512m", "-XX:+UseG1GC", "-Djava.awt.headless=true", "-cp", self._classpath, *arguments]


def _properties(port: int, controller: int, data: Path) -> str:
    one = dict.fromkeys(
        (
            *("offsets.topic.replication.factor", "transaction.state.log.replication.factor"),
            *("transaction.state.log.min.isr", "share.coordinator.state.topic.replication.factor"),
            "share.coordinator.state.topic.min.isr",
        ),
        1,
    )
    lines = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": data,
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": 0,  # a test need not wait 3 s for other members
        "offsets.topic.num.partitions": 8,
        **one,
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((LOOPBACK, port)) == 0
