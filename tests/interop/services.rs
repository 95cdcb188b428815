//! Databases that write while they are snapshotted, each on images of its own: what they had acknowledged before is
//! in what is restored. One round of each; `IMGSNAP_SERVICES=20` makes 20.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// XFS is not made smaller than 300 MiB.
const MEBIBYTES: u64 = 320;

fn rounds() -> u64 {
    std::env::var("IMGSNAP_SERVICES").ok().map_or(1, |rounds| rounds.parse().unwrap())
}

/// An image with a file system on it, mounted.
struct Volume {
    image: String,
    at: String,
    // In the order in which they go.
    _mount: Mount,
    _device: Loop,
}

impl Volume {
    fn mount(lab: &Lab, image: String, name: &str, options: &str) -> Result<Self, String> {
        let device = Loop::new(&[], &image)?;
        let at = lab.path(name);
        let mount = Mount::new(&["-o", options, &device.device], &at)?;
        Ok(Self { image, at, _mount: mount, _device: device })
    }

    fn new(lab: &Lab, name: &str) -> Result<Self, String> {
        let image = lab.path(&format!("mnt/{name}.img"));
        make(&image, MEBIBYTES * MIB);
        try_tool("mkfs.xfs", &["-q", &image])?;
        Self::mount(lab, image, name, "defaults")
    }
}

/// A program that is ended with the test.
struct Service(Child);

impl Service {
    fn start(command: &mut Command) -> Self {
        Self(spawn(command.stdout(Stdio::null()).stderr(Stdio::null())).unwrap())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().unwrap();
    }
}

/// Somebody who writes one number after the other, and knows the last one that was acknowledged.
struct Writer {
    acknowledged: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// `write` is given a number, and comes back when that is acknowledged, or not any more.
    fn start(mut write: impl FnMut(u64) -> Option<()> + Send + 'static) -> Self {
        let (acknowledged, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (told, end) = (acknowledged.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            for number in 1.. {
                if end.load(Ordering::SeqCst) || write(number).is_none() {
                    return;
                }
                told.store(number, Ordering::SeqCst);
            }
        });
        Self { acknowledged, is_over, thread: Some(thread) }
    }

    fn last(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Takes the volumes as a group, and mounts what is restored of them.
fn restored(lab: &Lab, volumes: &[&Volume], freeze: bool, turn: u64) -> Vec<Volume> {
    let mut args = vec!["snapshot"];
    args.extend(volumes.iter().map(|volume| volume.image.as_str()));
    args.extend(["--group", "db", "--json"]);
    if freeze {
        args.extend(volumes.iter().flat_map(|volume| ["--freeze", &volume.at]));
    }
    let run = lab.run(&args).done();
    let lines = String::from_utf8(run.out).unwrap();
    for line in lines.lines() {
        let taken: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(taken["consistency"], if freeze { "frozen" } else { "crash" }, "{line}");
    }
    let name = |volume: &Volume| {
        let file = volume.image.rsplit('/').next().unwrap();
        file.strip_suffix(".img").unwrap().to_owned()
    };
    let place = lab.path(&format!("restored-{turn}"));
    let newest = format!("{}@latest", name(volumes[0]));
    lab.run(&["restore", &newest, "-o", &format!("{place}/")]).done();
    let mount = |volume: &&Volume| {
        let name = name(volume);
        let image = format!("{place}/{name}.img");
        // The file systems they were are mounted, too.
        Volume::mount(lab, image, &format!("{name}-restored-{turn}"), "nouuid").unwrap()
    };
    volumes.iter().map(mount).collect()
}

/// A connection to a Redis.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(port: u16) -> Self {
        let mut found = None;
        assert!(wait_until(|| {
            found = TcpStream::connect(("127.0.0.1", port)).ok();
            found.is_some()
        }));
        let stream = found.unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut redis = Self(BufReader::new(stream));
        assert!(wait_until(|| redis.ask("PING").as_deref() == Some("PONG")), "it loads for ever");
        redis
    }

