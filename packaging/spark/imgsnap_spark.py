"""Snapshots, verifications and restores of many disk images by the workers of a Spark cluster.

    spark-submit --files imgsnap imgsnap_spark.py snapshot 'hdfs://nn/images/.snapshot/n1/*.img' --repo s3://b/r
    spark-submit --files imgsnap imgsnap_spark.py verify --repo s3://b/r
    spark-submit --files imgsnap imgsnap_spark.py restore vm@latest -o /shared/vm.img --repo s3://b/r

    from imgsnap_spark import Fleet
    Fleet(spark, "s3://b/r").snapshot(["hdfs://nn/images/*.img"])

The program makes the plan, does its tasks and joins what they made; this script spreads the tasks. Whatever fails is
tried again by Spark, as often as `spark.task.maxFailures` says; what fails for good is told, and holds up nothing
else. If the driver dies, `imgsnap join PLAN` on any host, or the same plan given to `finish`, goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import uuid

from pyspark import SparkFiles, TaskContext
from pyspark.sql import SparkSession

# What the program ends with: done, damage, busy, no key, no other try would do it either.
DONE, DAMAGE, BUSY, KEY, HOPELESS = 0, 3, 4, 5, 6
# Credentials and keys go to the workers in the environment of their executors, never on a command line.
PASSED_ON = ("AWS_", "AZURE_", "GOOGLE_", "HADOOP_", "KRB5", "IMGSNAP_KEY", "IMGSNAP_PASSWORD")


class Failed(Exception):
    """The program failed; the message is its own."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def call(program, arguments, env=None):
    """Runs the program. Returns what it prints, decoded; raises `Failed` with its line of error."""
    done = subprocess.run([program, "--json", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env={**os.environ, **(env or {})})
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    printed = printed[0] if len(printed) == 1 else printed
    if done.returncode != DONE and not printed:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise Failed(done.returncode, lines[-1].removeprefix("imgsnap: error: "))
    return printed


def work(line, repo, plan, program, env, tries):
    """Does one task on a worker. Returns what became of it; raises for what another try may mend."""
    context = TaskContext.get()
    # The number of an attempt means nothing to the program, and is unique in the application only.
    attempt = f"{uuid.uuid4()}.{context.stageId()}.{context.taskAttemptId()}"
    path = program if os.path.isabs(program) else SparkFiles.get(program)
    begun = time.time()
    try:
        done = call(path, ["--repo", repo, "--no-cache", "part", plan, str(line["task"])],
                    {**env, "IMGSNAP_ATTEMPT": attempt})
    except Failed as failed:
        is_final = failed.code in (DAMAGE, KEY, HOPELESS) or context.attemptNumber() + 1 >= tries
        if not is_final:
            raise
        return {"task": line["task"], "image": line.get("image"), "error": str(failed), "code": failed.code}
    return {**done, "seconds": time.time() - begun}


class Fleet:
    """A repository, and a cluster that works on it.

    `program` is the path of imgsnap on this host; the workers use the file of that name that came with the job
    (`--files`), or the same path if it is absolute and `everywhere` is set. `tell` is given lines of progress."""

    def __init__(self, spark, repo, program=None, everywhere=False, tell=None):
        self.spark, self.repo = spark, repo
        self.program = program or SparkFiles.get("imgsnap")
        self.remote = self.program if everywhere else os.path.basename(self.program)
        self.tell = tell or (lambda line: None)
        self.env = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}

    def call(self, *arguments):
        """Runs the program on this host."""
        return call(self.program, ["--repo", self.repo, *map(str, arguments)])

    def snapshot(self, images, options=(), hdfs_snapshot=None):
        """Takes a snapshot of each image; patterns are expanded by the program. Returns one object for each: with
        `state` joined, unchanged or failed."""
        if hdfs_snapshot:
            with HdfsSnapshot(self.spark, images, hdfs_snapshot) as pinned:
                return self.snapshot(pinned, options)
        return self.finish(self.call("plan", *options, "--", *images))

    def verify(self, name=None, options=()):
        """Verifies the repository, or one image. Returns what `imgsnap verify --json` prints."""
        return self.finish(self.call("plan", "--verify", *(["--name", name] if name else []), *options))

    def restore(self, reference, target, options=()):
        """Restores a snapshot to a file in a folder that all workers see."""
        return self.finish(self.call("plan", "--restore", reference, "-o", target, *options))

    def finish(self, plan):
        """Does what is left of a plan, which `imgsnap plan --json` or `plan show --json` printed."""
        told = [{"image": one["image"], "state": "failed", "message": one["message"]} for one in plan.get("failed", [])]
        told += [{**one, "state": "unchanged"} for one in plan.get("unchanged", [])]
        if not plan.get("plan"):
            return told
        shown = self.call("plan", "show", plan["plan"])
        tasks = [task for task in shown["tasks"] if not task["done"]]
        errors, joined = {}, {}
        thread, outcome = self.start(plan["plan"], tasks)
        is_of_images = "images" in shown
        pause = min(10.0, 1.0 + len(plan["tasks"]) / 500)
        while thread.is_alive():
            thread.join(pause)
            if thread.is_alive():
                self.join_complete(plan["plan"], joined)
        for done in outcome.get("results", []):
            if "error" in done:
                errors.setdefault(done.get("image"), []).append(f"task {done['task']}: {done['error']}")
        if "error" in outcome and not errors:
            errors[None] = [outcome["error"]]
        try:
            last = self.call("join", plan["plan"])
        except Failed as failed:
            # It may be over: each image was joined as soon as it was there.
            last = [] if joined else {"state": "failed", "message": str(failed)}
        if not is_of_images:
            return {**(last if isinstance(last, dict) else {"results": last}), "errors": sum(errors.values(), [])}
        if isinstance(last, dict):
            last = [{"image": None, **last}]
        joined.update({one["image"]: one for one in last if one.get("image") not in joined})
        for name, one in joined.items():
            if one["state"] != "joined":
                one["message"] = "; ".join(errors.get(name) or errors.get(None) or [one.get("message", "not done")])
        return told + list(joined.values())

    def start(self, plan, tasks):
        """Begins the job, in a thread. Returns it, and what will have its results or why there are none."""
        outcome = {}
        spark = self.spark.sparkContext
        tries = int(spark.getConf().get("spark.task.maxFailures", "4"))
        # In local mode there are no second tries.
        tries = 1 if spark.master.startswith("local[") or spark.master == "local" else tries
        repo, remote, env = self.repo, self.remote, self.env

        def run(line):
            return work(json.loads(line), repo, plan, remote, env, tries)

        def job():
            try:
                spark.setJobDescription(f"imgsnap plan {plan}")
                outcome["results"] = located(spark, tasks).map(run).collect() if tasks else []
            except Exception as error:  # whatever Spark raises
                outcome["error"] = str(error).strip().splitlines()[-1]

        thread = threading.Thread(target=job, daemon=True)
        thread.start()
        return thread, outcome

    def join_complete(self, plan, joined):
        """Joins each image whose last part is there, and tells how far the plan is."""
        try:
            shown = self.call("plan", "show", plan)
            self.tell(f"plan {plan[:8]}: {shown['done']} of {len(shown['tasks'])} tasks, {len(joined)} images joined")
            left = {task.get("image") for task in shown["tasks"] if not task["done"]}
            for image in shown.get("images", []):
                if image["image"] not in left and image["image"] not in joined and image["state"] == "pending":
                    for one in self.call("join", plan, "--image", image["image"]):
                        if one["state"] == "joined":
                            joined[one["image"]] = one
        except Failed as failed:
            # It is tried again, in the end by the last join.
            self.tell(str(failed))


