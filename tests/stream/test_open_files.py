"""Few open files are allowed: every shard is read nevertheless, or the message says what is needed."""

from pathlib import Path

from tests import warm
from tests.stream.tiny import make

_SCRIPT = """
import gc, os, resource, sys
from hpe.core.errors import UserError
from hpe.stream import Reading, ShardSet, Stream
from hpe.stream.open_files import OpenFiles
from hpe.data.remote_cache import RemoteCache

def read(workers):
    loader = Stream([ShardSet(sys.argv[1])], Reading(size=16, workers=workers)).once(batch=90)
    keys = [key for loaded in loader for key in loaded.batch.keys]
    return len(keys), len(set(keys)), loader.damaged_samples

used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, 4096))
print(read(0), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
for workers in (0, 2):
    gc.collect()  # closes what was open before
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    print(read(workers))
gc.collect()
sets = Stream([ShardSet(sys.argv[1])], Reading(size=16)).sets
files = OpenFiles(sets, RemoteCache.of_node())
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
try:
    files.open(0, 0)
except UserError as error:
    print(error)
for one in taken:
    os.close(one)
"""


def test_with_64_descriptors_90_shards_are_read_and_with_none_left_the_limit_is_named(tmp_path: Path) -> None:
    made = make(tmp_path / "shards", (2,) * 90)
    run = warm.run("-c", _SCRIPT, made.folder)
    assert not run.stderr, run.stderr
    raised, *few, told = run.stdout.splitlines()
    assert raised == "(180, 180, 0) 4096"
    assert few == ["(180, 180, 0)"] * 2
    assert "only 64 files open" in told
    assert "ulimit -n" in told
