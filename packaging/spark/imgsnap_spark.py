"""Snapshots, verifications and restores of many disk images by the workers of a Spark cluster.

    spark-submit --files imgsnap imgsnap_spark.py snapshot 'hdfs://nn/images/.snapshot/n1/*.img' --repo s3://b/r
    spark-submit --files imgsnap imgsnap_spark.py verify --repo s3://b/r
    spark-submit --files imgsnap imgsnap_spark.py restore vm@latest -o /shared/vm.img --repo s3://b/r
    spark-submit --files imgsnap imgsnap_spark.py restore vm@latest db@3 -o hdfs://nn/images/ --repo s3://b/r

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
# Credentials and keys that a worker has not got are those of the driver; never on a command line.
PASSED_ON = ("AWS_", "AZURE_", "GOOGLE_", "HADOOP_USER_NAME", "IMGSNAP_KEY", "IMGSNAP_PASSWORD")


class Failed(Exception):
    """The program failed; the message is its own."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def call(program, arguments, env=None):
    """Runs the program. Returns the objects that it prints; raises `Failed` where it says what went wrong."""
    # What is set here counts, all of a kind: half of it with half of another's would be nobody's.
    ours = {prefix for prefix in PASSED_ON if any(name.startswith(prefix) for name in os.environ)}
    passed = {name: value for name, value in (env or {}).items() if not name.startswith(tuple(ours))}
    done = subprocess.run([program, "--json", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env={**passed, **os.environ})
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    for error in (one["error"] for one in printed if set(one) == {"error"}):
        raise Failed(done.returncode, error["message"])
    if done.returncode != DONE and not printed:
        raise Failed(done.returncode, (done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return printed


def work(line, repo, plan, program, env, tries):
    """Does one task on a worker. Returns what became of it; raises for what another try may mend."""
    context = TaskContext.get()
    # The number of an attempt means nothing to the program, and is unique in the application only.
    attempt = f"{uuid.uuid4()}.{context.stageId()}.{context.taskAttemptId()}"
    path = program if os.path.isabs(program) else SparkFiles.get(program)
    begun = time.time()
    try:
        [done] = call(path, ["--repo", repo, "--no-cache", *(line.get("verb") or ["part", plan, str(line["task"])])],
                      {**env, "IMGSNAP_ATTEMPT": attempt})
    except Failed as failed:
        is_final = failed.code in (DAMAGE, KEY, HOPELESS) or context.attemptNumber() + 1 >= tries
        if not is_final:
            raise
        return {"task": line["task"], "image": line.get("image"), "error": str(failed), "code": failed.code}
    return {**done, "task": line["task"], "seconds": time.time() - begun}


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
        return call(self.program, ["--repo", self.repo, *map(str, arguments)])

    def snapshot(self, images, options=(), hdfs_snapshot=None):
        """Takes a snapshot of each image, or pattern. Returns an object for each: `state` joined, unchanged, failed."""
        if hdfs_snapshot:
            with HdfsSnapshot(self.spark, images, hdfs_snapshot) as pinned:
                return self.snapshot(pinned, options)
        return self.finish(*self.call("plan", *options, "--", *images))

    def verify(self, name=None, options=()):
        """Verifies the repository, or one image. Returns what `imgsnap verify --json` prints."""
        return self.finish(*self.call("plan", "--verify", *(["--name", name] if name else []), *options))

    def restore(self, reference, target, options=()):
        """Restores a snapshot to a file in a folder that all workers see."""
        return self.finish(*self.call("plan", "--restore", reference, "-o", target, *options))

    def restore_each(self, references, folder):
        """Restores many snapshots, each whole by one worker, to NAME.img in a folder: HDFS takes a file from one
        writer. `None` is the newest one of each image. Returns one object for each."""
        if references is None:
            references = [f"{name}@latest" for name in sorted({one["name"] for one in self.call("list")})]
        target = {ref: f"{folder.rstrip('/')}/{ref.split('@')[0]}.img" for ref in references}
        tasks = [{"task": number, "image": ref, "verb": ["restore", ref, "-o", target[ref]]}
                 for number, ref in enumerate(references)]
        failed = self.do(None, tasks, {})
        why = {ref: "; ".join(failed.get(ref) or failed.get(None) or []) for ref in references}
        return [{"ref": ref, "target": target[ref], "state": "failed" if why[ref] else "joined", "message": why[ref]}
                for ref in references]

    def finish(self, plan):
        """Does what is left of a plan, which `imgsnap plan --json` or `plan show --json` printed."""
        told = [{"image": one["image"], "state": "failed", "message": one["message"]} for one in plan.get("failed", [])]
        told += [{**one, "state": "unchanged"} for one in plan.get("unchanged", [])]
        if not plan.get("plan"):
            return told
        [shown] = self.call("plan", "show", plan["plan"])
        tasks = [task for task in shown["tasks"] if not task["done"]]
        joined, is_of_images = {}, "images" in shown
        errors = self.do(plan["plan"], tasks, joined)
        # Whatever became of the job: what is whole is joined.
        why, last = "not done", []
        try:
            last = self.call("join", plan["plan"])
        except Failed as failed:
            why = str(failed)
            last = [] if is_of_images else [{"state": "failed", "message": why}]
        if not is_of_images:
            return {**last[0], "errors": sum(errors.values(), [])}
        joined = {**{one["image"]: one for one in last}, **joined}
        for image in shown["images"]:
            one = joined.setdefault(image["image"], {"image": image["image"], "state": "failed"})
            if one["state"] != "joined":
                one["message"] = "; ".join(errors.get(image["image"]) or errors.get(None) or [one.get("message", why)])
        return told + list(joined.values())

    def do(self, plan, tasks, joined):
        """Does the tasks, and joins images meanwhile. Returns by image what went wrong; by None what did so with all."""
        failed = {}
        # Those that failed for what may pass are done once more: an executor that was lost counts as a try, too.
        for _ in range(2):
            again = [task for task in tasks if task["task"] in failed] if failed else tasks
            thread, outcome = self.start(plan, again)
            while thread.is_alive():
                thread.join(min(10.0, 1.0 + len(tasks) / 500))
                if plan and thread.is_alive():
                    self.join_complete(plan, joined)
            if "error" in outcome:
                return {None: [outcome["error"]]}
            failed = {done["task"]: done for done in outcome["results"] if "error" in done}
            if not any(done["code"] not in (DAMAGE, HOPELESS) for done in failed.values()):
                break
        errors = {}
        for done in failed.values():
            errors.setdefault(done.get("image"), []).append(f"task {done['task']}: {done['error']}")
        return errors

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
                spark.setJobDescription(f"imgsnap plan {plan}" if plan else "imgsnap restore")
                outcome["results"] = located(spark, tasks).map(run).collect() if tasks else []
            except Exception as error:  # whatever Spark raises
                outcome["error"] = (str(error).strip().splitlines() or [repr(error)])[-1]

        thread = threading.Thread(target=job, daemon=True)
        thread.start()
        return thread, outcome

    def join_complete(self, plan, joined):
        """Joins each image whose last part is there, and tells how far the plan is."""
        try:
            [shown] = self.call("plan", "show", plan)
            self.tell(f"plan {plan[:8]}: {shown['done']} of {len(shown['tasks'])} tasks, {len(joined)} images joined")
            left = {task.get("image") for task in shown["tasks"] if not task["done"]}
            for image in shown.get("images", []):
                if image["image"] not in left and image["image"] not in joined and image["state"] == "pending":
                    for one in self.call("join", plan, "--image", image["image"]):
                        if one["state"] == "joined":
                            joined[one["image"]] = one
        except Exception as error:  # it is tried again, in the end by the last join
            self.tell(str(error))


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
    seq = lambda values: jvm.scala.jdk.javaapi.CollectionConverters.asScala(jvm.java.util.ArrayList(values)).toSeq()
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
        try:
            self.files.createSnapshot(self.path, self.name)
        except Exception as error:  # whatever Hadoop raises
            why = (str(error).strip().splitlines() or [repr(error)])[1:2] or [repr(error)]
            raise Failed(1, f"cannot make the snapshot {self.name} of {self.folder}: {why[0]}; one that a driver has left "
                            "is dropped with hdfs dfs -deleteSnapshot, if no plan reads it") from None
        return self.images

    def __exit__(self, *_):
        try:
            self.files.deleteSnapshot(self.path, self.name)
        except Exception as error:  # what was taken is taken
            print(f"imgsnap: warning: the snapshot {self.name} of {self.folder} stays: {error}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description="imgsnap on Spark; what is not said here goes to imgsnap plan")
    parser.add_argument("verb", choices=["snapshot", "verify", "restore", "finish"])
    parser.add_argument("what", nargs="*", help="images or patterns, a snapshot, or a plan")
    parser.add_argument("--repo", required=True)
    parser.add_argument("-o", "--output", help="the file that is restored; FOLDER/ for one file for each snapshot")
    parser.add_argument("--all", action="store_true", help="restore the newest snapshot of each image")
    parser.add_argument("--program", help="imgsnap on this host [default: the one of --files]")
    parser.add_argument("--everywhere", action="store_true", help="it is at that path on each worker, too")
    parser.add_argument("--results", help="write the results there, too: spark-submit mixes them with the progress")
    parser.add_argument("--hdfs-snapshot", metavar="NAME", help="pin the folder of the images by a snapshot of HDFS")
    given, options = parser.parse_known_intermixed_args()
    if (given.verb != "verify" and not given.what and not given.all) or (given.verb == "restore" and not given.output):
        parser.error("images, a snapshot with --output, or a plan?")
    spark = SparkSession.builder.appName("imgsnap").getOrCreate()
    fleet = Fleet(spark, given.repo, given.program, given.everywhere, lambda line: print(line, file=sys.stderr))
    try:
        if given.verb == "snapshot":
            results = fleet.snapshot(given.what, options, given.hdfs_snapshot)
        elif given.verb == "verify":
            results = fleet.verify(given.what[0] if given.what else None, options)
        elif given.verb == "restore" and (given.all or given.output.endswith("/")):
            results = fleet.restore_each(None if given.all else given.what, given.output)
        elif given.verb == "restore":
            results = fleet.restore(given.what[0], given.output, options)
        else:
            results = fleet.finish(*fleet.call("plan", "show", given.what[0]))
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
    # What somebody has to look at.
    wrong = [result for result in results if result.get("state", "joined") not in ("joined", "unchanged")
             or any(result.get(key) for key in ("errors", "damaged", "lost", "unchecked"))]
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