    /// What is answered: a status, a number or a text. None of what is not there, and of an error.
    fn ask(&mut self, command: &str) -> Option<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut line = String::new();
        self.0.read_line(&mut line).ok()?;
        let (kind, rest) = line.trim_end().split_at_checked(1)?;
        match (kind, rest) {
            ("+" | ":", text) => Some(text.to_owned()),
            ("$", length) => {
                let mut bytes = vec![0; length.parse::<usize>().ok()? + 2];
                std::io::Read::read_exact(&mut self.0, &mut bytes).ok()?;
                bytes.truncate(bytes.len() - 2);
                String::from_utf8(bytes).ok()
            }
            _ => None,
        }
    }

    fn info(&mut self, field: &str) -> String {
        let info = self.ask("INFO replication").unwrap();
        let prefix = format!("{field}:");
        let line = info.lines().find_map(|line| line.trim_end().strip_prefix(&prefix));
        line.unwrap_or_default().to_owned()
    }
}

/// How a replica is to its primary, by what both say of the stream of changes: its name, and how far they are.
#[derive(Debug, PartialEq)]
enum Replica {
    Follows,
    Lags,
    Diverged,
}

fn replica(primary: &mut Redis, replica: &mut Redis) -> Replica {
    if replica.info("master_replid") != primary.info("master_replid") {
        return Replica::Diverged;
    }
    let at: u64 = replica.info("slave_repl_offset").parse().unwrap_or(0);
    // The primary is asked last: what it has sent meanwhile is no lag of the replica.
    let is_up = replica.info("master_link_status") == "up";
    let sent: u64 = primary.info("master_repl_offset").parse().unwrap();
    if is_up && at == sent { Replica::Follows } else { Replica::Lags }
}

fn start_redis(at: &str, port: u16, more: &[&str]) -> Service {
    let port = port.to_string();
    let mut command = tool_command("redis-server", &["--port", &port, "--dir", at]).unwrap();
    // With `everysec` it may acknowledge a write two seconds before it gives it to the kernel.
    command.args(["--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always"]);
    command.args(["--save", "", "--repl-diskless-sync-delay", "0"]).args(more);
    Service::start(&mut command)
}

#[test]
fn what_redis_has_acknowledged_before_a_frozen_snapshot_is_there_and_its_replica_follows_again() {
    need!(root());
    need!(tools(&["redis-server", "redis-benchmark", "mkfs.xfs"]));
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, "mkfs.xfs", &["-q", "-m", "reflink=1"], 2048));
    let (a, b) = (need!(Volume::new(&lab, "primary")), need!(Volume::new(&lab, "replica")));
    let (port, port_b) = (free_port(), free_port());
    let _primary = start_redis(&a.at, port, &[]);
    let mut of_primary = Redis::connect(port);
    let of = format!("127.0.0.1 {port}");
    let _replica = start_redis(&b.at, port_b, &["--replicaof", &of]);
    let mut of_replica = Redis::connect(port_b);
    assert!(wait_until(|| replica(&mut of_primary, &mut of_replica) == Replica::Follows));
    let load = ["-p", &port.to_string(), "-t", "set", "-n", "100000000", "-r", "100000", "-q"];
    let load = Service::start(&mut tool_command("redis-benchmark", &load).unwrap());
    let mut client = Redis::connect(port);
    let writer =
        Writer::start(move |number| client.ask(&format!("SET seq:{number} x")).map(|_| ()));
    for turn in 0..rounds() {
        std::thread::sleep(Duration::from_millis(500));
        let before = writer.last();
        let again = restored(&lab, &[&a, &b], true, turn);
        let after = writer.last();
        assert!(before > 0 && after > before, "{before} {after}");
        let (port, port_b) = (free_port(), free_port());
        let _primary = start_redis(&again[0].at, port, &[]);
        let mut primary = Redis::connect(port);
        let holds = |redis: &mut Redis, number: u64| {
            redis.ask(&format!("EXISTS seq:{number}")).as_deref() == Some("1")
        };
        // All of the last ones, and some of the many before.
        let step = (before / 10_000).max(1) as usize;
        let mut numbers = (1..=before).rev().take(10_000).chain((1..=before).step_by(step));
        let missing = numbers.find(|number| !holds(&mut primary, *number));
        assert_eq!(missing, None, "acknowledged before the freeze, of {before}");
        assert!(!holds(&mut primary, after + 1), "from the future");
        let of = format!("127.0.0.1 {port}");
        let second = start_redis(&again[1].at, port_b, &["--replicaof", &of]);
        let mut replicated = Redis::connect(port_b);
        assert!(wait_until(|| replica(&mut primary, &mut replicated) == Replica::Follows));
        assert!(holds(&mut replicated, before));
        // One that stands still lags; one that goes its own way has diverged.
        let id = nix::unistd::Pid::from_raw(second.0.id() as i32);
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGSTOP).unwrap();
        primary.ask("SET more x").unwrap();
        let known = primary.info("slave0");
        let offset = known.split("offset=").nth(1).unwrap().split(',').next().unwrap().to_owned();
        assert_ne!(offset, primary.info("master_repl_offset"), "it lags");
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGCONT).unwrap();
        assert!(wait_until(|| replica(&mut primary, &mut replicated) == Replica::Follows));
        replicated.ask("REPLICAOF NO ONE").unwrap();
        assert_eq!(replica(&mut primary, &mut replicated), Replica::Diverged);
    }
    drop(load);
}

