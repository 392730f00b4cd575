"""The stranger's verifier: its file alone, as a copy, without any package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mm_tasks.erasure.audit.log import canonical, hash_of

SOURCE = Path(__file__).parents[2] / "mm_tasks" / "verify_export.py"
AT = "2026-01-14T09:00:00.000Z"
ENTRIES = [
    ("e1", "received", {}),
    ("e1", "intent", {"attempt": 1, "pass": 1}),
    ("e1", "result", {"attempt": 1, "pass": 1}),
    ("store", "restored", {}),
]
OLD, SEALED = {}, {"fences": "0" * 64, "mac": "a" * 64}


@pytest.fixture
def verify(tmp_path):
    """Run a copy, with no package but Python's own; return the exit code and the output."""
    copy = shutil.copy(SOURCE, tmp_path / "copy.py")

    def run(*paths):
        command = [sys.executable, "-I", "-S", copy, *paths]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def export(path, seals, cut=0):
    """Write an export whose entries have these further fields; return its checkpoints."""
    lines, checkpoints, prev = [], [], "0" * 64
    for seq, ((erasure, kind, details), seal) in enumerate(zip(ENTRIES, seals, strict=True), 1):
        common = {"at": AT, "epoch": 1, "prev": prev, "seq": seq, "subject": "0" * 64, **seal}
        line = canonical({**common, "details": details, "entry": kind, "erasure": erasure})
        prev = hash_of(line)
        lines.append(line)
        checkpoints.append(f"{seq} {prev} {AT}")
    kept = lines[: len(lines) - cut]
    end = canonical({"at": AT, "head": hash_of(kept[-1]), "size": len(kept)})
    path.write_text("".join(f"{line}\n" for line in [*kept, end]))
    return checkpoints


@pytest.mark.parametrize("seals", [[OLD] * 4, [SEALED] * 4, [OLD, OLD, SEALED, SEALED]])
def test_a_whole_export_holds_in_every_version_of_the_log(tmp_path, verify, seals):
    checkpoints = export(tmp_path / "export", seals)
    (tmp_path / "kept").write_text("\n".join([checkpoints[1], checkpoints[3], ""]))

    code, output = verify("export", "kept")

    assert code == 0, output
    assert output.startswith(f"verified: 4 entries, head {checkpoints[3].split()[1]}\n")
    assert "checkpoints: 2 compared\n" in output
    assert ("not checked: `mac` and `fences`" in output) == (SEALED in seals)


@pytest.mark.parametrize(
    ("seals", "rule"),
    [
        ([SEALED, OLD, SEALED, SEALED], "broken: entry 2 lacks its mac"),
        ([OLD, {"mac": "a" * 64}, SEALED, SEALED], "broken: entry 2 lacks its mac"),
        ([OLD, {"note": ""}, SEALED, SEALED], "broken: entry 2 is written otherwise"),
    ],
)
def test_seals_are_complete_from_the_first_one_on(tmp_path, verify, seals, rule):
    export(tmp_path / "export", seals)

    code, output = verify("export")

    assert code == 1
    assert rule in output


def test_a_cut_export_is_found_where_a_checkpoint_is_longer(tmp_path, verify):
    """Its end is forged well; only the checkpoint knows more."""
    checkpoints = export(tmp_path / "export", [SEALED] * 4, cut=1)
    (tmp_path / "kept").write_text(f"{checkpoints[3]}\n")
    alone, against = verify("export"), verify("export", "kept")

    assert alone[0] == 3
    assert "warning: no checkpoint was compared" in alone[1]
    assert against[0] == 1
    assert "a checkpoint of 2026-01-14T09:00:00.000Z saw 4 entries, here are 3" in against[1]


def test_lines_that_are_no_checkpoints_are_counted(tmp_path, verify):
    """A disk that was full must not silence the others, nor be taken for a checkpoint."""
    checkpoints = export(tmp_path / "export", [SEALED] * 4)
    (tmp_path / "kept").write_text(f"4 abc\n{checkpoints[3]}\n\n")

    code, output = verify("export", "kept")

    assert code == 0
    assert "warning: 2 lines are no checkpoints" in output


@pytest.mark.parametrize(
    "content", ["", "\n", "[]\n", '{"size":0}\n', "{}\n{}\n", "\xff", "[1]\n{}\n"]
)
def test_what_is_no_export_is_broken_and_no_traceback(tmp_path, verify, content):
    (tmp_path / "export").write_text(content, "latin-1")
    code, output = verify("export")

    assert code == 1
    assert output.startswith("broken: ")


def test_its_use_is_shown(verify):
    assert verify()[0] == 2
    assert "[CHECKPOINTS ...]" in verify("--help")[1]


@pytest.mark.parametrize(
    "program",
    [["-m", "mm_tasks.verify_export"], [str(SOURCE.parents[1] / "scripts/verify_audit.py")]],
)
def test_the_module_and_the_earlier_name_do_the_same(tmp_path, program):
    checkpoints = export(tmp_path / "export", [OLD] * 4)
    (tmp_path / "kept").write_text(f"{checkpoints[3]}\n")
    command = [sys.executable, *program, tmp_path / "export", tmp_path / "kept"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "export").read_text().splitlines()[-1])["head"] in done.stdout


def test_importing_the_package_for_it_loads_no_dependency():
    program = "import sys, mm_tasks.verify_export; print(*{n.split('.')[0] for n in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert {"celery", "redis", "pydantic", "sqlalchemy", "requests"}.isdisjoint(done.stdout.split())
