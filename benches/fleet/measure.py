#!/usr/bin/env python3
"""What plan, part and join cost by themselves, as ratios within one run (DESIGN.md, "Work for several workers").

    measure.py PROGRAM [limited] [uneven] [parts]      4 GiB free in TMPDIR; `limited` starts Ceph's gateway

limited   a source behind a proxy that gives each connection 4 MiB/s, 1, 2, 4 and 8 workers: T1 / (P * TP)
uneven    100 images, from 256 KiB to 64 MiB, two workers: makespan / max(T1 / 2, the longest task)
parts     plan and join of 128 and of 1,280 parts: seconds for each part, against each other
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MIB = 1 << 20
SERVERS = Path(__file__).resolve().parents[2] / "tests" / "servers"


class Bench:
    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        self.env = {**os.environ, "IMGSNAP_STATE": str(folder / "state"), "IMGSNAP_CACHE": str(folder / "cache")}
        self.repos = 0

    def fresh(self):
        self.repos += 1
        self.env["IMGSNAP_REPO"] = str(self.folder / f"repo{self.repos}")
        self.call("init")

    def call(self, *args, **more):
        done = subprocess.run([self.program, "--json", *map(str, args)], env={**self.env, **more}, check=True,
                              capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[0]) if done.stdout.strip() else None

    def work(self, plan, workers, **more):
        """Does all tasks, the largest first. Returns the seconds of all, and those of each."""
        def one(task):
            begun = time.monotonic()
            self.call("--threads", 1, "--no-cache", "part", plan["plan"], task["task"], **more)
            return time.monotonic() - begun

        begun = time.monotonic()
        with ThreadPoolExecutor(workers) as pool:
            each = list(pool.map(one, plan["tasks"]))
        return time.monotonic() - begun, each


def noise(path, size, seed):
    chance = random.Random(seed)
    with open(path, "wb") as file:
        for begin in range(0, size, 16 * MIB):
            file.write(chance.randbytes(min(16 * MIB, size - begin)))


def limit(port, rate):
    """Listens on a port of its own, and gives each connection to `port` so many bytes a second."""
    listener = socket.create_server(("127.0.0.1", 0))

    def forward(source, target, rate):
        begun, sent = time.monotonic(), 0
        try:
            while data := source.recv(1 << 16):
                if rate:
                    # What was not used a moment ago is not saved up.
                    begun = max(begun, time.monotonic() - sent / rate - 0.05)
                    sent += len(data)
                    time.sleep(max(0.0, begun + sent / rate - time.monotonic()))
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def serve():
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=forward, args=(client, server, None), daemon=True).start()
            threading.Thread(target=forward, args=(server, client, rate), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def limited(bench):
    gateway = bench.folder / "gateway"
    owner = {**os.environ, "IMGSNAP_TEST_OWNER": str(os.getpid())}
    script = str(SERVERS / "radosgw.sh")
    subprocess.run([script, "start", str(gateway)], env=owner, check=True)
    try:
        subprocess.run([script, "bucket", str(gateway), "bench-images"], check=True)
        server = dict(line.split("=", 1) for line in (gateway / "env").read_text().splitlines())
        noise(bench.folder / "vm.img", 256 * MIB, 1)
        bench.fresh()
        bench.call("snapshot", bench.folder / "vm.img")
        image = "s3://bench-images/vm.img"
        bench.call("restore", "vm@1", "-o", image, **server)
        proxy = limit(int(server["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]), 4 * MIB)
        behind = {**server, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy}"}
        first = None
        for workers in (1, 2, 4, 8):
            bench.fresh()
            plan = bench.call("plan", image, "--part-size", "8M", **behind)
            seconds, _ = bench.work(plan, workers, **behind)
            bench.call("join", plan["plan"], **behind)
            first = first or seconds
            print(f"limited: {workers} workers {seconds:.1f} s, T1/(P*TP) {first / (workers * seconds):.2f}", flush=True)
    finally:
        subprocess.run([script, "stop", str(gateway)], check=True)


def uneven(bench):
    chance = random.Random(5)
    for index in range(100):
        size = int(min(64 * MIB, max(256 * 1024, chance.lognormvariate(15.5, 1.2))))
        noise(bench.folder / f"uneven{index}.img", size, index)
    images = sorted(bench.folder.glob("uneven*.img"))
    for round in range(3):
        alone = None
        for workers in (1, 2):
            bench.fresh()
            begun = time.monotonic()
            plan = bench.call("plan", *images, "--source-held", "bench", "--part-size", "8M")
            planned = time.monotonic()
            seconds, each = bench.work(plan, workers)
            done = time.monotonic()
            bench.call("join", plan["plan"])
            alone = alone or seconds
        bound = max(alone / 2, max(each))
        print(f"uneven {round}: {len(plan['tasks'])} tasks, alone {alone:.1f} s, two {seconds:.1f} s, "
              f"makespan / bound {seconds / bound:.2f}; plan {planned - begun:.1f} s, join {time.monotonic() - done:.1f} s",
              flush=True)


def parts(bench):
    for round in range(3):
        each = []
        for count in (128, 1280):
            image = bench.folder / f"parts{count}.img"
            with open(image, "wb") as file:
                file.truncate(count * MIB)
                for part in range(count):
                    file.seek(part * MIB)
                    file.write(random.Random(part).randbytes(8192))
            bench.fresh()
            begun = time.monotonic()
            plan = bench.call("plan", image, "--source-held", "bench", "--part-size", "1M")
            planned = time.monotonic() - begun
            bench.work(plan, 4)
            begun = time.monotonic()
            bench.call("join", plan["plan"])
            joined = time.monotonic() - begun
            each.append((planned + joined) / count)
            print(f"parts {round}: {count}: plan {planned:.3f} s, join {joined:.3f} s", flush=True)
        print(f"parts {round}: a part of 1,280 against one of 128: {each[1] / each[0]:.2f}", flush=True)


def main():
    wanted = sys.argv[2:] or ["limited", "uneven", "parts"]
    cpu = next(line for line in open("/proc/cpuinfo") if line.startswith("model name"))
    print(cpu.split(":")[1].strip(), os.cpu_count(), flush=True)
    with tempfile.TemporaryDirectory(prefix="imgsnap-fleet-") as folder:
        for name in wanted:
            place = Path(folder) / name
            place.mkdir()
            {"limited": limited, "uneven": uneven, "parts": parts}[name](Bench(sys.argv[1], place))


if __name__ == "__main__":
    main()