def located(spark, tasks):
    """The tasks, one partition each, the largest first, near their data where the plan says where that is."""
    lines = [json.dumps(task) for task in tasks]
    if any(task.get("hosts") for task in tasks):
        try:
            return preferring(spark, [(line, task.get("hosts") or []) for line, task in zip(lines, tasks)])
        except Exception as error:  # private names of Spark, which a version may not have
            print(f"imgsnap: no preferred locations: {error}", file=sys.stderr)
    return spark.parallelize(lines, len(lines))


def preferring(spark, items):
    from pyspark.core.rdd import RDD
    from pyspark.serializers import UTF8Deserializer

    jvm = spark._jvm

    def seq(values):
        array = jvm.java.util.ArrayList()
        for value in values:
            array.add(value)
        return jvm.scala.jdk.javaapi.CollectionConverters.asScala(array).toSeq()

    tag = jvm.scala.reflect.ClassTag.apply(jvm.java.lang.Class.forName("java.lang.String"))
    pairs = seq([jvm.scala.Tuple2(line, seq(hosts)) for line, hosts in items])
    return RDD(spark._jsc.sc().makeRDD(pairs, tag).toJavaRDD(), spark, UTF8Deserializer())


class HdfsSnapshot:
    """A snapshot of the folder of images in HDFS, which an administrator has allowed; dropped in the end. It keeps
    its name from one run to the next, so that the images keep theirs."""

    def __init__(self, spark, images, name):
        folders = {image.rsplit("/", 1)[0] for image in images}
        if len(folders) != 1:
            raise ValueError("one snapshot is of one folder")
        self.folder, self.name = folders.pop(), name
        self.images = [f"{self.folder}/.snapshot/{name}/{image.rsplit('/', 1)[1]}" for image in images]
        self.path = spark.sparkContext._jvm.org.apache.hadoop.fs.Path(self.folder)
        self.files = self.path.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration())

    def __enter__(self):
        self.files.createSnapshot(self.path, self.name)
        return self.images

    def __exit__(self, *_):
        self.files.deleteSnapshot(self.path, self.name)


