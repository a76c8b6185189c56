"""What a result must carry to be quoted: processor, versions, command. Result files are named by ``name``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "machine", "save"]

RESULTS = Path(__file__).resolve().parent / "results"


def machine(*packages: str) -> dict[str, Any]:
    """The processor with its vector extensions, cores, system, versions, load before the run, and the command."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", info)
    flags = set((re.search(r"flags\s*:\s*(.+)", info) or ["", ""])[1].split())
    processor = model[1].strip() if model else platform.processor() or "unknown"
    return {
        "name": re.sub(r"[^a-z0-9]+", "-", f"{processor}-{os.cpu_count()}".lower()).strip("-"),
        "processor": processor,
        "extensions": [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if name in flags],
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "versions": {name: _version(name) for name in packages},
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def save(name: str, result: dict[str, Any]) -> Path:
    """Write a result to load-tests/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
