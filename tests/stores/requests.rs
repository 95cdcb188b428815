//! How many requests a verb makes of an object store, and how many one after the other.

use crate::kit::{is_thorough, s3, skipped};
use crate::proxy::{Proxy, Request};
use std::time::Duration;

#[test]
fn few_requests_are_made() {
    let Some((server, mut env)) = s3() else { return };
    let upstream = env["AWS_ENDPOINT_URL"].strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::start(upstream);
    env.insert("AWS_ENDPOINT_URL".into(), proxy.url());
    let lab = server.lab("s3://imgsnap-test/r", &env);
    lab.done(&["snapshot", "disk.img"]);
    lab.change(1);
    lab.done(&["snapshot", "disk.img"]);
    lab.change(2);
    let asked = |args: &[&str]| {
        proxy.clear();
        lab.done(args);
        let asked = proxy.requests();
        asked.iter().map(|r| format!("{} {}", r.method, r.target)).collect::<Vec<_>>()
    };
    let snapshot = asked(&["snapshot", "disk.img"]);
    let is_upload = |request: &&String| request.starts_with("PUT ") && request.contains(".delta");
    let others = snapshot.iter().filter(|r| !is_upload(r)).count();
    assert!(others <= 10, "{others}: {snapshot:#?}");
    let list = asked(&["list"]);
    // All names, the configuration, and each image.
    assert!(list.len() <= 3, "{}: {list:#?}", list.len());
}

/// How many requests of some can have waited for each other at most, if each takes so long.
fn round_trips(requests: &[Request], latency: Duration) -> usize {
    let (mut count, mut next) = (0, None);
    for request in requests {
        if next.is_none_or(|next| request.start >= next) {
            (count, next) = (count + 1, Some(request.start + latency));
        }
    }
    count
}

#[test]
fn a_long_chain_is_opened_in_few_round_trips() {
    if !is_thorough() {
        return skipped("a_long_chain_is_opened_in_few_round_trips", "only with all servers");
    }
    let Some((server, mut env)) = s3() else { return };
    let upstream = env["AWS_ENDPOINT_URL"].strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::start(upstream);
    env.insert("AWS_ENDPOINT_URL".into(), proxy.url());
    let lab = server.lab("s3://imgsnap-test/r", &env);
    lab.done(&["snapshot", "disk.img"]);
    let mut last = Vec::new();
    for seed in 1..1000 {
        last = lab.change(seed);
        lab.done(&["snapshot", "disk.img"]);
    }
    // Long enough that threads and processors do not count.
    let latency = Duration::from_millis(300);
    proxy.clear();
    proxy.set_latency(latency);
    // Another host, which has nothing of it.
    let args = ["restore", "disk@latest", "--range", "0+4K", "-o", "-"];
    let out = lab.command_as("two", &args).output().unwrap();
    assert!(out.status.success() && out.stdout == last[..4096], "{out:?}");
    let trips = round_trips(&proxy.requests(), latency);
    eprintln!("a chain of 1000: {} requests, {trips} round trips", proxy.requests().len());
    assert!(trips <= 20, "{trips} round trips");
}
