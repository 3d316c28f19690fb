"""The mutation gate's own parts: its table fits the sources, and it tells a fault found from one that cannot run."""

import ast
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from sources import ROOT, module_of

pytestmark = pytest.mark.source


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    return module_of(".ci/mutants.py")


def test_every_mutant_changes_its_file_once(driver: ModuleType) -> None:
    assert len(driver.MUTANTS) >= 26
    assert len({mutant.name for mutant in driver.MUTANTS}) == len(driver.MUTANTS)
    for mutant in driver.MUTANTS:
        text = (ROOT / mutant.file).read_text()
        changed = mutant.applied(text)
        assert changed != text and mutant.diff(), mutant.name
        if mutant.file.endswith(".py"):
            compile(changed, mutant.file, "exec")
        for test in mutant.tests:
            path, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}" in (ROOT / path).read_text(), test


def test_a_name_of_tests_is_given_once() -> None:
    """A second one of the same name would send the mutants of the first to tests that do not look at them."""
    body = ast.parse((ROOT / ".ci/mutants.py").read_text()).body
    names = Counter(
        target.id for node in body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_a_table_that_does_not_fit_is_no_result(driver: ModuleType) -> None:
    mutant = replace(driver.MUTANTS[0], old="what stands nowhere")
    with pytest.raises(driver.Stale, match="0 times instead of once"):
        mutant.applied((ROOT / mutant.file).read_text())
    with pytest.raises(driver.Stale, match="2 times instead of once"):
        replace(mutant, old="a").applied("a a")


@pytest.mark.parametrize(
    ("code", "output", "state", "detail"),
    [
        (0, "3 passed", "survived", ""),
        (1, "E   assert 1 == 2\nFAILED tests/ops/test_lsq.py::test_x[1] - assert 1 == 2\n", "killed", "ops/test_lsq.py::test_x[1]"),
        (-11, "", "killed", "it crashed: SIGSEGV"),
        (None, "", "killed", "it hung: the time limit ended it"),
        (1, "E   f32.cu: elementwise.cuh:3:1: error: expected ';'\nFAILED tests/cuda/x.py::y", "error", "expected ';'"),
        (1, "E   NameError: name 'lower' is not defined\nFAILED tests/x.py::y", "error", "NameError"),
        (4, "ERROR: not found: tests/x.py::y", "error", "pytest ended with 4"),
        (5, "no tests ran", "error", "pytest ended with 5"),
    ],
)  # fmt: skip
def test_a_mutant_that_cannot_run_is_not_killed(driver: ModuleType, code: int, output: str, state: str, detail: str) -> None:
    got, why = driver.verdict(code, output)
    assert got == state and (detail in why if detail else why == "")


def test_what_was_killed_is_run_again_where_its_files_changed_and_now_and_then(
    driver: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "KILLED", tmp_path / "killed.json")
    every = driver.MUTANTS
    assert driver.due(every, driver.killed_before(), "") == every
    digests = {mutant.name: mutant.digest() for mutant in every}
    driver.write_down([driver.Outcome(mutant, "killed", "", 0.0) for mutant in every], digests)
    some = [[mutant.name for mutant in driver.due(every, driver.killed_before(), commit)] for commit in ("a", "b")]
    assert all(0 < len(names) < len(every) / 6 for names in some) and some[0] != some[1]
    # one whose fault is another, one that survives
    other, weak = [mutant for mutant in every if mutant.name not in some[0]][:2]
    changed = replace(other, new=other.new + " ")
    driver.write_down([driver.Outcome(weak, "survived", "", 0.0)], digests)
    assert driver.due([changed, weak], driver.killed_before(), "a") == [changed, weak]
    assert driver.due([other], driver.killed_before(), "a") == []


def test_names_are_checked(driver: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mutants.py", "--only", "no-such-fault"])
    with pytest.raises(SystemExit) as ended:
        driver.main()
    assert ended.value.code == 2 and "no mutant is called no-such-fault" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["mutants.py", "--list"])
    assert driver.main() == 0
    assert len(capsys.readouterr().out.splitlines()) == len(driver.MUTANTS)


def test_of_a_mutant_is_built_what_its_tests_look_at(driver: ModuleType) -> None:
    built = {
        mutant.name: [name for name in ("lsq_v2.o", "pact_v2.o", "oscillation_v2.o", "cpu.o") if mutant.concerns(name)]
        for mutant in driver.MUTANTS
    }
    assert built["cpu-tail"] == ["lsq_v2.o"]  # of a header that every method has
    assert built["osc-thaw"] == ["lsq_v2.o", "oscillation_v2.o"]
    assert built["pact-levels"] == ["pact_v2.o", "cpu.o"]
    assert built["cpu-many-pieces"] == ["lsq_v2.o", "pact_v2.o", "oscillation_v2.o", "cpu.o"]  # tests/ops/test_foreach.py
