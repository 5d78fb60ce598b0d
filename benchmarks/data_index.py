"""Rehearse the paper's amount of data: 8.3 million captioned images in tar shards.

    python benchmarks/data_index.py --folder /tmp/rehearsal
    python benchmarks/data_index.py --shards 20 --check        # a minute: a small one that compares with tarfile

Writes synthetic shards (tiny PNGs of few colours with captions), indexes them, opens them in fresh processes, resumes
at random positions in fresh processes, and reads samples in training order. Before each of these the system is asked to
forget what it has of the files in memory. Prints a table and, last, one line of JSON. The shards are removed afterwards
(`--keep` leaves them).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

POSITIONS = 10


def write_shard(path: Path, number: int, count: int) -> None:
    """Write one shard of real members: a 16x16 PNG and a caption each, all headers by hand."""
    from PIL import Image

    generator = random.Random(number)
    pictures = []
    for _ in range(64):
        data = io.BytesIO()
        colour = tuple(generator.randrange(256) for _ in range(3))
        Image.new("RGB", (16, 16), colour).save(data, "PNG")
        pictures.append((data.getvalue(), "a square of the colour #{:02x}{:02x}{:02x}".format(*colour)))
    headers: dict[tuple[str, int], bytes] = {}
    blocks = []
    for row in range(count):
        picture, words = pictures[row % 64]
        for suffix, data in (("png", picture), ("txt", f"{words}, number {row}".encode())):
            blocks += [_header(headers, f"{row:08d}", suffix, len(data)), data, bytes(-len(data) % 512)]
    blocks.append(bytes(1024))
    path.write_bytes(b"".join(blocks))


def _header(known: dict[tuple[str, int], bytes], key: str, suffix: str, size: int) -> bytes:
    if (suffix, size) not in known:
        info = tarfile.TarInfo("0" * 8 + "." + suffix)
        info.size = size
        known[suffix, size] = info.tobuf(tarfile.USTAR_FORMAT)
    template = bytearray(known[suffix, size])
    total = int(template[148:154], 8) - 8 * ord("0") + sum(key.encode())
    template[:8] = key.encode()
    template[148:154] = b"%06o" % total
    return bytes(template)


def generate(folder: Path, shards: int, count: int, distinct: int) -> None:
    """Write `distinct` shards and link them under the names of all `shards`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        path = folder / f"pairs-{number:05d}.tar"
        if number < distinct:
            write_shard(path, number, count)
        else:
            os.link(folder / f"pairs-{number % distinct:05d}.tar", path)


def probe(folder: Path, task: str, argument: int) -> dict[str, Any]:
    """What a fresh process measures: opening, then resuming at a position or reading on from it."""
    started = time.perf_counter()
    from vargpt.data.sources.policy import CheckedSource
    from vargpt.data.sources.protocol import shuffled
    from vargpt.data.sources.tar import TarSource

    imported = time.perf_counter()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    source = CheckedSource(TarSource("pairs", sorted(folder.glob("*.tar"))))
    opened = time.perf_counter()
    result: dict[str, Any] = {
        "import_s": imported - started,
        "open_s": opened - imported,
        "count": source.count("draw"),
    }
    result |= {"problems": len(source.source.problems)}  # type: ignore[attr-defined]
    if task != "open":
        order = shuffled(source, "draw", seed=1)
        source.sample("draw", order.at(argument), random.Random(0), 0.3)
        result["first_s"] = time.perf_counter() - opened
    if task == "read":
        begin = time.perf_counter()
        for position in range(argument + 1, argument + 1 + 20_000):
            source.sample("draw", order.at(position), random.Random(position), 0.3)
        result["samples_per_s"] = 20_000 / (time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**result, "rss_mb": peak, "base_rss_mb": base}


