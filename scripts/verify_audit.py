"""The verifier of exports by its earlier name: see `mm_tasks/verify_export.py`, which it runs."""

import runpy
from pathlib import Path

VERIFIER = Path(__file__).parents[1] / "mm_tasks" / "verify_export.py"

if __name__ == "__main__":
    runpy.run_path(str(VERIFIER), run_name="__main__")
