//! Fleets of images on real engines: Spark and YARN, on one machine (docs/fleets.md).
//!
//! By default one run on Spark's local cluster; with all servers, workers, nodes and drivers are killed as well.

use crate::kit::{Lab, MIB, Server, is_thorough, noise, skipped};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Images of uneven sizes, and a repository in a folder that all workers see.
struct Fleet {
    lab: Lab,
    images: Vec<(String, Vec<u8>)>,
}

fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

impl Fleet {
    fn new(sizes: &[usize]) -> Self {
        let mut lab = Lab::new("", &BTreeMap::new());
        lab.repo = lab.at("repo");
        lab.done(&["init"]);
        let image = |(index, bytes): (usize, &usize)| {
            let (name, content) = (format!("vm{index}"), noise(index as u64, *bytes));
            lab.write(&format!("{name}.img"), &content);
            (name, content)
        };
        let images = sizes.iter().enumerate().map(image).collect();
        Self { lab, images }
    }

    fn paths(&self) -> Vec<String> {
        self.images.iter().map(|(name, _)| self.lab.at(&format!("{name}.img"))).collect()
    }

    /// Each snapshot with that number is what its image is.
    fn ensure_all(&self, number: u64) {
        for (name, content) in &self.images {
            self.lab.ensure_is(&format!("{name}@{number}"), content);
        }
        assert_eq!(self.lab.done(&["plan", "list"]), "no plans\n");
        self.lab.done(&["verify"]);
    }
}

/// A driver that prints what it did: a line of JSON for each.
struct Driver {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    log: Vec<String>,
}

impl Driver {
    fn start(server: &Server, fleet: &Fleet, args: &[&str]) -> Self {
        let program = env!("CARGO_BIN_EXE_imgsnap");
        let script = packaged("spark/imgsnap_spark.py");
        let mut command = server.command("submit");
        command.args(["--files", program]).arg(script).args(args);
        command.args(["--repo", &fleet.lab.repo, "--program", program]);
        command.env("IMGSNAP_STATE", fleet.lab.path("state-driver"));
        // spark-submit gives a driver its standard output for both.
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, log: Vec::new() }
    }

    /// Waits until some tasks are done, but not all. False if all were before that was seen.
    fn is_midway(&mut self) -> bool {
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            self.log.push(line.clone());
            let Some((_, rest)) =
                line.split_once(": ").filter(|(plan, _)| plan.starts_with("plan "))
            else {
                continue;
            };
            let mut words = rest.split(' ');
            let (done, all) = (words.next(), words.nth(1));
            let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok());
            if let (Some(done), Some(all)) = (number(done), number(all))
                && done > 0
            {
                return done < all;
            }
        }
        panic!("the driver ended: {:#?}", self.log);
    }

    fn end(mut self) -> (Option<i32>, Vec<Value>) {
        self.log.extend(self.lines.by_ref().map_while(Result::ok));
        let code = self.child.wait().unwrap().code();
        let results: Vec<Value> =
            self.log.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        eprintln!("{:#?}", self.log.iter().filter(|l| l.starts_with("plan ")).collect::<Vec<_>>());
        assert!(!results.is_empty(), "{code:?}: {:#?}", self.log);
        (code, results)
    }
}

fn states(results: &[Value]) -> Vec<&str> {
    let mut states: Vec<&str> = results.iter().map(|one| one["state"].as_str().unwrap()).collect();
    states.sort_unstable();
    states
}

const HELD: [&str; 4] = ["--part-size", "1M", "--source-held", "nobody writes to it"];

/// All verbs by one driver, which imports the script.
const EVERY_VERB: &str = r#"
import json, sys
from pyspark.sql import SparkSession
from imgsnap_spark import Fleet
repo, program, target, *images = sys.argv[1:]
spark = SparkSession.builder.getOrCreate()
fleet = Fleet(spark, repo, program)
options = ["--part-size", "1M", "--source-held", "nobody writes to it"]
print(json.dumps(["snapshot", fleet.snapshot(images, options)]))
print(json.dumps(["again", fleet.snapshot(images[:1], options)]))
print(json.dumps(["restore", fleet.restore("vm0@latest", target, ["--part-size", "1M"])]))
print(json.dumps(["each", fleet.restore_each(None, target + "s/")]))
print(json.dumps(["none", fleet.restore_each(["none@1"], target + "s")]))
print(json.dumps(["verify", fleet.verify(None, ["--part-size", "1M"])]))
spark.stop()
"#;

#[test]
fn spark_takes_restores_and_verifies_a_fleet() {
    let Some(server) = Server::start("spark", &["0"]) else { return };
    let fleet = Fleet::new(&[3 * MIB + 300, MIB, 2 * MIB]);
    fleet.lab.write("driver.py", EVERY_VERB.as_bytes());
    std::fs::create_dir(fleet.lab.path("out.imgs")).unwrap();
    let program = env!("CARGO_BIN_EXE_imgsnap");
    let mut command = server.command("submit");
    command.args(["--files", program, "--py-files"]).arg(packaged("spark/imgsnap_spark.py"));
    command.args([&fleet.lab.at("driver.py"), &fleet.lab.repo, program, &fleet.lab.at("out.img")]);
    // One that is not there holds up no other.
    command.args(fleet.paths()).arg(fleet.lab.at("none.img"));
    command.env("IMGSNAP_STATE", fleet.lab.path("state-driver"));
    let out = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    let results: BTreeMap<String, Value> = String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<(String, Value)>(line).ok())
        .collect();
    assert_eq!(results.len(), 6, "{results:#?}: {said}");
    let taken = results["snapshot"].as_array().unwrap();
    assert_eq!(states(taken), ["failed", "joined", "joined", "joined"], "{taken:#?}");
    let failed = taken.iter().find(|one| one["state"] == "failed").unwrap();
    assert!(failed["message"].as_str().unwrap().contains("none.img"), "{failed}");
    assert_eq!(states(results["again"].as_array().unwrap()), ["joined"]);
    assert_eq!(results["restore"]["state"], "joined", "{results:#?}");
    assert_eq!(states(results["each"].as_array().unwrap()), ["joined"; 3], "{results:#?}");
    for (name, content) in &fleet.images {
        assert!(&fleet.lab.read(&format!("out.imgs/{name}.img")) == content, "{name}");
    }
    assert_eq!(states(results["none"].as_array().unwrap()), ["failed"], "{results:#?}");
    assert_eq!(results["verify"]["damaged"], serde_json::json!([]), "{results:#?}");
    assert!(fleet.lab.read("out.img") == fleet.images[0].1);
    fleet.ensure_all(1);
}

