"""What the tests share: the reference material beside the project, and running a script as a user does."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("R2A_REFERENCE", ROOT.parent / "shared"))
PATIENCE = 1200  # seconds after which a process counts as hanging: far more than any takes on a slow, busy machine

settings.register_profile("every machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("every machine")


@pytest.fixture(scope="session")
def reference():
    """The folder of goldens and data-set images; tests that need it are skipped where it is absent."""
    if not (REFERENCE / "golden").is_dir():
        pytest.skip(f"no reference material in {REFERENCE} (set R2A_REFERENCE)")
    return REFERENCE


@pytest.fixture
def script():
    """Run a script of the project from the shell: script("ldgp.py", "--flag", value, ok=True) -> finished process."""

    def run(name, *arguments, ok=True, cwd=ROOT, before=(), env=None):
        command = [sys.executable, *before, str(ROOT / name) if name.endswith(".py") else name, *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE,
                              env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})})
        if ok is not None:
            assert (done.returncode == 0) == ok, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