def forget(folder: Path) -> None:
    """Take the files out of the page cache."""
    for path in (*folder.glob("*.tar"), *folder.glob(".vargpt-index/*")):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def fresh(folder: Path, task: str, argument: int = 0) -> dict[str, Any]:
    """Run `probe` in a new process, from cold files."""
    forget(folder)
    command = [sys.executable, __file__, "--folder", str(folder), "--probe", task, str(argument)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a probe failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def check(folder: Path, count: int) -> None:
    """Compare what the index says of the first shard with what `tarfile` reads in it."""
    from vargpt.data.sources.tar import TarSource

    path = folder / "pairs-00000.tar"
    source = TarSource("pairs", [path])
    with tarfile.open(path) as file:
        captions = {m.name: file.extractfile(m).read().decode() for m in file if m.name.endswith(".txt")}  # type: ignore[union-attr]
    assert len(captions) == count == source.count("draw"), (len(captions), source.count("draw"))
    for index in range(0, count, 7):
        sample = source.sample("draw", index, random.Random(0), 0.0)
        key = sample.key.partition("/")[2]
        assert sample.conversation.turns[0].content[0].text == f"draw {captions[key + '.txt']}"  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/vargpt-rehearsal"), help="is made, and removed at the end"
    )
    parser.add_argument("--shards", type=int, default=830)
    parser.add_argument("--count", type=int, default=10_000, help="captioned images per shard")
    parser.add_argument(
        "--distinct", type=int, help="shards that are written; the others are hard links (default: all)"
    )
    parser.add_argument("--check", action="store_true", help="compare one shard with the standard library's reading")
    parser.add_argument("--keep", action="store_true", help="leave the shards where they are")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(probe(options.folder, options.probe[0], int(options.probe[1]))))
        return
    if options.folder.exists():
        raise SystemExit(f"{options.folder} exists: name another folder, or remove it")
    try:
        print_results(measure(options))
    finally:
        if not options.keep:
            shutil.rmtree(options.folder, ignore_errors=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers, by name."""
    distinct = min(options.distinct or options.shards, options.shards)
    began = time.perf_counter()
    generate(options.folder, options.shards, options.count, distinct)
    result: dict[str, Any] = {"shards": options.shards, "distinct_shards": distinct}
    result |= {"pairs": options.shards * options.count, "write_s": time.perf_counter() - began}
    result["shard_bytes"] = sum(path.stat().st_size for path in options.folder.glob("*.tar"))
    if options.check:
        check(options.folder, options.count)
        shutil.rmtree(options.folder / ".vargpt-index")
    first = fresh(options.folder, "open")
    assert first["count"] == result["pairs"] and not first["problems"], first
    result |= {"index_s": first["open_s"], "index_rss_mb": first["rss_mb"]}
    result["index_bytes"] = sum(path.stat().st_size for path in (options.folder / ".vargpt-index").iterdir())
    opens = [fresh(options.folder, "open") for _ in range(3)]
    result |= {"open_s": max(run["open_s"] for run in opens), "open_rss_mb": max(run["rss_mb"] for run in opens)}
    result["base_rss_mb"] = opens[0]["base_rss_mb"]
    generator = random.Random(0)
    resumes = [fresh(options.folder, "resume", generator.randrange(100 * result["pairs"])) for _ in range(POSITIONS)]
    result["resume_s"] = max(run["open_s"] + run["first_s"] for run in resumes)
    result["resume_first_sample_s"] = max(run["first_s"] for run in resumes)
    reading = fresh(options.folder, "read", generator.randrange(100 * result["pairs"]))
    result |= {"samples_per_s": reading["samples_per_s"], "read_rss_mb": reading["rss_mb"]}
    return result


def print_results(result: dict[str, Any]) -> None:
    """A table, then one line of JSON."""
    rows = [
        ("pairs", f"{result['pairs']:,} in {result['shards']:,} shards ({result['distinct_shards']:,} written)"),
        ("size of the shards", f"{result['shard_bytes'] / 1e9:.1f} GB"),
        ("writing them", f"{result['write_s']:.0f} s"),
        ("indexing, once", f"{result['index_s']:.0f} s ({result['pairs'] / result['index_s']:,.0f} pairs/s)"),
        ("size of the index", f"{result['index_bytes'] / 1e6:.0f} MB"),
        ("opening, fresh process", f"{result['open_s']:.2f} s (worst of 3)"),
        ("opening and first sample", f"{result['resume_s']:.2f} s (worst of {POSITIONS} random positions)"),
        ("reading in training order", f"{result['samples_per_s']:,.0f} samples/s, decoded, one thread"),
        ("memory, imports alone", f"{result['base_rss_mb']:.0f} MB"),
        ("memory at most, opened", f"{result['open_rss_mb']:.0f} MB"),
        ("memory at most, indexing", f"{result['index_rss_mb']:.0f} MB"),
        ("memory at most, 20,000 samples", f"{result['read_rss_mb']:.0f} MB"),
    ]
    for name, value in rows:
        print(f"{name:32} {value}")
    print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in result.items()}))


if __name__ == "__main__":
    main()