/// Workers and drivers that are killed: the rest goes on, and a second driver does what is left.
#[test]
fn whatever_of_spark_is_killed_the_fleet_is_taken() {
    if !is_thorough() {
        return skipped("spark", "workers are killed only with all servers (just fleet)");
    }
    let server = Server::start("spark", &["2"]).unwrap();
    let fleet = Fleet::new(&[40 * MIB, 10 * MIB, 25 * MIB, 5 * MIB]);
    let paths = fleet.paths();
    let images: Vec<&str> = paths.iter().map(String::as_str).collect();
    let args = [&["snapshot"][..], &images, &HELD].concat();
    let mut driver = Driver::start(&server, &fleet, &args);
    assert!(driver.is_midway());
    server.tell("kill", &["w2"]);
    let (code, results) = driver.end();
    assert_eq!((code, states(&results)), (Some(0), vec!["joined"; 4]), "{results:#?}");
    fleet.ensure_all(1);
    server.tell("restart", &["w2"]);
    // A driver is killed; another one goes on with its plan, and reads no part again that is there.
    let mut driver = Driver::start(&server, &fleet, &args);
    assert!(driver.is_midway());
    driver.child.kill().unwrap();
    driver.child.wait().unwrap();
    let plans = fleet.lab.json(&["plan", "list"]);
    let plan = plans[0]["plan"].as_str().unwrap().to_owned();
    assert!(plans[0]["done"].as_u64().unwrap() > 0);
    // Beside it, somebody has the same images taken.
    let second = Driver::start(&server, &fleet, &["finish", &plan]);
    let third = Driver::start(&server, &fleet, &args);
    for driver in [second, third] {
        let (code, results) = driver.end();
        assert_eq!(code, Some(0), "{results:#?}");
        assert!(states(&results).iter().all(|state| *state == "joined"), "{results:#?}");
    }
    fleet.ensure_all(2);
    fleet.ensure_all(3);
}

/// Hadoop streaming over HDFS: images, repository and all, with a node that crashes.
#[test]
fn yarn_takes_a_fleet_by_streaming_also_if_a_node_crashes() {
    if !is_thorough() {
        return skipped("yarn", "it is started only with all servers (just fleet)");
    }
    let server = Server::start("yarn", &["2"]).unwrap();
    let env = server.env().clone();
    let hdfs = env["IMGSNAP_TEST_HDFS"].clone();
    let lab = Lab::new(&format!("{hdfs}/repo"), &env);
    let images: Vec<(String, Vec<u8>)> = (0..3)
        .map(|index| (format!("vm{index}"), noise(index, (12 + 7 * index as usize) * MIB)))
        .collect();
    server.tell("dfs", &["-mkdir", "-p", "/images", "/repo"]);
    for (name, content) in &images {
        lab.write(&format!("{name}.img"), content);
        server.tell("dfs", &["-put", &lab.at(&format!("{name}.img")), "/images"]);
    }
    server.tell("dfsadmin", &["-allowSnapshot", "/images"]);
    server.tell("dfs", &["-createSnapshot", "/images", "n1"]);
    lab.done(&["init"]);
    let pattern = format!("{hdfs}/images/.snapshot/n1/*.img");
    let streaming = |more: &[&str]| {
        let mut command = Command::new(packaged("hadoop/imgsnap-streaming.sh"));
        let bin = server.place().join("bin");
        command.env("HDFS", bin.join("hdfs")).env("MAPRED", bin.join("mapred"));
        command.env("IMGSNAP", env!("CARGO_BIN_EXE_imgsnap")).envs(&env);
        command.env("IMGSNAP_STATE", lab.path("state-driver"));
        command.args(["--repo", &lab.repo]).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let webhdfs = env["IMGSNAP_TEST_WEBHDFS"].clone();
    let job = streaming(&["--part-size", "4M", "--webhdfs", &webhdfs, &pattern]);
    // As soon as something is done, a machine goes.
    let done = || {
        let plans = lab.json(&["plan", "list"]);
        plans.get(0).and_then(|plan| plan["done"].as_u64()).unwrap_or(0)
    };
    assert!(crate::random::wait_until(|| done() > 0));
    server.tell("kill", &["nm2"]);
    let out = job.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for (name, content) in &images {
        lab.ensure_is(&format!("{name}@1"), content);
    }
    lab.done(&["verify"]);
    // What has not changed has no task.
    let again = streaming(&[&pattern]).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success() && said.matches("unchanged: no task").count() == 3, "{said}");
}