def main():
    parser = argparse.ArgumentParser(description="imgsnap on Spark; what is not said here goes to imgsnap plan")
    parser.add_argument("verb", choices=["snapshot", "verify", "restore", "finish"])
    parser.add_argument("what", nargs="*", help="images or patterns, a snapshot, or a plan")
    parser.add_argument("--repo", required=True)
    parser.add_argument("-o", "--output", help="the file that is restored")
    parser.add_argument("--program", help="imgsnap on this host [default: the one of --files]")
    parser.add_argument("--everywhere", action="store_true", help="it is at that path on each worker, too")
    parser.add_argument("--results", help="write the results there, too: spark-submit mixes them with the progress")
    parser.add_argument("--hdfs-snapshot", metavar="NAME", help="pin the folder of the images by a snapshot of HDFS")
    given, options = parser.parse_known_args()
    spark = SparkSession.builder.appName("imgsnap").getOrCreate()
    fleet = Fleet(spark, given.repo, given.program, given.everywhere, lambda line: print(line, file=sys.stderr))
    try:
        if given.verb == "snapshot":
            results = fleet.snapshot(given.what, options, given.hdfs_snapshot)
        elif given.verb == "verify":
            results = fleet.verify(given.what[0] if given.what else None, options)
        elif given.verb == "restore":
            results = fleet.restore(given.what[0], given.output, options)
        else:
            results = fleet.finish(fleet.call("plan", "show", given.what[0]))
    except Failed as failed:
        sys.exit(f"imgsnap: error: {failed}")
    finally:
        spark.stop()
    results = results if isinstance(results, list) else [results]
    lines = [json.dumps(result) for result in results]
    print(*lines, sep="\n")
    if given.results:
        with open(given.results, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    sys.exit(any(result.get("state") == "failed" or result.get("errors") for result in results))


if __name__ == "__main__":
    main()
