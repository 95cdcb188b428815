//! Requests go wrong, in each way, at whatever moment, while a repository is used: nothing is lost, nothing is
//! wrong, and one line says why something was not done.
//!
//! By default some, `IMGSNAP_STORE_FAULTS=N` N of them; the seed is printed by a failure.

use crate::kit::{Lab, Run, Server, is_near, is_thorough, s3, skipped};
use crate::proxy::{Asked, Fault, Proxy, TcpProxy};
use crate::random::Random;
use crate::world::{World, wanted};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How many faults there are if nothing is said.
fn usual() -> u64 {
    if is_thorough() { 1000 } else { 20 }
}

/// How often connections are cut if nothing is said.
fn usual_cuts() -> u64 {
    if is_thorough() { 60 } else { 6 }
}

/// Requests of a verb, about.
const REQUESTS: u64 = 14;
/// Bytes of a verb, about.
const BYTES: u64 = 60_000;

const SHORT: Duration = Duration::from_millis(50);

fn fault(random: &mut Random) -> Fault {
    let faults = [
        Fault::Delay(SHORT),
        Fault::Refuse,
        Fault::ResetBefore,
        Fault::Lost(SHORT),
        Fault::Unanswered,
        Fault::CutBody(random.below(3000)),
        Fault::ShortBody(random.below(3000)),
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::Status(409),
        Fault::Status(403),
        Fault::StatusAfter(500),
        Fault::StatusAfter(503),
        Fault::OkWithError,
        Fault::OkWithErrorAfter,
        Fault::WrongETag,
        Fault::FlipByte(random.below(3000)),
        Fault::Twice,
        Fault::Stall(SHORT),
    ];
    faults[random.below(faults.len() as u64) as usize]
}

#[test]
fn requests_may_go_wrong() {
    let Some((server, mut env)) = s3() else { return };
    let upstream = env["AWS_ENDPOINT_URL"].strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::start(upstream);
    env.insert("AWS_ENDPOINT_URL".into(), proxy.url());
    let mut world = World::new(server.lab("s3://imgsnap-test/r", &env));
    let (count, seed) = wanted("IMGSNAP_STORE_FAULTS", usual());
    let mut random = Random(seed);
    for turn in 0..count {
        let (at, fault) = (random.below(REQUESTS) as usize, fault(&mut random));
        eprintln!("seed {seed}, turn {turn}: request {at}, {fault:?}");
        let run = |lab: &Lab, args: &[&str]| {
            proxy.clear();
            let hit = Arc::new(AtomicUsize::new(0));
            proxy.set_rule(move |asked: &Asked<'_>| {
                let is_it = asked.number >= at && hit.fetch_add(1, Ordering::SeqCst) == 0;
                if is_it { fault } else { Fault::None }
            });
            let run = lab.run(args);
            proxy.set_rule(|_| Fault::None);
            assert!(proxy.settle());
            run
        };
        world.turn(&mut random, &run);
    }
    world.end("faults at requests", true);
}

#[test]
fn a_byte_that_changes_on_the_way_is_no_damage() {
    let Some((server, mut env)) = s3() else { return };
    let upstream = env["AWS_ENDPOINT_URL"].strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::start(upstream);
    env.insert("AWS_ENDPOINT_URL".into(), proxy.url());
    let lab = server.lab("s3://imgsnap-test/r", &env);
    lab.done(&["snapshot", "disk.img"]);
    let hit = Arc::new(AtomicUsize::new(0));
    let count = hit.clone();
    proxy.set_rule(move |asked: &Asked<'_>| {
        let is_it = asked.method == "GET" && asked.target.contains(".delta");
        let is_it = is_it && count.fetch_add(1, Ordering::SeqCst) == 0;
        if is_it { Fault::FlipByte(100) } else { Fault::None }
    });
    let run = lab.run(&["verify"]);
    assert!(hit.load(Ordering::SeqCst) > 1, "nothing was read again");
    assert!(run.code == Some(0) && run.out.contains("no damage found"), "{run:?}");
    assert!(run.err.contains("data was damaged in transit"), "{run:?}");
}

/// Cuts all connections after some bytes, again and again: once, or so that later ones are cut, too.
fn connections_are_cut(proxy: &TcpProxy, lab: Lab, what: &str) {
    let mut world = World::new(lab);
    let (count, seed) = wanted("IMGSNAP_STORE_CUTS", usual_cuts());
    let mut random = Random(seed);
    for turn in 0..count {
        let (bytes, is_lasting) = (random.below(BYTES), random.below(4) == 0);
        eprintln!("seed {seed}, turn {turn}: cut after {bytes} bytes, lasting: {is_lasting}");
        let run = |lab: &Lab, args: &[&str]| -> Run {
            match is_lasting {
                true => proxy.break_after(bytes),
                false => proxy.cut_after(bytes),
            }
            let run = lab.run(args);
            proxy.mend();
            run
        };
        world.turn(&mut random, &run);
    }
    world.end(what, true);
}

#[test]
fn connections_to_sshd_may_be_cut() {
    if !(is_thorough() || is_near("sshd")) {
        return skipped("connections_to_sshd_may_be_cut", "no sshd here");
    }
    let Some(server) = Server::start("sshd", &[]) else { return };
    let config = std::fs::read_to_string(&server.env()["IMGSNAP_TEST_SSH_CONFIG"]).unwrap();
    let port = config.lines().find_map(|line| line.trim().strip_prefix("Port ")).unwrap();
    let proxy = TcpProxy::start(format!("127.0.0.1:{port}").parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let through = folder.path().join("ssh_config");
    // The key is known by the port of the server.
    let own = format!("Port {}\n    HostKeyAlias [127.0.0.1]:{port}", proxy.address().port());
    std::fs::write(&through, config.replace(&format!("Port {port}"), &own)).unwrap();
    let mut env = server.env().clone();
    env.insert("IMGSNAP_SSH".into(), format!("ssh -F {}", through.to_str().unwrap()));
    env.insert("IMGSNAP_SSH_PROGRAM".into(), env!("CARGO_BIN_EXE_imgsnap").into());
    let repo = format!("ssh://test{}/r", folder.path().to_str().unwrap());
    connections_are_cut(&proxy, Lab::new(&repo, &env), "connections to sshd cut");
}

#[test]
fn connections_to_a_name_node_may_be_cut() {
    if !is_thorough() {
        return skipped("connections_to_a_name_node_may_be_cut", "only with all servers");
    }
    let Some(server) = Server::start("hdfs", &["1"]) else { return };
    server.tell("dfs", &["-mkdir", "-p", "/backup"]);
    let url = &server.env()["IMGSNAP_TEST_HDFS"];
    let proxy = TcpProxy::start(url.strip_prefix("hdfs://").unwrap().parse().unwrap());
    let repo = format!("hdfs://{}/backup/r", proxy.address());
    connections_are_cut(&proxy, Lab::new(&repo, server.env()), "connections to a NameNode cut");
}