/// Where PostgreSQL's programs are: Debian keeps them apart by version.
fn postgres() -> Result<String, String> {
    let mut found: Vec<_> = glob::glob("/usr/lib/postgresql/*/bin").unwrap().flatten().collect();
    found.sort();
    let folder = found.pop().ok_or("no postgres here")?;
    if !folder.join("initdb").exists() || !folder.join("pgbench").exists() {
        return Err("no initdb or pgbench here".into());
    }
    Ok(folder.to_str().unwrap().to_owned())
}

/// A server that runs as nobody.
struct Postgres {
    _service: Service,
    socket: String,
    bin: String,
}

impl Postgres {
    fn command(bin: &str, program: &str, args: &[&str]) -> Command {
        let program = format!("{bin}/{program}");
        let as_nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", &program];
        let mut command = tool_command("setpriv", &as_nobody).unwrap();
        command.args(args).env("HOME", "/nonexistent").env("LC_ALL", "C").current_dir("/");
        command
    }

    fn start(bin: &str, data: &str, socket: &str) -> Self {
        let args = ["-D", data, "-k", socket, "-c", "listen_addresses="];
        let service = Service::start(&mut Self::command(bin, "postgres", &args));
        let server = Self { _service: service, socket: socket.to_owned(), bin: bin.to_owned() };
        assert!(wait_until(|| server.try_ask("SELECT 1").is_ok()), "it does not start");
        server
    }

