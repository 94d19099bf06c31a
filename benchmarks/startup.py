"""What importing the package adds to a bare Python, and what it brings in."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from machine import tell

ROUNDS = 15


def timed(code: str) -> float:
    """Milliseconds that a fresh Python takes for ``code``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Measure turn by turn and print."""
    bare, ours = [], []
    for _ in range(ROUNDS):
        bare.append(timed("pass"))
        ours.append(timed("import napari_fovea"))
    brought = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, napari_fovea;"
            "print(*({'torch', 'qtpy', 'napari', 'numpy'} & set(sys.modules)))",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    more = statistics.median(ours) - statistics.median(bare)
    tell(
        "startup",
        {
            "import_ms_over_bare_python": round(more, 1),
            "import_over_bare_python": round(
                statistics.median(ours) / statistics.median(bare), 3
            ),
            "heavy_modules": brought,
        },
    )


if __name__ == "__main__":
    main()
