"""An entry is there whole or not at all, whatever is killed, full, closed or done twice at once."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from paretune.build.store import ENTRY, KEPT_DAYS, Store, key_of, write_whole
from paretune.errors import ArtifactError, OutputError

KEY = key_of("test", {"a": 1})


def write(scratch: Path) -> None:
    (scratch / "deep").mkdir()
    (scratch / "deep" / "model.bin").write_bytes(bytes(50))
    (scratch / "notes.txt").write_text("made")


def never(scratch: Path) -> None:
    raise AssertionError("made again")


def leftovers(root: Path) -> list[Path]:
    return sorted((root / "scratch").glob("*"))


def start(code: str, root: Path) -> subprocess.Popen[str]:
    """A process that runs ``code`` with ``store``, ``KEY`` and ``root``, and can be waited for line by line."""
    head = (
        "import sys, time\nfrom pathlib import Path\nfrom paretune.build.store import Store\n"
        f"root = Path({str(root)!r}); KEY = {KEY!r}; store = Store(root)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_what_was_put_is_got(tmp_path):
    store = Store(tmp_path / "store")
    assert store.get(KEY) is None
    place = store.put(KEY, "test", write)
    assert store.get(KEY) == place
    assert (place / "deep" / "model.bin").read_bytes() == bytes(50)
    entry = json.loads((place / ENTRY).read_text())
    assert (entry["kind"], entry["key"], sorted(entry["files"])) == ("test", KEY, ["deep/model.bin", "notes.txt"])
    assert Store(tmp_path / "store").get(KEY) == place
    assert store.get(key_of("test", {"a": 2})) is None
    assert leftovers(store.root) == []


def test_keys_know_everything_and_no_order():
    assert key_of("a", {"x": 1, "y": [2]}) == key_of("a", {"y": [2], "x": 1})
    assert len({key_of("a", {"x": 1}), key_of("b", {"x": 1}), key_of("a", {"x": 2}), key_of("a", {"y": 1})}) == 4


def test_a_failure_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def fail(scratch: Path) -> None:
        write(scratch)
        raise KeyError("x")

    with pytest.raises(KeyError):
        store.put(KEY, "test", fail)
    assert store.get(KEY) is None
    assert leftovers(tmp_path) == []
    store.put(KEY, "test", write)
    assert store.get(KEY)


def test_a_kill_in_the_middle_leaves_no_entry_and_is_swept_up(tmp_path):
    stuck = "def make(at):\n (at/'half').write_bytes(b'h'*9); print(at, flush=True); time.sleep(600)\n"
    living = start(stuck + "store.put(KEY, 'test', make)", tmp_path)
    killed = start(stuck + "store.put(KEY, 'test', make)", tmp_path)
    try:
        alive, dead = Path(told(living)), Path(told(killed))
        mine = Store(tmp_path).scratch()
        end(killed)
        assert killed.returncode == -signal.SIGKILL
        assert sorted([alive, dead, mine]) == leftovers(tmp_path)
        store = Store(tmp_path)
        assert store.get(KEY) is None
        store.sweep()
        assert sorted([alive, mine]) == leftovers(tmp_path)
        assert (alive / "half").is_file()
        store.put(KEY, "test", write)
        assert store.get(KEY)
    finally:
        end(living)
        end(killed)
    Store(tmp_path).sweep()
    assert leftovers(tmp_path) == [mine]


def test_a_leftover_of_an_earlier_process_with_this_number_is_swept_up(tmp_path):
    # in a container the same numbers come again with every start
    old = tmp_path / "scratch" / f"{os.getpid()}-old"
    old.mkdir(parents=True)
    (old / "half").write_text("h")
    mine = Store(tmp_path).scratch()
    Store(tmp_path).sweep()
    assert leftovers(tmp_path) == [mine]


def test_a_sweep_in_one_thread_leaves_the_work_of_another(tmp_path):
    store, inside, swept = Store(tmp_path), threading.Event(), threading.Event()

    def make(scratch: Path) -> None:
        inside.set()
        assert swept.wait(30)
        write(scratch)

    worker = threading.Thread(target=store.put, args=(KEY, "test", make))
    worker.start()
    assert inside.wait(30)
    store.sweep()
    swept.set()
    worker.join()
    assert store.get(KEY)


def test_handles_of_finished_scratch_directories_are_given_back(tmp_path):
    store = Store(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(30):
        store.put(key_of("test", {"n": number}), "test", write)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_kills_at_any_moment_leave_a_store_that_works(tmp_path):
    busy = (
        "from paretune.build.store import key_of\n"
        "def make(at):\n [(at/str(n)).write_bytes(bytes(20000)) for n in range(20)]\n"
        "print('on', flush=True)\n"
        "for n in range(10**6): store.put(key_of('busy', {'n': n}), 'busy', make)\n"
    )
    for pause in (0.01, 0.05, 0.11):
        process = start(busy, tmp_path)
        told(process)
        time.sleep(pause)
        end(process)
    store = Store(tmp_path)
    entries = [path for path in tmp_path.glob("??/*") if path.is_dir()]
    assert entries
    for entry in entries:
        place = store.get(entry.name)
        assert place is not None
        assert len(list(place.iterdir())) == 21
    store.sweep()
    assert leftovers(tmp_path) == []


def test_two_processes_putting_the_same_key_at_once(tmp_path):
    code = (
        "def make(at):\n"
        " (at/'model.bin').write_bytes(b'm'*70000); print('ready', flush=True); sys.stdin.readline()\n"
        "print(store.put(KEY, 'test', make), flush=True)\n"
    )
    both = [start(code, tmp_path) for _ in range(2)]
    try:
        assert [told(one) for one in both] == ["ready", "ready"]
        for one in both:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        places = [told(one) for one in both]
        assert [one.wait(30) for one in both] == [0, 0]
    finally:
        for one in both:
            end(one)
    assert places[0] == places[1] == str(Store(tmp_path).get(KEY))
    assert leftovers(tmp_path) == []


def test_a_corrupt_entry_says_so_and_what_to_do(tmp_path):
    store = Store(tmp_path)
    place = store.put(KEY, "test", write)
    path, entry = place / "deep" / "model.bin", place / ENTRY
    whole, listing = path.read_bytes(), entry.read_bytes()

    def refused() -> str:
        with pytest.raises(ArtifactError) as caught:
            store.get(KEY)
        assert str(place) in caught.value.where
        assert caught.value.do
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path.write_bytes(whole[:-1] + b"\1")
    assert "sha256" in refused()
    path.unlink()
    assert "is missing" in refused()
    path.write_bytes(whole)
    for wrong in (b"", b"{", b"[]", b"{}", b'{"files": []}', b'{"files": null}', b"\xff", listing[:-5], b"[" * 100_000):
        entry.write_bytes(wrong)
        assert "delete this directory" in refused()
    entry.write_bytes(listing)
    assert store.get(KEY) == place


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def full(call, *args) -> OutputError:
    with pytest.raises(OutputError) as caught:
        call(*args)
    assert caught.value.where
    assert "free some space" in caught.value.do
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_full_disk_is_said_and_leaves_what_was(tiny_disk):
    store = Store(tiny_disk / "store")
    place = store.put(KEY, "test", write)
    other = key_of("test", {"a": 2})
    error = full(store.put, other, "test", lambda at: (at / "big").write_bytes(bytes(200_000)) and None)
    assert error.what == "no space left on device"
    assert store.get(other) is None
    assert store.get(KEY) == place
    assert leftovers(store.root) == []
    write_whole(tiny_disk / "run.json", "old")
    full(write_whole, tiny_disk / "run.json", "n" * 200_000)
    assert (tiny_disk / "run.json").read_text() == "old"
    assert sorted(path.name for path in tiny_disk.iterdir()) == ["run.json", "store"]


def test_a_file_that_may_not_grow_is_like_a_full_disk(tmp_path):
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write_whole(tmp_path / "run.json", "old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        full(write_whole, tmp_path / "run.json", "n" * 100_000)
        full(Store(tmp_path / "s").put, KEY, "test", lambda at: (at / "big").write_bytes(bytes(9000)) and None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "run.json").read_text() == "old"
    assert Store(tmp_path / "s").get(KEY) is None


def closed(call, *args) -> None:
    with pytest.raises(OutputError) as caught:
        call(*args)
    assert caught.value.where
    assert "may write to" in caught.value.do
    assert "\n" not in str(caught.value)


def test_a_read_only_disk_is_said_and_can_still_be_read(tiny_disk):
    store = Store(tiny_disk)
    place = store.put(KEY, "test", write)
    write_whole(tiny_disk / "run.json", "old")
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    try:
        closed(store.put, key_of("test", {}), "test", write)
        closed(store.scratch)
        closed(write_whole, tiny_disk / "run.json", "new")
        store.sweep()
        assert store.get(KEY) == place
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(tiny_disk)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is writable for root")
def test_a_read_only_directory_is_said(tmp_path):
    tmp_path.chmod(0o500)
    try:
        closed(Store(tmp_path / "store").put, KEY, "test", write)
        closed(write_whole, tmp_path / "run.json", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_where_a_directory_should_be_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for root in (tmp_path / "file", tmp_path / "file" / "deeper"):
        closed(Store(root).put, KEY, "test", write)
        closed(write_whole, root / "run.json", "x")
    closed(write_whole, tmp_path / "folder", "x")
    closed(write_whole, tmp_path / ("n" * 300) / "run.json", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_is_written_whole(tmp_path):
    write_whole(tmp_path / "a" / "b.json", "é")
    assert (tmp_path / "a" / "b.json").read_bytes() == "é".encode()
    write_whole(tmp_path / "a" / "b.json", b"\0new")
    assert (tmp_path / "a" / "b.json").read_bytes() == b"\0new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def kept(store, key, days=0.0):
    place = store.unfinished(key)
    place.mkdir(parents=True)
    (place / "step-1").write_text("half")
    for path in (place / "step-1", place):
        at = time.time() - days * 86_400
        os.utime(path, (at, at))
    return place


def test_what_is_finished_or_old_is_swept_from_what_steps_kept(tmp_path):
    store = Store(tmp_path / "store")
    done, failed, fresh, old = (key_of("build", {"n": number}) for number in range(4))
    store.put(done, "build", write)
    store.put(failed, "build", lambda at: (at / "failed.json").write_text("{}") and None)
    places = [kept(store, done), kept(store, failed), kept(store, fresh), kept(store, old, KEPT_DAYS + 1)]
    with store.alone(old):
        store.sweep()
        assert [place.is_dir() for place in places] == [False, True, True, True], "one is still at work on the old"
    store.sweep()
    assert [place.is_dir() for place in places] == [False, True, True, False]
    assert not list((store.root / "locks").iterdir())


def test_what_another_process_removes_meanwhile_is_no_trouble(tmp_path):
    store = Store(tmp_path / "store")
    place = store.unfinished(KEY)
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "gone")  # listed, and not there when it is looked at
    store.sweep()
    assert place.is_symlink()


def test_one_alone_works_on_a_step(tmp_path):
    store = Store(tmp_path / "store")
    turns = []

    def work(number):
        with store.alone(KEY, lambda: turns.append("waits")):
            turns.append(f"{number} in")
            time.sleep(0.05)
            turns.append(f"{number} out")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [turn for turn in turns if turn != "waits"]
    assert len(held) == 6
    assert all(held[place].split()[0] == held[place + 1].split()[0] for place in (0, 2, 4)), held
    assert "waits" in turns


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    store = Store(tmp_path / "store")
    code = "import sys, time; from pathlib import Path; from paretune.build.store import Store\n"
    code += "with Store(Path(sys.argv[1])).alone(sys.argv[2]): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(store.root), KEY], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    process.stdout.close()

    def refuse():
        raise AssertionError("the lock is still held")

    with store.alone(KEY, refuse):
        pass
