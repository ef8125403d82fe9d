"""What the fuzzer looks for it finds, whatever a call does; and what it finds it makes small."""

import random
from pathlib import Path

import pytest
from fuzz_entries import ENTRIES
from fuzz_mutations import FORMS, damaged
from fuzz_smallest import smallest
from fuzz_structures import structures
from fuzz_watching import Watched
from fuzz_worker import CANARIES, RAN

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to watch a process"),
]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    home = tmp_path_factory.mktemp("watched")
    (home / "case").mkdir()
    for name in CANARIES:
        (home / name).write_text(f"import pathlib\npathlib.Path(__file__).with_name('{RAN}').touch()\n")
    watched = Watched(home, seconds=1.0, waiting=1.0, memory=256 << 20)
    yield watched
    watched.stop()


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("trips", "a traceback: KeyError: 'case'"),
        ("rambles", "no sentence, or more than one"),
        ("floods", "a sentence of 3009 characters"),
        ("hangs", "it hangs"),
        ("sleeps", "it hangs"),
        ("fills", "it takes more than 256 MiB"),
        ("fills_elsewhere", "it takes more than 256 MiB"),
        ("crashes", "the process ends by itself (SIGABRT)"),
        ("leaves", "the process ends by itself (exit code 7)"),
        ("writes_outside", "a file outside the folder is written"),
        ("moves_outside", "a file outside the folder is written"),
        ("runs_a_program", "code is run: subprocess.Popen"),
        ("imports_a_stranger", "code is run: a canary"),
    ],
)
def test_what_no_file_may_do_is_found_and_the_next_case_has_a_whole_process(call, fault, watched):
    found = watched.run(f"fuzz_bad_calls:{call}", "case").fault
    assert found is not None and found.startswith(fault)
    assert watched.run("fuzz_bad_calls:fine", "case").fault is None
    refused = watched.run("fuzz_bad_calls:refuses", "case")
    assert (refused.fault, refused.accepted, refused.said) == (None, False, "niwaki: case is damaged; correct it.\n")


def test_the_same_seed_gives_the_same_files():
    first = b'{"a": [1, {"b": "c"}], "d": null}'
    assert structures("json", first, 30, 5) == structures.__wrapped__("json", first, 30, 5)
    for form in (*FORMS, "bytes"):
        twice = [[damaged(first, form, random.Random(n), [first]) for n in range(50)] for _ in range(2)]
        assert twice[0] == twice[1] and len({*twice[0]}) > 8


def test_every_form_has_an_entry_point():
    assert {entry.form for entry in ENTRIES} == {*FORMS, "bytes"}
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


def test_what_is_found_is_made_small():
    whole = b'{"kept": [1, 2, {"bad": [0, "wrong", 3]}], "more": {"a": 1}, "last": [4]}'
    assert smallest(whole, lambda content: b"wrong" in content and content.startswith(b"{")) == b"{wrong"
    assert smallest(whole, lambda content: b'"wrong"' in content and content.count(b"{") == 2) == b'{{"wrong"'
    assert smallest(b"abcXdefY", lambda content: b"X" in content and b"Y" in content) == b"XY"
