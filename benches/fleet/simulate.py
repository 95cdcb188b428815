#!/usr/bin/env python3
"""A SIMULATION of fleets that no machine here can hold: images, tasks, workers, stragglers and failures, and a store that takes only so many
requests a second. Nothing here was run on a cluster; what a task takes was measured on one machine (`measured` below, or --measured FILE: a
line of seconds for each task, as in the results of imgsnap_spark.py).

    simulate.py [--workers 10,100,1000] [--images 1000] [--seed 1] [--measured FILE]

For each number of workers: the makespan, and how often it is max(total / workers, longest task), below which no order of tasks can come."""

import argparse
import heapq
import random
import statistics

# Seconds that a task takes without its data (start of the program, opening the repository), and for each GiB: measured on an Intel Xeon,
# 2026-11-29, a release build with one thread (zstd:3, half of the image noise), image and repository in folders of the same machine. Of other
# places --measured tells.
START, PER_GIB = 0.01, 1.7
# Requests to the store in a task, at its start and end; and what it takes of them in a second.
REQUESTS, LIMIT = 14, 3500
STRAGGLERS, SLOWDOWN = 0.02, 4.0
FAILURES, TRIES = 0.005, 4
CELL_GIB = 8.0


def fleet(images, some):
    """Sizes of images in GiB: many small ones, and some large."""
    return [min(2048.0, max(1.0, some.lognormvariate(3.2, 1.1))) for _ in range(images)]


def tasks_of(sizes, some, measured):
    """Seconds of each task, the largest first, as a plan numbers them."""
    tasks = []
    for size in sizes:
        while size > 0:
            cell = min(CELL_GIB, size)
            size -= cell
            seconds = some.choice(measured) * cell / CELL_GIB if measured else START + PER_GIB * cell * some.gauss(1, 0.1)
            tasks.append(max(START, seconds))
    return sorted(tasks, reverse=True)


def simulate(tasks, workers, some):
    """When the last task has ended, and how many seconds of work there were in all."""
    free = [(0.0, worker) for worker in range(workers)]
    heapq.heapify(free)
    store, end, work, longest = 0.0, 0.0, 0.0, 0.0
    waiting = [(-seconds, index, 1) for index, seconds in enumerate(tasks)]
    heapq.heapify(waiting)
    while waiting:
        negative, index, attempt = heapq.heappop(waiting)
        seconds = -negative
        at, worker = heapq.heappop(free)
        taken = seconds * (SLOWDOWN if some.random() < STRAGGLERS else 1.0)
        has_failed = some.random() < FAILURES and attempt < TRIES
        if has_failed:
            taken *= some.random()
        # The store answers requests in the order in which they come.
        store = max(store, at) + REQUESTS / LIMIT
        done = max(at, store - REQUESTS / LIMIT) + taken
        heapq.heappush(free, (done, worker))
        end, work, longest = max(end, done), work + taken, max(longest, taken)
        if has_failed:
            heapq.heappush(waiting, (negative, index, attempt + 1))
    return end, work, longest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", default="10,100,1000")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--measured")
    given = parser.parse_args()
    measured = []
    if given.measured:
        with open(given.measured, encoding="utf-8") as file:
            measured = [float(line) for line in file if line.strip()]
    some = random.Random(given.seed)
    sizes = fleet(given.images, some)
    tasks = tasks_of(sizes, some, measured)
    print(f"SIMULATION: {given.images} images, {sum(sizes) / 1024:.1f} TiB, {len(tasks)} tasks, median {statistics.median(tasks):.1f} s")
    print(f"{'workers':>8} {'makespan':>10} {'bound':>10} {'ratio':>6}")
    for workers in map(int, given.workers.split(",")):
        end, work, longest = simulate(tasks, workers, some)
        bound = max(work / workers, longest)
        print(f"{workers:>8} {end:>9.0f}s {bound:>9.0f}s {end / bound:>6.2f}")


if __name__ == "__main__":
    main()