    fn try_ask(&self, query: &str) -> Result<String, String> {
        let args = ["-h", &self.socket, "-U", "nobody", "-d", "postgres", "-qAtc", query];
        let out = output(&mut Self::command(&self.bin, "psql", &args)).unwrap();
        match out.status.success() {
            true => Ok(String::from_utf8(out.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
        }
    }

    #[track_caller]
    fn ask(&self, query: &str) -> String {
        self.try_ask(query).unwrap_or_else(|e| panic!("{query}: {e}"))
    }

    fn bench(&self, more: &[&str]) -> Command {
        let args = [&["-h", &self.socket, "-U", "nobody", "postgres"], more].concat();
        Self::command(&self.bin, "pgbench", &args)
    }

    /// Each number is a transaction of its own.
    fn writer(&self) -> Writer {
        let args = ["-h", &self.socket, "-U", "nobody", "-d", "postgres", "-qAt"];
        let mut command = Self::command(&self.bin, "psql", &args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut psql = {
            let _alone = forking();
            command.spawn().unwrap()
        };
        let (mut to, from) = (psql.stdin.take().unwrap(), psql.stdout.take().unwrap());
        let mut from = BufReader::new(from);
        Writer::start(move |number| {
            // Whoever writes no more ends it.
            psql.try_wait().ok()?;
            writeln!(to, "INSERT INTO acknowledged VALUES ({number}) RETURNING n;").ok()?;
            let mut line = String::new();
            from.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
            (line.trim() == number.to_string()).then_some(())
        })
    }
}

#[test]
fn postgresql_recovers_what_it_had_acknowledged_frozen_or_not_and_on_two_volumes() {
    need!(root());
    let bin = need!(postgres());
    need!(tools(&["mkfs.xfs", "setpriv"]));
    // Data and log on one volume or two; frozen or not. Two that are not frozen are of two moments.
    for (has_two, freeze) in [(false, true), (false, false), (true, true)] {
        let lab = Lab::new();
        std::fs::set_permissions(lab.path(""), PermissionsExt::from_mode(0o755)).unwrap();
        let (_device, _mount) = need!(mounted(&lab, "mkfs.xfs", &["-q", "-m", "reflink=1"], 2048));
        let data = need!(Volume::new(&lab, "data"));
        let wal = if has_two { Some(need!(Volume::new(&lab, "wal"))) } else { None };
        let volumes: Vec<&Volume> = [Some(&data), wal.as_ref()].into_iter().flatten().collect();
        let socket = lab.path("socket");
        std::fs::create_dir(&socket).unwrap();
        for place in volumes.iter().map(|volume| &volume.at).chain([&socket]) {
            chown(place, Some(65534), Some(65534)).unwrap();
        }
        let base = format!("{}/base", data.at);
        let mut args = vec!["-D", &base, "-U", "nobody", "--auth", "trust"];
        let log = wal.as_ref().map(|wal| format!("{}/wal", wal.at));
        args.extend(log.iter().flat_map(|log| ["--waldir", log]));
        let made = output(&mut Postgres::command(&bin, "initdb", &args)).unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let server = Postgres::start(&bin, &base, &socket);
        server.ask("CREATE TABLE acknowledged (n bigint PRIMARY KEY)");
        assert!(output(&mut server.bench(&["-i", "-q", "-s", "2"])).unwrap().status.success());
        let load = Service::start(&mut server.bench(&["-c", "4", "-T", "100000"]));
        let writer = server.writer();
        for turn in 0..rounds() {
            std::thread::sleep(Duration::from_millis(500));
            let before = writer.last();
            let again = restored(&lab, &volumes, freeze, turn);
            let after = writer.last();
            assert!(before > 0 && after > before, "{before} {after}");
            let base = format!("{}/base", again[0].at);
            std::fs::remove_file(format!("{base}/postmaster.pid")).ok();
            if let Some(wal) = again.get(1) {
                let link = format!("{base}/pg_wal");
                std::fs::remove_file(&link).unwrap();
                std::os::unix::fs::symlink(format!("{}/wal", wal.at), &link).unwrap();
            }
            let socket = lab.path(&format!("socket-{turn}"));
            std::fs::create_dir(&socket).unwrap();
            chown(&socket, Some(65534), Some(65534)).unwrap();
            let recovered = Postgres::start(&bin, &base, &socket);
            let what = format!("two volumes: {has_two}, frozen: {freeze}");
            let last: u64 = recovered.ask("SELECT max(n) FROM acknowledged").parse().unwrap();
            assert!((before..=after + 1).contains(&last), "{what}: {before} {last} {after}");
            assert_eq!(
                recovered.ask("SELECT count(*) FROM acknowledged"),
                last.to_string(),
                "{what}"
            );
            // Each transaction of pgbench adds the same to all four.
            let sums = "SELECT count(DISTINCT s) FROM (SELECT sum(abalance) s FROM pgbench_accounts UNION ALL \
                        SELECT sum(bbalance) FROM pgbench_branches UNION ALL SELECT sum(tbalance) FROM \
                        pgbench_tellers UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history) x";
            assert_eq!(recovered.ask(sums), "1", "{what}");
        }
        drop((load, writer));
    }
}
